"""One connection of a scripted upstream: requests in, scripts run, and notes taken of both."""

from __future__ import annotations

import asyncio
import http
import json as json_module
import socket
import struct
import time
from typing import Any, Awaitable, Callable, Dict, List, Optional

__all__ = ["Answer", "Connection", "Exchange", "Peer"]

#: Bytes that wait in the process before a script is held back.
_HIGH_WATER = 65536


class Peer:
    """One connection, as its server saw it. Times are those of :func:`time.monotonic`."""

    def __init__(self) -> None:
        self.accepted_at: float = time.monotonic()
        #: When the connection ended, ``None`` while it is open.
        self.closed_at: Optional[float] = None
        #: Who ended it: ``peer`` or ``server``.
        self.closed_by: Optional[str] = None
        self.exchanges: List[Exchange] = []
        #: False for a connection that only asks about the others.
        self.counted = True


class Exchange:
    """One request and what became of it. Times are those of :func:`time.monotonic`."""

    def __init__(self, peer: Peer, method: str, path: str, headers: Dict[str, str], body: bytes) -> None:
        self.peer = peer
        self.method = method
        self.path = path
        #: Request headers with lower-case names.
        self.headers = headers
        self.body = body
        #: When the request had arrived, and when the last write of its answer was made.
        self.received_at: float = time.monotonic()
        self.written_at: Optional[float] = None
        #: Whether the script ran to its end.
        self.completed = False
        self.tokens_sent = 0
        self._written = 0
        self._unsent: Callable[[], int] = lambda: 0

    @property
    def json(self) -> Any:
        """The request's body as JSON, ``None`` where there is none."""
        return json_module.loads(self.body.decode()) if self.body else None

    @property
    def accepted_at(self) -> float:
        """When the request's connection was accepted."""
        return self.peer.accepted_at

    @property
    def closed_at(self) -> Optional[float]:
        """When the request's connection ended, ``None`` while it is open."""
        return self.peer.closed_at

    @property
    def bytes_sent(self) -> int:
        """Bytes of the answer that the system has taken, framing included."""
        return self._written - self._unsent()

    def __repr__(self) -> str:
        state = "completed" if self.completed else "closed" if self.closed_at else "open"
        return f"<Exchange {self.method} {self.path} {self.bytes_sent} bytes, {state}>"


class Answer:
    """What a script writes to."""

    def __init__(self, exchange: Exchange, connection: Connection) -> None:
        self.exchange = exchange
        #: Of the answer, until its head is sent.
        self.status = 200
        self.headers: Dict[str, str] = {"Content-Type": "text/event-stream"}
        self._connection = connection
        self._started = False
        self._chunked = False

    async def start(self) -> None:
        """Send the head, unless that was done."""
        if self._started:
            return
        self._started = True
        self._chunked = "Content-Length" not in self.headers and "Connection" not in self.headers
        if self._chunked:
            self.headers["Transfer-Encoding"] = "chunked"
        phrases = {each.value: each.phrase for each in http.HTTPStatus}
        lines = [f"HTTP/1.1 {self.status} {phrases.get(self.status, 'Scripted')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        await self._send("\r\n".join(lines + ["", ""]).encode("latin-1"))

    async def write(self, data: bytes, times: int = 1) -> None:
        """Send *data*, *times* over, in one write but in HTTP chunks of its own."""
        await self.start()
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        await self._send(data * times)

    async def finish(self) -> None:
        """End the body as its framing wants it."""
        await self.start()
        if self._chunked:
            await self._send(b"0\r\n\r\n")
        self.exchange.completed = True
        if self.headers.get("Connection", "").lower() == "close":
            self._connection.end()

    async def cut(self, reset: bool = False) -> None:
        """End the connection, and with it the script."""
        self._connection.end(reset)
        raise asyncio.CancelledError

    async def _send(self, data: bytes) -> None:
        self.exchange.written_at = time.monotonic()
        self.exchange._written += len(data)
        await self._connection.send(data)


#: Answers a request by writing to the answer.
Serve = Callable[[Answer], Awaitable[None]]
#: Is told of each change: ``accepted``, ``received``, ``completed``, ``closed``, ``lost``.
Notice = Callable[[str, Any], None]


class Connection(asyncio.Protocol):
    """Speaks HTTP/1.1 on one connection and sees its peer leave even while nothing is sent."""

    def __init__(self, serve: Serve, notice: Notice) -> None:
        self.peer = Peer()
        self._serve = serve
        self._notice = notice
        self._buffer = b""
        self._task: Optional[asyncio.Future[None]] = None
        self._resumed: Optional[asyncio.Future[None]] = None
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._notice("accepted", self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._next_request()

    def eof_received(self) -> Optional[bool]:
        self._gone("peer")
        return None

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._gone("peer")
        self._notice("lost", self)

    def pause_writing(self) -> None:
        self._resumed = asyncio.get_event_loop().create_future()

    def resume_writing(self) -> None:
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        self._resumed = None

    async def send(self, data: bytes) -> None:
        """Write *data*; waits where the peer does not read."""
        if self._transport.is_closing():
            raise asyncio.CancelledError
        self._transport.write(data)
        if self._resumed is not None:
            await self._resumed

    def end(self, reset: bool = False) -> None:
        """Close the connection from this side."""
        self._gone("server")
        if reset:
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
        else:
            self._transport.close()

    def _gone(self, who: str) -> None:
        if self.peer.closed_at is not None:
            return
        self.peer.closed_by = who  # first: other threads wait for the time
        self.peer.closed_at = time.monotonic()
        if self.peer.exchanges:
            # The transport drops what it holds; note now what never left.
            unsent = self._transport.get_write_buffer_size()
            self.peer.exchanges[-1]._unsent = lambda: unsent
        if who == "peer" and self._task is not None:
            self._task.cancel()
        self._notice("closed", self.peer)

    def _next_request(self) -> None:
        if not self._buffer[:1].isupper():
            # TLS where it is not spoken, for example: no method begins like this.
            self._transport.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
            return self.end()
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        pairs = [line.partition(":") for line in lines]
        fields = {name.strip().lower(): value.strip() for name, _, value in pairs}
        length = int(fields.get("content-length", "0"))
        if len(rest) < length:
            if fields.get("expect", "").lower() == "100-continue" and not rest:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self._buffer = rest[length:]
        for earlier in self.peer.exchanges[-1:]:
            earlier._unsent = lambda: 0  # its peer has it all, or would not ask for more
        exchange = Exchange(self.peer, method, path, fields, rest[:length])
        exchange._unsent = self._transport.get_write_buffer_size
        self.peer.exchanges.append(exchange)
        answer = Answer(exchange, self)
        if first.endswith("HTTP/1.0") or fields.get("connection", "").lower() == "close":
            answer.headers["Connection"] = "close"
        self._notice("received", exchange)
        self._task = asyncio.ensure_future(self._run(answer))

    async def _run(self, answer: Answer) -> None:
        try:
            await self._serve(answer)
        except asyncio.CancelledError:
            return
        finally:
            self._task = None
        self._notice("completed", answer.exchange)
        if self._buffer and not self._transport.is_closing():
            self._next_request()
