"""An OpenAI-compatible server that costs next to nothing: everything it says is made beforehand.

``python -m benchmarks.upstream`` prints its port and serves until its standard input ends. The
name of the model is a query that says what is wanted: ``count=1000&burst=16&pause=0.005`` sends
1,000 tokens, each as an HTTP chunk of its own, 16 in one write, 5 ms between writes.
"""

from __future__ import annotations

import functools
import json
import socket
import sys
import threading
import time
from typing import BinaryIO, List, Tuple
from urllib.parse import parse_qs

from benchmarks.apps.work import TOKENS

_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)


def _chunk(delta: str, finish_reason: str) -> bytes:
    event = (
        'data: {"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1700000000,'
        '"model":"benchmark","system_fingerprint":"fp_0123456789","choices":[{"index":0,'
        '"delta":%s,"logprobs":null,"finish_reason":%s}]}\n\n' % (delta, finish_reason)
    )
    return _framed(event.encode())


def _framed(data: bytes) -> bytes:
    return b"%X\r\n%b\r\n" % (len(data), data)


@functools.lru_cache(maxsize=None)
def _script(model: str) -> Tuple[List[bytes], float]:
    """Return the writes that *model* asks for, and the seconds between them."""
    wanted = {key: float(values[0]) for key, values in parse_qs(model).items()}
    count, burst = int(wanted["count"]), int(wanted["burst"])
    pieces = [
        _chunk(json.dumps({"content": TOKENS[number % len(TOKENS)]}), "null") for number in range(count)
    ]
    writes = [b"".join(pieces[start:start + burst]) for start in range(0, count, burst)]
    last = _chunk("{}", '"stop"') + _framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return writes + [last], wanted["pause"]


def _serve(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with sock, sock.makefile("rb") as reader:
        try:
            while _answer(sock, reader):
                pass
        except OSError:
            pass  # the caller has left


def _answer(sock: socket.socket, reader: BinaryIO) -> bool:
    length = 0
    line = reader.readline()
    if not line:
        return False
    while line not in (b"\r\n", b""):
        line = reader.readline()
        if line.lower().startswith(b"content-length:"):
            length = int(line[15:])
    writes, pause = _script(json.loads(reader.read(length))["model"])
    sock.sendall(_HEAD)
    for data in writes:
        sock.sendall(data)
        if pause:
            time.sleep(pause)
    return True


def main() -> None:
    """Serve until standard input ends."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=_serve, args=(sock,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
