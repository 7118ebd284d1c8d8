"""Clients and an upstream in one loop: one epoll, bare sockets, and it never sleeps.

The upstream speaks as much of OpenAI's API as is streamed. The name of the model is a query that says
what is wanted: ``stream=7&count=1000&rate=50`` sends 1,000 tokens, 50 in a second, and each carries the
moment at which it was sent, as ``@1234.5678``; ``rate=0&burst=16`` sends 16 at a time, prepared, as fast as
they are read; what follows ``count`` tokens is the end, or with ``hold=1`` silence.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import re
import select
import socket
import time
from array import array
from typing import Callable, Dict, List, Optional, Set, Tuple
from urllib.parse import parse_qs

from benchmarks.apps.work import TOKENS

__all__ = ["Client", "Loop", "Meter", "Upstream"]

Address = Tuple[str, int]

_ENDED = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP
_SENT = re.compile(rb"@(\d+\.\d{4})")
_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class Loop:
    """Calls whom a socket or the time of day calls for. A context manager that closes all sockets."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._called: Dict[int, Callable[[int], None]] = {}
        self._sockets: Dict[int, socket.socket] = {}
        self._due: List[Tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        #: Those that have neither left nor been answered to the end.
        self.clients: Set[Client] = set()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in list(self._sockets.values()):
            self.forget(sock)
        self._epoll.close()

    def watch(self, sock: socket.socket, called: Callable[[int], None], mask: int = select.EPOLLIN) -> None:
        """Call *called* with what epoll says, each time that it says something of *mask*."""
        known = sock.fileno() in self._called
        self._called[sock.fileno()] = called
        self._sockets[sock.fileno()] = sock
        (self._epoll.modify if known else self._epoll.register)(sock.fileno(), mask)

    def forget(self, sock: socket.socket) -> None:
        """Close *sock*."""
        self._called.pop(sock.fileno(), None)
        self._sockets.pop(sock.fileno(), None)
        sock.close()

    def leave_all(self) -> None:
        """Let all clients leave."""
        for client in list(self.clients):
            client.leave()

    def at(self, moment: float, called: Callable[[], None]) -> None:
        """Call *called* at that moment."""
        heapq.heappush(self._due, (moment, next(self._order), called))

    def run_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Run until *done*; return whether it was within *seconds*."""
        end = time.monotonic() + seconds
        while not done():
            now = time.monotonic()
            if now >= end:
                return False
            # A few at a time: what arrives must not wait long for what is due, nor the reverse.
            for _ in range(16):
                if not self._due or self._due[0][0] > now:
                    break
                heapq.heappop(self._due)[2]()
            for fd, mask in self._epoll.poll(0, 64):
                called = self._called.get(fd)
                if called:
                    called(mask)
        return True

    def run(self, seconds: float) -> None:
        """Run that long."""
        self.run_until(lambda: False, seconds)


class Meter:
    """Keeps how late events were."""

    def __init__(self) -> None:
        #: Whether to keep any.
        self.is_on = False
        #: Seconds, one for each event.
        self.delays: array[float] = array("d")

    def percentile(self, percent: float) -> Optional[float]:
        """Return the seconds within which *percent* of the events came; ``None`` where there were none."""
        kept = sorted(self.delays)
        return kept[int(percent / 100 * (len(kept) - 1))] if kept else None


class Client:
    """One request, and what becomes of it.

    :param clock: ``(start, rate)`` if the server sends events that are due by the clock; else delays are
        those since the upstream has sent the token, if it says so.
    :param meter: is told how late each event was.
    :param on_read: called with the client after each read.
    """

    def __init__(
        self, loop: Loop, address: Address, request: bytes, clock: Optional[Tuple[float, float]] = None,
        meter: Optional[Meter] = None, on_read: Optional[Callable[[Client], None]] = None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._meter = meter
        self._on_read = on_read
        self._tail = b""
        #: Events that have arrived.
        self.events = 0
        #: When the first was there.
        self.first_event: Optional[float] = None
        #: Whether the server has ended the answer.
        self.has_ended = False
        self.sock = socket.create_connection(address, 30)
        #: When the request was sent.
        self.asked = time.monotonic()
        self.sock.sendall(request)
        self.sock.setblocking(False)
        loop.watch(self.sock, self._read)
        loop.clients.add(self)

    def leave(self) -> float:
        """Close the connection; return when."""
        moment = time.monotonic()
        self._loop.forget(self.sock)
        self._loop.clients.discard(self)
        return moment

    def _read(self, mask: int) -> None:
        try:
            data = self.sock.recv(262144)
        except BlockingIOError:
            return  # meant for one who had this number before, and has left since epoll spoke
        except (ConnectionResetError, BrokenPipeError):
            data = b""
        now = time.monotonic()
        if not data:
            self.has_ended = True
            self.leave()
        elif self._meter and not self._clock:
            self._stamped(data, now)
        else:
            self._count(data, now)
        if self._on_read:
            self._on_read(self)

    def _count(self, data: bytes, now: float) -> None:
        # A field name at the beginning of a line begins an event; nothing else in these answers has it.
        seen = self._tail + data
        new = seen.count(b"data:")
        self._tail = seen[-4:]
        if not new:
            return
        if self.first_event is None:
            self.first_event = now
        if self._clock and self._meter and self._meter.is_on:
            start, rate = self._clock
            for number in range(self.events, self.events + new):
                self._meter.delays.append(now - start - number / rate)
        self.events += new

    def _stamped(self, data: bytes, now: float) -> None:
        # What was cut in two is looked at when the rest is there.
        seen = self._tail + data
        end = 0
        for match in _SENT.finditer(seen):
            end = match.end()
            self.events += 1
            if self._meter and self._meter.is_on:
                self._meter.delays.append(now - float(match.group(1)))
        self._tail = seen[max(end, len(seen) - 16):]
        if end and self.first_event is None:
            self.first_event = now


class Upstream:
    """The OpenAI-compatible server that relays ask, in *loop*."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self._listener.setblocking(False)
        #: Its address, up to and with ``/v1``.
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        #: When the caller of each stream has left before its end, by the number of the stream.
        self.left: Dict[int, float] = {}
        self._conversations: Set[_Conversation] = set()
        loop.watch(self._listener, self._accept)

    def _accept(self, mask: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._conversations.add(_Conversation(self._loop, self, sock))

    def hang_up(self) -> None:
        """Close all connections: those that somebody holds on to are in the way of what comes next."""
        for each in list(self._conversations):
            each.close()

    def forget(self, conversation: _Conversation, stream: Optional[int]) -> None:
        """Note that *conversation* has ended, in the middle of *stream* where that is known."""
        self._conversations.discard(conversation)
        if stream is not None:
            self.left[stream] = time.monotonic()


class _Conversation:
    """One connection to the upstream."""

    def __init__(self, loop: Loop, upstream: Upstream, sock: socket.socket) -> None:
        self._loop = loop
        self._upstream = upstream
        self._sock = sock
        self._request = b""
        self._stream: Optional[int] = None
        self._unsent: List[bytes] = []
        self._is_open = True
        self._mask = select.EPOLLIN | select.EPOLLRDHUP
        loop.watch(sock, self._called, self._mask)

    def _called(self, mask: int) -> None:
        if mask & select.EPOLLOUT:
            self._send()
        if mask & (select.EPOLLIN | _ENDED):
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.close()
                return
            self._request += data
            self._answer()

    def close(self) -> None:
        """End it."""
        if self._is_open:
            self._is_open = False
            self._upstream.forget(self, self._stream)
            self._loop.forget(self._sock)

    def _answer(self) -> None:
        head, separator, body = self._request.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if not separator or len(body) < (int(length.group(1)) if length else 0):
            return
        self._request = b""
        model = json.loads(body)["model"]
        wanted = {key: float(values[0]) for key, values in parse_qs(model).items()}
        self._stream = int(wanted.get("stream", 0))
        self._count, self._sent = int(wanted["count"]), 0
        self._holds = bool(wanted.get("hold"))
        rate = wanted.get("rate", 0)
        if rate:
            self._rate, self._start = rate, time.monotonic()
            self._send(_HEAD)
            self._next()
        else:
            self._send(_HEAD, *_script(self._count, int(wanted.get("burst", 1))))
            if not self._holds:
                self._end()

    def _next(self) -> None:
        if not self._is_open or self._stream is None:
            return
        if self._sent < self._count:
            self._send(_chunk(f"@{time.monotonic():.4f}"))
            self._sent += 1
            self._loop.at(self._start + self._sent / self._rate, self._next)
        elif not self._holds:
            self._end()

    def _end(self) -> None:
        # It has no number any more: a caller who leaves now has missed nothing.
        self._stream = None
        self._send(_LAST)

    def _send(self, *pieces: bytes) -> None:
        """Send *pieces*, each in a write of its own, now or as soon as they can be."""
        self._unsent += pieces
        sent = 0
        try:
            for sent, piece in enumerate(self._unsent):
                done = self._sock.send(piece)
                if done < len(piece):
                    self._unsent[sent] = piece[done:]
                    raise BlockingIOError
            self._unsent, mask = [], select.EPOLLIN | select.EPOLLRDHUP
        except BlockingIOError:
            self._unsent = self._unsent[sent:]
            mask = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLOUT
        except OSError:
            self.close()
            return
        if mask != self._mask:
            self._mask = mask
            self._loop.watch(self._sock, self._called, mask)


def _framed(data: bytes) -> bytes:
    return b"%X\r\n%b\r\n" % (len(data), data)


def _chunk(text: str, finish_reason: str = "null") -> bytes:
    delta = '{"content":%s}' % json.dumps(text) if text else "{}"
    event = (
        'data: {"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1700000000,'
        '"model":"benchmark","system_fingerprint":"fp_0123456789","choices":[{"index":0,'
        '"delta":%s,"logprobs":null,"finish_reason":%s}]}\n\n' % (delta, finish_reason)
    )
    return _framed(event.encode())


_LAST = _chunk("", '"stop"') + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
_scripts: Dict[Tuple[int, int], List[bytes]] = {}


def _script(count: int, burst: int) -> List[bytes]:
    """Return the writes of *count* tokens, *burst* in each."""
    if (count, burst) not in _scripts:
        pieces = [_chunk(TOKENS[number % len(TOKENS)]) for number in range(count)]
        _scripts[count, burst] = [
            b"".join(pieces[start:start + burst]) for start in range(0, count, burst)
        ]
    return _scripts[count, burst]
