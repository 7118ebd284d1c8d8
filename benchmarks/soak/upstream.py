"""An OpenAI-compatible server that says what the name of the model asks for, and counts its connections.

``python -m benchmarks.soak.upstream`` prints its port and serves until its standard input ends. How an
answer ends: ``done``, or ``status`` (500 instead of a head), ``error`` (an error event), ``garbage``, ``cut``
(FIN in the middle of an event), ``reset`` (RST there), ``silent`` (until the caller leaves). After ``cut`` it
waits for the caller to close, too: whoever does not is counted.

``GET /counts`` tells what there was. A connection counts as closed when its peer has closed it.
"""

from __future__ import annotations

import json
import struct
import sys
import time
from typing import Any, Dict, Iterator, Optional, Tuple

import gevent
from gevent import socket
from gevent.server import StreamServer
from gevent.socket import timeout as Timeout
from gevent.socket import wait_read

from benchmarks.soak.words import read_script, word

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n%b\r\n"
)
_REFUSAL = b'{"error": {"message": "scripted", "type": "server_error", "code": null}}'


def _framed(data: bytes) -> bytes:
    return b"%X\r\n%b\r\n" % (len(data), data)


def _event(value: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


def chunk(delta: Dict[str, str], reason: Optional[str] = None) -> bytes:
    """Return one event as OpenAI sends it."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return _event({
        "id": "chatcmpl-soak", "object": "chat.completion.chunk", "created": 1700000000, "model": "soak",
        "choices": [choice],
    })


class Connection:
    """One connection of a caller."""

    def __init__(self, sock: Any, port: int) -> None:
        self.sock = sock
        self.port = port
        self.key = ""
        self.answering = False
        #: 0 for one that is not the app's.
        self.counts = 1
        self.opened_at = time.monotonic()

    def pause(self, seconds: float) -> bool:
        """Wait; return whether the caller is still there."""
        try:
            wait_read(self.sock.fileno(), timeout=max(0.0005, seconds))
        except Timeout:
            return True
        return False

    def describe(self) -> Dict[str, Any]:
        """Return what a report says of it."""
        return {
            "life": self.key, "answering": self.answering, "port": self.port,
            "seconds": round(time.monotonic() - self.opened_at, 1),
        }


class Upstream:
    """The server's state."""

    def __init__(self) -> None:
        self.opened = self.closed = self.number = 0
        self.open: Dict[int, Connection] = {}
        #: How often each life has asked.
        self.asked: Dict[str, int] = {}

    def serve(self, sock: Any, address: Tuple[str, int]) -> None:
        """Serve one connection until its peer has closed it."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(sock, address[1])
        self.number += 1
        number = self.number
        self.opened += 1
        self.open[number] = connection
        try:
            with sock.makefile("rb") as reader:
                while self._answer(connection, reader):
                    pass
        except OSError:
            pass  # the caller has reset it
        finally:
            del self.open[number]
            self.closed += connection.counts
            sock.close()

    def _answer(self, connection: Connection, reader: Any) -> bool:
        line = reader.readline()
        if not line:
            return False
        path, length = line.split(b" ")[1], 0
        while line not in (b"\r\n", b""):
            line = reader.readline()
            if line.lower().startswith(b"content-length:"):
                length = int(line[15:])
        if path == b"/counts":
            connection.counts = 0
            self.opened -= 1
            body = json.dumps(self.counts(connection)).encode()
            connection.sock.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
            )
            return False
        wanted = read_script(json.loads(reader.read(length).decode())["model"])
        connection.key = wanted["key"]
        self.asked[connection.key] = self.asked.get(connection.key, 0) + 1
        connection.answering = True
        goes_on = self._say(connection, wanted)
        connection.answering = False
        return goes_on

    def _say(self, connection: Connection, wanted: Dict[str, str]) -> bool:
        sock, end, pause = connection.sock, wanted.get("end", "done"), float(wanted["pause"])
        if not connection.pause(float(wanted.get("hold", 0))):
            return False
        last = b"Connection: close\r\n" if wanted.get("close") else b""
        if end == "status":
            sock.sendall(
                b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n%b"
                b"Content-Length: %d\r\n\r\n%b" % (last, len(_REFUSAL), _REFUSAL)
            )
            return not last
        sock.sendall(_HEAD % last)
        for number, delta in enumerate(_deltas(wanted)):
            if number and not connection.pause(pause):
                return False
            sock.sendall(_framed(chunk(delta)))
        if end == "done":
            sock.sendall(
                _framed(chunk({}, "stop")) + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
            )
            return not last
        if not connection.pause(pause):
            return False
        if end == "error":
            sock.sendall(_framed(_event(json.loads(_REFUSAL.decode()))) + b"0\r\n\r\n")
        elif end == "garbage":
            sock.sendall(_framed(b'data: {"choices": [{"del\n\n') + b"0\r\n\r\n")
        elif end == "silent":
            gevent.socket.wait_read(sock.fileno())
        else:
            half = chunk({"content": "never whole"})
            sock.sendall(b"%X\r\n" % len(half) + half[:20])
            if end == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65536):
                pass
        return end in ("error", "garbage") and not last

    def counts(self, asking: Connection) -> Dict[str, Any]:
        """Return what there was, and what is open but for *asking*."""
        still = [each for each in self.open.values() if each is not asking]
        return {
            "opened": self.opened, "closed": self.closed, "asked": sum(self.asked.values()),
            "open": [each.describe() for each in still],
            "repeated": {key: times for key, times in self.asked.items() if times > 1},
        }


def _deltas(wanted: Dict[str, str]) -> Iterator[Dict[str, str]]:
    for number in range(int(wanted["count"])):
        yield {"content": word(wanted["key"], number)}


def main() -> None:
    """Serve until standard input ends."""
    upstream = Upstream()
    server = StreamServer(("127.0.0.1", 0), upstream.serve, backlog=4096)
    server.start()
    print(server.server_port, flush=True)
    gevent.get_hub().threadpool.apply(sys.stdin.read)


if __name__ == "__main__":
    main()
