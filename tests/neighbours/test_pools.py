"""Fifty streams over a pool of five connections: it drains, and with ``release`` it does not."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from flask import Flask, Response, stream_with_context

from flask_llmstream.testing import LiveServer, gunicorn_server, read_stream, send_request, wait_until

pytest.importorskip("sqlalchemy")
pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps") / "pooled.py"
STREAMS = 50
POOL = 5

without_extension = importlib.util.find_spec("flask_sqlalchemy") is None
needs_extension = pytest.mark.skipif(without_extension, reason="this stack has no Flask-SQLAlchemy")
each_kind = pytest.mark.parametrize("kind", [
    pytest.param("extension", marks=needs_extension), pytest.param("inside", marks=needs_extension),
    "by_hand",
])
each_route = pytest.mark.parametrize("route", ["stream", "legacy"])


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with gunicorn_server(APP, config_lines="accesslog = None") as server:
        yield server


def ask(server: LiveServer, path: str) -> Any:
    reader = server.request(path)
    with contextlib.closing(reader.sock):
        assert reader.status == 200, server.log()
        return reader.json()


def stream_many(server: LiveServer, kind: str, word: str, route: str) -> int:
    """Open fifty streams at the same time, and return how many have begun when none has ended."""
    key = f"{kind}-{word}-{route}"
    with contextlib.ExitStack() as stack:
        socks: List[socket.socket] = []
        for _ in range(STREAMS):
            socks.append(stack.enter_context(contextlib.closing(server.connect())))
            send_request(socks[-1], f"/{kind}/{word}/{route}?key={key}")
        readers = [read_stream(sock) for sock in socks]
        begun = [reader for reader in readers if reader.status == 200]
        for reader in begun:
            reader.read_until(b"one")
        held = ask(server, f"/{kind}/{word}/in-use")
        assert max(held) <= (0 if word == "released" else POOL)
        ask(server, f"/open/{key}")
        for reader in begun:
            assert b"two" in reader.read() and reader.complete
        refused = [reader.read() for reader in readers if reader.status != 200]
    wait_until(lambda: not any(ask(server, f"/{kind}/{word}/in-use")), 5, "the connections to come back")
    assert len(begun) + len(refused) == STREAMS
    return len(begun)


def flask_gives_back_early() -> bool:
    """Return whether this Flask ends a request before its stream begins (3.1.2 and newer)."""
    app, order = Flask(__name__), []

    @app.teardown_request
    def tear_down(error: Any) -> None:
        order.append("teardown")

    @app.route("/")
    def view() -> Response:
        return Response(stream_with_context(order.append("item") or "" for _ in range(1)))

    app.test_client().get("/").get_data()
    return order[0] == "teardown"


@each_kind
@each_route
def test_streams_that_hold_connections_drain_the_pool(
    server: LiveServer, kind: str, route: str
) -> None:
    begun = stream_many(server, kind, "held", route)
    if kind == "extension" and flask_gives_back_early():
        assert begun == STREAMS
    else:
        assert begun == POOL
        assert "QueuePool limit of size 5" in server.log()


@each_kind
@each_route
def test_streams_that_give_connections_back_do_not(
    server: LiveServer, kind: str, route: str
) -> None:
    assert stream_many(server, kind, "released", route) == STREAMS
