"""Read an HTTP response off a bare socket and say when each piece of it arrived.

Decisions:

1. A bare socket, because HTTP clients buffer, retry and pool: none of them can show that a byte
   came late, that a connection was cut, or what the next response on it looks like.
2. One pair per HTTP chunk, so that a test can count the writes of the server.
3. An answer that is cut off ends the iteration with ``complete`` false instead of raising: what
   had arrived until then is what such tests look at.
"""

from __future__ import annotations

import json as json_module
import socket
import struct
import time
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple, TypeVar, Union

__all__ = ["StreamReader", "read_stream", "send_request", "wait_until"]

T = TypeVar("T")

_RECV = 65536
#: How often :func:`wait_until` looks, in seconds: short against what tests measure, cheap.
_POLL_INTERVAL = 0.005


def wait_until(
    condition: Callable[[], T],
    timeout: float = 5.0,
    message: Union[str, Callable[[], str]] = "",
) -> T:
    """Wait until *condition* returns something true, and return that.

    :param condition: called again and again; its own exceptions pass through.
    :param timeout: seconds to wait at most. Defaults to 5.
    :param message: what was waited for; a callable is asked only when the wait has failed.
    :raises AssertionError: if the time is over.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() >= deadline:
            text = message() if callable(message) else message
            raise AssertionError(
                f"waited {timeout:g} s for {text or getattr(condition, '__name__', condition)},"
                f" last seen {result!r}"
            )
        time.sleep(_POLL_INTERVAL)


def send_request(
    sock: socket.socket,
    path: str,
    *,
    method: Optional[str] = None,
    json: Any = None,
    body: Optional[bytes] = None,
    headers: Optional[Mapping[str, str]] = None,
    version: str = "1.1",
) -> None:
    """Write one HTTP request.

    :param sock: a connected socket.
    :param path: the request target.
    :param method: defaults to POST where there is a body, else GET.
    :param json: value to send as the JSON body.
    :param body: the body itself, where it is not JSON.
    :param headers: more headers; ``Host`` and ``Content-Length`` are set where missing.
    :param version: of HTTP, ``1.1`` or ``1.0``.
    """
    fields = dict(headers or {})
    if json is not None:
        body = json_module.dumps(json).encode()
        fields.setdefault("Content-Type", "application/json")
    if body is not None:
        fields.setdefault("Content-Length", str(len(body)))
    fields.setdefault("Host", "localhost")
    verb = method or ("GET" if body is None else "POST")
    lines = [f"{verb} {path} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    sock.sendall("\r\n".join(lines + ["", ""]).encode("latin-1") + (body or b""))


def read_stream(
    sock: socket.socket, timeout: float = 10.0, buffered: bytes = b"", head: bool = False
) -> StreamReader:
    """Read the head of a response and return a reader of its body.

    :param sock: a socket on which a request was sent.
    :param timeout: seconds of silence after which a read raises :class:`socket.timeout`.
        Defaults to 10.
    :param buffered: bytes that were read already: ``rest`` of the response before this one.
    :param head: the request was a HEAD, so no body follows.
    :raises ConnectionError: if the peer closes before the head is complete.
    """
    return StreamReader(sock, timeout, buffered, head)


class StreamReader:
    """One HTTP response whose head has arrived; iterate it for ``(arrival time, bytes)`` pairs.

    Times are those of :func:`time.monotonic`. A chunked body gives one pair per HTTP chunk, any
    other one pair per read.
    """

    def __init__(self, sock: socket.socket, timeout: float, buffered: bytes, head: bool) -> None:
        #: The socket that is read from.
        self.sock = sock
        #: When the last byte of the head arrived.
        self.head_at: float = 0.0
        #: Status code of the answer.
        self.status: int = 0
        #: Headers with lower-case names; the values of repeated ones are joined with ``, ``.
        self.headers: Dict[str, str] = {}
        #: Whether the body has ended as its framing promised; false until then and after a cut.
        self.complete: bool = False
        #: Whether the peer has closed its side, and whether it did so with a RST.
        self.closed_by_peer: bool = False
        self.reset_by_peer: bool = False
        self._buffer = bytearray(buffered)
        self._last_recv = time.monotonic()
        self._no_body = head
        sock.settimeout(timeout)
        self._read_head()

    @property
    def rest(self) -> bytes:
        """What was read beyond the end of this response."""
        return bytes(self._buffer)

    def __iter__(self) -> Iterator[Tuple[float, bytes]]:
        if self._no_body or self.status in (204, 304):
            self.complete = True
        elif self.headers.get("transfer-encoding", "").lower() == "chunked":
            yield from self._chunks()
        elif "content-length" in self.headers:
            yield from self._sized()
        else:
            yield from self._until_close()

    def read(self) -> bytes:
        """Read what is left of the body and return it."""
        return b"".join(data for _, data in self)

    def read_until(self, marker: bytes) -> List[Tuple[float, bytes]]:
        """Read until *marker* has arrived and return the pairs read for it.

        :raises AssertionError: if the body ends without it.
        """
        pairs: List[Tuple[float, bytes]] = []
        for pair in self:
            pairs.append(pair)
            if marker in b"".join(data for _, data in pairs):
                return pairs
        raise AssertionError(f"the body ended without {marker!r}: {pairs!r}")

    def json(self) -> Any:
        """Read what is left of the body as JSON."""
        return json_module.loads(self.read().decode())

    def __enter__(self) -> StreamReader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection as a client does that leaves: with a FIN."""
        self.sock.close()

    def reset(self) -> None:
        """Close the connection as a crashed client does: with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def _receive(self) -> bool:
        """Wait for more bytes; return whether there were any."""
        try:
            data = self.sock.recv(_RECV)
        except ConnectionResetError:
            data = b""
            self.reset_by_peer = True
        self._last_recv = time.monotonic()
        self.closed_by_peer = not data
        self._buffer += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _line(self) -> Optional[bytes]:
        """Return the next line without its end, ``None`` where the connection ends before it."""
        while b"\r\n" not in self._buffer:
            if not self._receive():
                return None
        line = self._take(self._buffer.index(b"\r\n"))
        self._take(2)
        return line

    def _read_head(self) -> None:
        lines: List[str] = []
        # An interim answer such as "100 Continue" precedes the real one.
        while self.status < 200:
            lines = self._head_lines()
            self.status = int(lines.pop(0).split(" ", 2)[1])
        self.head_at = self._last_recv
        for line in lines:
            name, _, value = line.partition(":")
            key, value = name.strip().lower(), value.strip()
            self.headers[key] = f"{self.headers[key]}, {value}" if key in self.headers else value
        self._left = int(self.headers.get("content-length", "0"))

    def _head_lines(self) -> List[str]:
        lines: List[str] = []
        while True:
            line = self._line()
            if line is None:
                raise ConnectionError(f"the connection ended inside the head, after {lines!r}")
            if not line:
                return lines
            lines.append(line.decode("latin-1"))

    def _chunks(self) -> Iterator[Tuple[float, bytes]]:
        while not self.complete:
            line = self._line()
            if line is None:
                return
            size = int(line.split(b";")[0], 16)
            while len(self._buffer) < size + 2 and size:
                if not self._receive():
                    # Half an HTTP chunk is all that ever came of it.
                    if self._buffer:
                        yield self._last_recv, self._take(size)
                    return
            if size:
                data = self._take(size)
                self._take(2)
                yield self._last_recv, data
                continue
            while line:
                line = self._line()
            self.complete = line is not None

    def _sized(self) -> Iterator[Tuple[float, bytes]]:
        while self._left:
            if not self._buffer and not self._receive():
                return
            data = self._take(self._left)
            self._left -= len(data)
            yield self._last_recv, data
        self.complete = True

    def _until_close(self) -> Iterator[Tuple[float, bytes]]:
        while self._buffer or self._receive():
            yield self._last_recv, self._take(len(self._buffer))
        self.complete = not self.reset_by_peer
