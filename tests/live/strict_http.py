"""Takes answers and event streams apart by their letter, and forgives nothing.

A second opinion beside the package's own readers: written from the grammars, so that a fault that
writer and reader share is seen all the same.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

__all__ = ["Answer", "Events", "parse_answer", "parse_events", "read_all", "request_bytes"]

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2}) ([^\r\n]*)\Z")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]+)\r\n")

#: What a stream consists of: comments, and blocks of which only some have a name.
_COMMENT = re.compile(rb":([^\r\n\0]*)\n")
_BLOCK = re.compile(rb"(?:event: ([^\r\n\0]+)\n)?(?:id: ([\x21-\x7e]+)\n)?((?:data: ?[^\r\n\0]*\n)+)\n")


class Answer(NamedTuple):
    """One HTTP answer that was complete."""

    status: int
    headers: Dict[str, str]
    body: bytes
    #: How many HTTP chunks the body came in, ``None`` where it was framed otherwise.
    chunks: Optional[int]
    #: What followed on the connection.
    rest: bytes


class Events(NamedTuple):
    """The body of an event stream."""

    #: (name or None, data) of each event.
    events: List[Tuple[Optional[str], str]]
    comments: List[str]

    @property
    def text(self) -> str:
        """The text deltas put together."""
        return "".join(json.loads(data)["text"] for name, data in self.events if name is None)

    @property
    def heartbeats(self) -> int:
        """How many heartbeats came."""
        return self.comments.count(" hb")

    def named(self, name: str) -> List[Any]:
        """Return the values of the events called *name*."""
        return [json.loads(data) for each, data in self.events if each == name]

    def terminal(self) -> Tuple[str, Any]:
        """Return name and value of the terminal event: there is one, and nothing behind it."""
        ends = [index for index, (name, _) in enumerate(self.events) if name in ("done", "failed")]
        assert ends == [len(self.events) - 1], f"terminal events at {ends} of {len(self.events)} events"
        name, data = self.events[-1]
        return str(name), json.loads(data)


def request_bytes(
    path: str, *, method: str = "GET", version: str = "1.1", headers: Optional[Dict[str, str]] = None
) -> bytes:
    """Return a request without a body; the connection closes behind its answer by default."""
    fields = {"Host": "localhost", "Connection": "close"}
    fields.update(headers or {})
    lines = [f"{method} {path} HTTP/{version}"] + [f"{name}: {value}" for name, value in fields.items()]
    return "\r\n".join(lines + ["", ""]).encode("latin-1")


def read_all(
    sock: socket.socket, seconds: float = 30.0, pace: Callable[[], Tuple[int, float]] = lambda: (65536, 0.0)
) -> bytes:
    """Read until the peer closes.

    :param seconds: for the whole.
    :param pace: gives the size of the next read and the pause in seconds after it.
    """
    deadline = time.monotonic() + seconds
    pieces: List[bytes] = []
    while True:
        left = deadline - time.monotonic()
        assert left > 0, f"the answer did not end; {sum(map(len, pieces))} bytes so far"
        sock.settimeout(left)
        size, pause = pace()
        try:
            piece = sock.recv(size)
        except ssl.SSLError as error:
            if "EOF" not in str(error).upper():
                raise
            piece = b""  # old servers close without saying so in TLS; HTTP knows what is missing
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        if pause:
            time.sleep(pause)


def parse_answer(raw: bytes, head: bool = False) -> Answer:
    """Take the first answer off *raw*, in which it must be complete.

    :param head: it answers a HEAD request.
    """
    lead, found, rest = raw.partition(b"\r\n\r\n")
    assert found, f"no complete head: {raw[:200]!r}"
    first, *lines = lead.split(b"\r\n")
    matched = _STATUS_LINE.match(first)
    assert matched, f"no status line: {first!r}"
    headers: Dict[str, str] = {}
    for line in lines:
        field = _FIELD.match(line)
        assert field, f"no header: {line!r}"
        name = field.group(1).decode().lower()
        assert name not in headers, f"{name} twice: {lead!r}"
        headers[name] = field.group(2).decode("latin-1")
    status = int(matched.group(2))
    if head or status in (204, 304):
        return Answer(status, headers, b"", None, rest)
    if "transfer-encoding" in headers:
        assert headers["transfer-encoding"] == "chunked"
        assert "content-length" not in headers, "a body framed twice"
        assert matched.group(1) == b"1", "chunks for a client of HTTP/1.0"
        body, chunks, rest = _dechunk(rest)
        return Answer(status, headers, body, chunks, rest)
    if "content-length" in headers:
        length = int(headers["content-length"])
        assert len(rest) >= length, f"{len(rest)} bytes of {length}"
        return Answer(status, headers, rest[:length], None, rest[length:])
    assert headers.get("connection", "").lower() == "close", f"nothing says where the body ends: {lead!r}"
    return Answer(status, headers, rest, None, b"")


def _dechunk(data: bytes) -> Tuple[bytes, int, bytes]:
    pieces: List[bytes] = []
    at = 0
    while True:
        matched = _CHUNK_SIZE.match(data, at)
        assert matched, f"no size of an HTTP chunk at {at}: {data[max(0, at - 40) : at + 40]!r}"
        size, start = int(matched.group(1), 16), matched.end()
        at = start + size + 2
        assert data[start + size : at] == b"\r\n", (
            f"an HTTP chunk of {size} bytes does not end at {at}: {data[start + size - 40 : at + 40]!r}"
        )
        if not size:
            return b"".join(pieces), len(pieces), data[at:]
        pieces.append(data[start : start + size])


def parse_events(body: bytes) -> Events:
    """Take a whole event stream apart; a byte that is neither comment nor event is a fault."""
    events: List[Tuple[Optional[str], str]] = []
    comments: List[str] = []
    at = 0
    while at < len(body):
        matched = _COMMENT.match(body, at)
        if matched:
            comments.append(matched.group(1).decode())
        else:
            matched = _BLOCK.match(body, at)
            assert matched, f"neither event nor comment at {at}: {body[max(0, at - 60) : at + 60]!r}"
            name = matched.group(1)
            lines = matched.group(3).split(b"\n")[:-1]
            data = b"\n".join(line[6:] if line[5:6] == b" " else line[5:] for line in lines)
            events.append((None if name is None else name.decode(), data.decode()))
        at = matched.end()
    return Events(events, comments)
