"""Lines of JSON that arrive in pieces, as ``ndjson`` and Ollama send them.

Decisions
    1. A line ends in LF alone, and CRLF; no other character that some language takes for the end of
       a line is one. Blank lines are passed over, and a byte order mark before the first.
    2. The last line needs no LF: where the input ends, so does the line.
"""

from __future__ import annotations

import json
from typing import Any, List, Optional, Union

from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError, WireError

__all__ = ["NDJSONDecoder"]

_BOM = b"\xef\xbb\xbf"


class NDJSONDecoder:
    """Decodes JSON values, one a line, in linear time.

    :param max_line: most bytes that one line may have. Defaults to 1 Mi.
    """

    def __init__(self, max_line: int = 1 << 20) -> None:
        self._max_line = max_line
        self.reset()

    def reset(self) -> None:
        """Get ready for a new stream."""
        self._held = bytearray()  # a line that is still arriving; never longer than one may be
        self._line = 0
        self._error: Optional[WireError] = None
        self._flushed = False

    def feed(self, data: Union[bytes, bytearray, memoryview]) -> List[Any]:
        """Return the values of the lines that *data* completes.

        Lines that were complete before a fault are returned first, and the next call raises.

        :raises BufferLimitExceeded: a line is longer than ``max_line``.
        :raises DecodeError: a line is not JSON in UTF-8; its number is the error's ``line``.
        :raises RuntimeError: after :meth:`flush`.
        """
        self._raise_fault()
        if self._flushed:
            raise RuntimeError("feed() after flush(): call reset() before reading a new stream")
        held = self._held
        scanned = len(held)
        held += data
        values: List[Any] = []
        begin = 0
        try:
            end = held.find(b"\n", scanned)
            while end >= 0:
                self._take(held[begin:end], values)
                begin = end + 1
                end = held.find(b"\n", begin)
            self._check_length(len(held) - begin)
        except WireError as error:
            # Lets go of the memory, which a traceback would hold on to.
            held = self._held = bytearray()
            self._error = error.with_traceback(None)
            if not values:
                raise self._error
            return values
        del held[:begin]
        return values

    def flush(self) -> List[Any]:
        """Say that the input has ended; return the value of a last line that had no line end.

        :raises DecodeError: that is not JSON in UTF-8, as where the input was cut; or the last
            :meth:`feed` could not yet say so.
        :raises BufferLimitExceeded: where the last :meth:`feed` could not yet say so.
        """
        self._raise_fault()
        rest, line = self._held, self._line
        self.reset()
        self._flushed = True
        self._line = line
        values: List[Any] = []
        self._take(rest, values)
        return values

    def _raise_fault(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)  # or it would grow each time

    def _take(self, line: bytearray, values: List[Any]) -> None:
        self._check_length(len(line))
        self._line += 1
        if self._line == 1 and line.startswith(_BOM):
            del line[: len(_BOM)]
        if line.strip():
            values.append(_read(line, self._line))

    def _check_length(self, length: int) -> None:
        limit = self._max_line
        if length > limit:
            raise BufferLimitExceeded(
                limit,
                f"line {self._line + 1} is longer than max_line={limit} bytes; raise max_line, or"
                " check that the peer really sends lines of JSON",
            )


def _read(line: bytearray, number: int) -> Any:
    try:
        return _decode_json(line.decode())
    except (ValueError, RecursionError):
        # Also what is nested deeper than Python's stack, or a number of thousands of digits.
        pass
    # Without what was seen, and without the error that holds it: it may be somebody's answer.
    raise DecodeError("not JSON in UTF-8", line=number)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decode_json = json.JSONDecoder(parse_constant=_no_constant).decode
