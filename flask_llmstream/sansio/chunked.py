"""The chunked transfer coding of HTTP/1.1: what was sent, without its framing (RFC 9112, 7.1).

Decisions
    1. Ours, beside the one of ``http.client``, because that one hands out a single HTTP chunk
       per call and cannot say whether more have arrived. LLM servers send a chunk per token, so
       a burst of a hundred tokens that one read of the socket brought would take a hundred
       calls, and could not leave us in one write.
"""

from __future__ import annotations

from typing import Dict, List, Optional

from flask_llmstream.exceptions import DecodeError

__all__ = ["ChunkedDecoder"]

#: Characters that the line with a chunk's size, or one trailer line, may have. As http.client.
_MAX_LINE = 65536
#: Size lines that are remembered.
_MAX_SIZES = 256


class ChunkedDecoder:
    """Takes the bytes of a chunked body in any pieces and returns what they carry.

    :attr:`done` says when the last chunk and its trailer have been seen; what came after that
    is in :attr:`unused`. Trailer fields are dropped. :attr:`broken` says that the framing is
    broken, and so nobody can say where the body goes on.

    :param left: bytes that are left of a chunk that was read in part elsewhere; 0 where just its
        line break is left. Defaults to ``None``: the size of a chunk comes next.
    """

    def __init__(self, left: Optional[int] = None) -> None:
        #: Whether the end of the body has been seen.
        self.done = False
        #: Bytes after the end of the body.
        self.unused = b""
        #: What is wrong with the framing, if anything.
        self.broken = ""
        self._left = left or 0
        self._in_trailer = False
        # True between a chunk's last byte and the line break that must follow it.
        self._at_break = left == 0
        self._tail = b""
        self._sizes: Dict[bytes, int] = {}
        self._splits = True  # until a chunk is seen that holds a CRLF

    def feed(self, data: bytes) -> bytes:
        """Return what *data* carries, which may be nothing.

        Where the framing breaks it is what came before, and :attr:`broken` is set.

        :raises DecodeError: if it was set before.
        """
        if self.broken:
            raise DecodeError(self.broken)
        if self.done:
            self.unused += data
            return b""
        if self._left > len(data):
            self._left -= len(data)
            return data
        if self._tail:
            data = self._tail + data
            self._tail = b""
        payload: List[bytes] = []
        position = 0
        whole = True  # many chunks at once, as soon as one begins
        try:
            while True:
                if self._left:
                    piece = data[position : position + self._left]
                    if not piece:
                        break
                    payload.append(piece)
                    position += len(piece)
                    self._left -= len(piece)
                    if self._left:
                        break
                    self._at_break = True
                elif whole and not (self._at_break or self._in_trailer):
                    whole = False
                    position += self._take_whole_chunks(data[position:], payload)
                end = data.find(b"\n", position)
                if end < 0:
                    self._keep(data[position:])
                    break
                line, position = data[position:end], end + 1
                if self._take_line(line[:-1] if line.endswith(b"\r") else line):
                    self.done = True
                    self.unused = data[position:]
                    break
        except DecodeError as error:
            self.broken = str(error)
        return payload[0] if len(payload) == 1 else b"".join(payload)

    def _take_whole_chunks(self, data: bytes, payload: List[bytes]) -> int:
        """Add what whole chunks at the beginning carry to *payload*; return where they end."""
        if not self._splits:
            return 0
        # Sizes and chunks in turns, where no chunk holds a CRLF: their lengths show whether one does.
        parts = data.split(b"\r\n")
        chunks = parts[1:-1:2]
        lines = parts[: 2 * len(chunks) : 2]
        sizes = self._sizes
        try:
            expected = [sizes[line] for line in lines]
        except KeyError:
            expected = self._learn(lines)
            del chunks[len(expected) :], lines[len(expected) :]
        if list(map(len, chunks)) != expected:
            self._splits = False
            return 0
        payload += chunks
        return sum(expected) + sum(map(len, lines)) + 4 * len(lines)

    def _learn(self, lines: List[bytes]) -> List[int]:
        """Return the sizes that *lines* say, up to the first that is not simply a size."""
        sizes = self._sizes
        if len(sizes) > _MAX_SIZES:
            sizes.clear()
        expected: List[int] = []
        for line in lines:
            size = sizes.get(line)
            if size is None:
                size = _size(line)
                if not size or b"\n" in line:  # a line break of its own is an end, too
                    break
                # Tokens are of a few lengths, so the same lines come again and again.
                sizes[line] = size
            expected.append(size)
        return expected

    def _keep(self, tail: bytes) -> None:
        if len(tail) > (1 if self._at_break else _MAX_LINE):
            raise DecodeError("an HTTP chunk is longer than it said, or its size line never ends")
        self._tail = tail

    def _take_line(self, line: bytes) -> bool:
        """Note what a line of the framing says; return whether it was the last."""
        if self._at_break:
            if line:
                raise DecodeError("an HTTP chunk is longer than it said")
            self._at_break = False
        elif self._in_trailer:
            return not line
        else:
            size = _size(line)
            if size is None:
                raise DecodeError("the size of an HTTP chunk is not a hexadecimal number")
            self._left = size
            self._in_trailer = not size
        return False


def _size(line: bytes) -> Optional[int]:
    digits = line.partition(b";")[0].strip()
    # int() alone would take a sign and underscores, and any number of digits.
    if not digits or len(digits) > 16 or digits.strip(b"0123456789abcdefABCDEF"):
        return None
    return int(digits, 16)
