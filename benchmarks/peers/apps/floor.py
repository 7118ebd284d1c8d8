"""A bare gevent socket server: no framework, no parser, prepared bytes. What is left is the floor."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import socket  # noqa: E402
import sys  # noqa: E402
from typing import Any, Callable, Dict, Iterator  # noqa: E402
from urllib.parse import parse_qs  # noqa: E402

from gevent.server import StreamServer  # noqa: E402

from benchmarks.apps import work  # noqa: E402
from benchmarks.apps.bare import copy_answer  # noqa: E402

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_CHUNKS = [b"%X\r\n%b\r\n" % (len(frame.encode()), frame.encode()) for frame in work.FRAMES]

_VIEWS: Dict[str, Callable[[Dict[str, Any]], Iterator[Any]]] = {
    "/steady": lambda query: work.steady(_CHUNKS, query["clock"][0]),
    "/hot": lambda query: work.hot(_CHUNKS, int(query["count"][0])),
    "/idle": lambda query: work.idle(_CHUNKS),
}


def serve(client: socket.socket, address: Any) -> None:
    """Answer one request."""
    path, _, query = client.recv(65536).split(b" ")[1].decode().partition("?")
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        if path == "/relay":
            copy_answer(client, query)
            return
        client.sendall(_HEAD)
        for chunk in _VIEWS[path](parse_qs(query)):
            client.sendall(chunk)
        client.sendall(b"0\r\n\r\n")
    except OSError:
        pass  # the client has left


if __name__ == "__main__":
    StreamServer(("127.0.0.1", int(sys.argv[1])), serve, backlog=2048).serve_forever()
