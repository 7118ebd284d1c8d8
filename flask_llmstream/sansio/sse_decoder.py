"""Bytes of an event stream in, events out: the parser of the WHATWG specification.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

Decisions: 1. What a piece of input contains is decided by the bytes alone, never by how they were
cut. 2. ``retry`` past 18 digits is ignored: browsers hold it in 64 bits, and a longer one would
overflow whoever computes with it.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import Callable, List, Optional

from flask_llmstream.exceptions import BufferLimitExceeded
from flask_llmstream.sansio.events import Event

__all__ = ["SSEDecoder"]

_OPEN, _START, _OVERFLOWN, _FLUSHED = range(4)
_MAX_RETRY_DIGITS = 18


class SSEDecoder:
    """Decodes an event stream that arrives in pieces of any size, in linear time.

    :param max_buffer: most characters that one event may hold before it is complete: its data
        so far plus the line that is still arriving. Defaults to 1 Mi.
    :param on_comment: called with the text of each comment line, such as a heartbeat, as soon as
        the line is complete, and so before :meth:`feed` returns; it must not raise.
        Defaults to none.
    """

    def __init__(
        self,
        max_buffer: int = 1 << 20,
        on_comment: Optional[Callable[[str], None]] = None,
    ) -> None:
        #: What to send as ``Last-Event-ID``. Outlives :meth:`reset`, and may be assigned.
        self.last_event_id: str = ""
        #: Milliseconds to wait before a reconnect, once the peer has said so. Outlives :meth:`reset`.
        self.retry: Optional[int] = None
        self._max_buffer = max_buffer
        self._on_comment = on_comment
        self.reset()

    def reset(self) -> None:
        """Get ready for a new connection; ``last_event_id`` and ``retry`` stay, as in a browser."""
        self._state = _START
        self._undecoded = b""  # the beginning of a character
        self._skip_lf = False
        self._held: List[str] = []  # pieces of the line that is still arriving
        self._held_size = 0
        self._clean = True  # no field waits for the blank line of its event
        self._data: List[str] = []
        self._data_size = 0
        self._event = ""
        self._id: Optional[str] = None

    def feed(self, data: bytes) -> List[Event]:
        """Return the events that *data* completes.

        An event's ``id`` is the last id that the stream has set, ``None`` where it has set none;
        its ``event`` is ``None`` where it is unnamed.

        :raises BufferLimitExceeded: an event outgrew ``max_buffer``; events that were complete
            before it are returned first, and the next call raises.
        :raises RuntimeError: after :meth:`flush`.
        """
        if self._undecoded:
            data = self._undecoded + data
            self._undecoded = b""
        text, used = utf_8_decode(data, "replace")
        if used != len(data):
            self._undecoded = bytes(data[used:])
        if self._state:
            text = self._begin(text)
        if self._skip_lf or "\r" in text:
            text = self._unify_line_ends(text)

        if "\n" not in text:
            return self._hold(text)
        if self._held:
            # Fragments are joined once, when their line ends: joining at each would be quadratic.
            self._held.append(text)
            text = "".join(self._held)
            self._held = []
            self._held_size = 0
        if self._clean and len(text) <= self._max_buffer:
            return self._read_blocks(text)
        return self._read_lines(text)

    def flush(self) -> List[Event]:
        """Say that the input has ended; an event without its blank line is discarded.

        :returns: always an empty list, so that all decoders can be driven alike.
        :raises BufferLimitExceeded: where the last :meth:`feed` could not yet say so.
        """
        # "Once the end of the file is reached, any pending data must be discarded."
        if self._state == _OVERFLOWN:
            raise BufferLimitExceeded(self._max_buffer)
        self.reset()
        self._state = _FLUSHED
        return []

    def _begin(self, text: str) -> str:
        """Take care of all that is not the middle of a healthy stream."""
        if self._state == _OVERFLOWN:
            raise BufferLimitExceeded(self._max_buffer)
        if self._state == _FLUSHED:
            raise RuntimeError("feed() after flush(): call reset() before reading a new stream")
        if text:
            self._state = _OPEN
            # "One leading U+FEFF BYTE ORDER MARK character must be ignored if any are present."
            if text[0] == "\ufeff":
                return text[1:]
        return text

    def _unify_line_ends(self, text: str) -> str:
        if self._skip_lf and text:
            # A CR at the end of a piece has ended the line already; only the LF of a CRLF that
            # was cut in two may follow it.
            self._skip_lf = False
            if text[0] == "\n":
                text = text[1:]
        if text.endswith("\r"):
            self._skip_lf = True
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def _hold(self, text: str) -> List[Event]:
        if text:
            self._held.append(text)
            self._held_size += len(text)
            if self._data_size + self._held_size > self._max_buffer:
                return self._overflow([])
        return []

    def _overflow(self, events: List[Event]) -> List[Event]:
        self.reset()  # lets go of the memory
        self._state = _OVERFLOWN
        if not events:
            raise BufferLimitExceeded(self._max_buffer)
        return events

    def _read_blocks(self, text: str) -> List[Event]:
        """Read *text*, which begins with a new event and is too short to break the limit."""
        events: List[Event] = []
        blocks = text.split("\n\n")
        rest = blocks.pop()
        for block in blocks:
            # Nearly every event of nearly every stream is one such line.
            if block[:6] == "data: " and "\n" not in block:
                events.append(Event(block[6:], None, self._id))
            else:
                for line in block.split("\n"):
                    self._read_line(line, events)
                self._dispatch(events)
        if "\n" in rest:
            lines = rest.split("\n")
            rest = lines.pop()
            for line in lines:
                self._read_line(line, events)
        self._keep(rest)
        return events

    def _read_lines(self, text: str) -> List[Event]:
        """Read *text*, which goes on with an event or is long enough to break the limit."""
        events: List[Event] = []
        lines = text.split("\n")
        rest = lines.pop()
        for line in lines:
            if self._data_size + len(line) > self._max_buffer:
                return self._overflow(events)
            self._read_line(line, events)
        if self._data_size + len(rest) > self._max_buffer:
            return self._overflow(events)
        self._keep(rest)
        return events

    def _keep(self, rest: str) -> None:
        """Note what is not complete yet: the beginning of a line, fields without a blank line."""
        if rest:
            self._held.append(rest)
            self._held_size = len(rest)
        self._clean = not (self._data or self._event) and self._id in (None, self.last_event_id)

    def _read_line(self, line: str, events: List[Event]) -> None:
        if line[:6] == "data: ":
            self._data.append(line[6:])
            self._data_size += len(line) - 5
            return
        if not line:
            self._dispatch(events)
            return
        if line[0] == ":":
            if self._on_comment is not None:
                self._on_comment(line[2:] if line[1:2] == " " else line[1:])
            return
        # "If value starts with a U+0020 SPACE character, remove it from value."
        field, _, value = line.partition(":")
        if value[:1] == " ":
            value = value[1:]
        if field == "data":
            self._data.append(value)
            self._data_size += len(value) + 1
        elif field == "event":
            self._event = value
        elif field == "id":
            # "If the field value does not contain U+0000 NULL"
            if "\0" not in value:
                self._id = value
        elif field == "retry":
            # "If the field value consists of only ASCII digits"
            digits = value.lstrip("0") or value[:1]
            if digits.isdigit() and digits.isascii() and len(digits) <= _MAX_RETRY_DIGITS:
                self.retry = int(digits)

    def _dispatch(self, events: List[Event]) -> None:
        # The id of a block counts even where the block has no data and so makes no event.
        if self._id is not None:
            self.last_event_id = self._id
        if self._data:
            data = "\n".join(self._data)
            events.append(Event(data, self._event or None, self._id))
            self._data = []
            self._data_size = 0
        # "If the data buffer is an empty string, set the data buffer and the event type buffer
        # to the empty string and return."
        self._event = ""
