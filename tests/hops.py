"""Hops with one fault each, for what no proxy that can be installed here does on demand."""

from __future__ import annotations

import contextlib
import heapq
import random
import select
import socket
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from flask_llmstream.sansio.chunked import ChunkedDecoder

__all__ = [
    "Hop", "buffering", "caching", "cutting", "deaf", "delaying", "idle_cut", "silencing", "speaking_http10",
    "store_and_forward",
]

#: Answers one client: its socket, the request's head, and a socket to the next hop that has got it.
Handler = Callable[[socket.socket, bytes, socket.socket], None]


class Hop:
    """A hop that listens on a free port of 127.0.0.1, as a context manager."""

    def __init__(self, app: Tuple[str, int], handler: Handler) -> None:
        self._app = app
        self._handler = handler
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self.address: Tuple[str, int] = self._listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        self._threads: List[threading.Thread] = []
        self._sockets: List[socket.socket] = []

    def __enter__(self) -> Hop:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for sock in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        app = socket.socket()
        self._sockets += [client, app]
        with client, app, contextlib.suppress(OSError):
            for sock in (client, app):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.settimeout(30)
            head = b""
            while b"\r\n\r\n" not in head:
                more = client.recv(65536)
                if not more:
                    return
                head += more
            app.connect(self._app)
            app.sendall(head)
            self._handler(client, head, app)


def _answer(app: socket.socket) -> Tuple[List[bytes], bytes]:
    """Return the lines of the head of an answer, and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = app.recv(65536)
        if not more:
            raise OSError("no answer")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n"), rest


def _field(lines: List[bytes], name: bytes) -> Optional[bytes]:
    found = [line.partition(b":")[2].strip() for line in lines if line.lower().startswith(name + b":")]
    return found[0] if found else None


def _bodies(app: socket.socket, lines: List[bytes], rest: bytes) -> Iterator[bytes]:
    """Yield the pieces of a body without their framing."""
    length = _field(lines, b"content-length")
    if length is not None:
        left = int(length) - len(rest)
        yield rest
        while left > 0:
            data = app.recv(65536)
            left -= len(data)
            yield data
        return
    decoder = ChunkedDecoder()
    yield decoder.feed(rest)
    while not decoder.done:
        data = app.recv(65536)
        if not data:
            return
        yield decoder.feed(data)


def _pass_on(client: socket.socket, app: socket.socket, silence: float = 30.0, total: float = 3600.0) -> None:
    """Pass everything on both ways, until one side ends, or nothing comes for too long."""
    until = time.monotonic() + total
    last = time.monotonic()
    while True:
        patience = min(until, last + silence) - time.monotonic()
        ready = select.select([client, app], [], [], max(0.0, patience))[0]
        if not ready:
            return
        for source, target in ((client, app), (app, client)):
            if source in ready:
                data = source.recv(65536)
                if not data:
                    return
                target.sendall(data)
                if source is app:
                    last = time.monotonic()


def store_and_forward(client: socket.socket, head: bytes, app: socket.socket) -> None:
    """Read the whole answer, say how long it is, and send it: a virus scanner."""
    lines, rest = _answer(app)
    body = b"".join(_bodies(app, lines, rest))
    kept = [line for line in lines if not line.lower().startswith((b"transfer-encoding", b"content-length"))]
    kept.append(b"Content-Length: %d" % len(body))
    client.sendall(b"\r\n".join([*kept, b"", body]))


def buffering(size: int) -> Handler:
    """Return a hop that passes a body on in blocks of that many bytes."""

    def handle(client: socket.socket, head: bytes, app: socket.socket) -> None:
        lines, rest = _answer(app)
        client.sendall(b"\r\n".join([*lines, b"", b""]))
        held = b""
        chunked = _field(lines, b"transfer-encoding") is not None
        for data in _bodies(app, lines, rest):
            held += data
            while len(held) >= size:
                block, held = held[:size], held[size:]
                client.sendall(b"%x\r\n%b\r\n" % (size, block) if chunked else block)
        if chunked:
            held = (b"%x\r\n%b\r\n" % (len(held), held) if held else b"") + b"0\r\n\r\n"
        client.sendall(held)

    return handle


def speaking_http10(client: socket.socket, head: bytes, app: socket.socket) -> None:
    """Answer with HTTP/1.0: the end of the connection is the end of the body."""
    lines, rest = _answer(app)
    kept = [line for line in lines[1:] if not line.lower().startswith((b"transfer-encoding", b"connection"))]
    first = lines[0].replace(b"HTTP/1.1", b"HTTP/1.0")
    client.sendall(b"\r\n".join([first, *kept, b"Connection: close", b"", b""]))
    for data in _bodies(app, lines, rest):
        client.sendall(data)


def idle_cut(seconds: float) -> Handler:
    """Return a hop that ends a connection on which nothing has come for so long."""
    return lambda client, head, app: _pass_on(client, app, silence=seconds)


def cutting(seconds: float) -> Handler:
    """Return a hop that ends every connection after so long."""
    return lambda client, head, app: _pass_on(client, app, total=seconds)


def silencing(client: socket.socket, head: bytes, app: socket.socket) -> None:
    """Take out comments."""
    lines, rest = _answer(app)
    client.sendall(b"\r\n".join([*lines, b"", b""]))
    chunked = _field(lines, b"transfer-encoding") is not None
    for data in _bodies(app, lines, rest):
        kept = b"".join(line for line in data.splitlines(True) if not line.startswith(b":"))
        if kept:
            client.sendall(b"%x\r\n%b\r\n" % (len(kept), kept) if chunked else kept)
    client.sendall(b"0\r\n\r\n" if chunked else b"")


def deaf(client: socket.socket, head: bytes, app: socket.socket) -> None:
    """Read on when the client has left."""
    listening = True
    while True:
        data = app.recv(65536)
        if not data:
            return
        if listening:
            try:
                client.sendall(data)
            except OSError:
                listening = False


def caching() -> Handler:
    """Return a hop that answers the second question after a path with the first answer, at its own pace."""
    known: Dict[bytes, bytes] = {}

    def handle(client: socket.socket, head: bytes, app: socket.socket) -> None:
        path = head.split(b" ")[1].partition(b"?")[0]
        if path in known:
            client.sendall(known[path])
            return
        lines, rest = _answer(app)
        begin = b"\r\n".join([*lines, b"", b""])
        client.sendall(begin)
        whole = begin
        for data in _bodies(app, lines, rest):
            if data:
                whole += b"%x\r\n%b\r\n" % (len(data), data)
                client.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        client.sendall(b"0\r\n\r\n")
        known[path] = whole + b"0\r\n\r\n"

    return handle


def delaying(seconds: float, jitter: float, seed: int = 1) -> Handler:
    """Return a link on which each packet takes so long, and up to *jitter* longer, both ways, in order."""

    def handle(client: socket.socket, head: bytes, app: socket.socket) -> None:
        chance = random.Random(seed)
        time.sleep(seconds)  # the request's own way
        on_the_way: List[Tuple[float, int, bytes]] = []
        earliest, number, ended = 0.0, 0, False
        while not ended or on_the_way:
            wait = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else 30.0
            ready = [] if ended else select.select([client, app], [], [], wait)[0]
            if ended:
                time.sleep(wait)
            if client in ready:
                if not client.recv(65536):
                    time.sleep(seconds)
                    return
            if app in ready:
                data = app.recv(65536)
                ended = not data
                if data:
                    earliest = max(earliest, time.monotonic() + seconds + jitter * chance.random())
                    heapq.heappush(on_the_way, (earliest, number, data))
                    number += 1
            while on_the_way and on_the_way[0][0] <= time.monotonic():
                client.sendall(heapq.heappop(on_the_way)[2])

    return handle
