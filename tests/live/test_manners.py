"""Clients that speak HTTP/1.0, close, pipeline, ask for headers only, or come over a Unix socket."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import pytest
from strict_http import Answer, parse_answer, parse_events, read_all, request_bytes

from flask_llmstream.testing import LiveServer, gunicorn_server, read_stream, wait_until

pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps_faults") / "manners.py"

KEEP = {"Connection": "keep-alive"}


@pytest.fixture(scope="module", params=["gevent", "gthread", "sync"])
def server(request: Any) -> Iterator[LiveServer]:
    with gunicorn_server(APP, request.param, threads=4, config_lines="keepalive = 5") as running:
        yield running
        assert "Traceback" not in running.log()


#: Workers that take a second request from a connection while there is one; gunicorn's sync worker
#: closes it, or waits for the next one, as its version goes.
keeping = pytest.mark.parametrize("server", ["gevent", "gthread"], indirect=True)


def skip_where_pipelining_fails(server: LiveServer) -> None:
    """Old gthread workers forget a request that came together with the one before."""
    both = request_bytes("/plain/a", headers=KEEP) + request_bytes("/plain/b")
    if not parse_answer(exchange(server, both)).rest:
        pytest.skip("this gunicorn does not answer pipelined requests to plain views either")


def exchange(server: LiveServer, data: bytes) -> bytes:
    with contextlib.closing(server.connect()) as sock:
        sock.sendall(data)
        return read_all(sock, 10.0)


def counts(server: LiveServer) -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads(parse_answer(exchange(server, request_bytes("/counts"))).body.decode())
    return found


def check_short(answer: Answer, name: str) -> None:
    assert answer.status == 200
    events = parse_events(answer.body)
    assert events.text == "".join(f"{name} {number} " for number in range(3))
    assert events.terminal()[0] == "done"
    assert events.heartbeats >= 1


@pytest.mark.parametrize("connection", ["close", "keep-alive", None])
def test_client_of_http_1_0_gets_a_body_that_ends_with_the_connection(
    server: LiveServer, connection: Optional[str]
) -> None:
    headers = {} if connection is None else {"Connection": connection}
    answer = parse_answer(exchange(server, request_bytes("/short/old", version="1.0", headers=headers)))
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    check_short(answer, "old")


def test_client_that_asks_to_close_gets_a_whole_chunked_body(server: LiveServer) -> None:
    answer = parse_answer(exchange(server, request_bytes("/short/once")))
    assert answer.headers["connection"] == "close"
    assert answer.chunks is not None and not answer.rest
    check_short(answer, "once")


@pytest.mark.parametrize("path,status", [("/refused", 502), ("/broken", 200)])
def test_failure_reaches_a_client_of_http_1_0(server: LiveServer, path: str, status: int) -> None:
    answer = parse_answer(exchange(server, request_bytes(path, version="1.0")))
    assert answer.status == status
    if status == 200:
        assert parse_events(answer.body).terminal()[0] == "failed"
    else:
        assert json.loads(answer.body.decode())["error"]["code"] == "upstream_auth"


def test_head_answers_headers_and_starts_nothing(server: LiveServer) -> None:
    whole = parse_answer(exchange(server, request_bytes("/short/whole")))
    answer = parse_answer(exchange(server, request_bytes("/short/head", method="HEAD")), head=True)
    assert answer.status == 200
    assert answer.rest == b""
    for name in ("content-type", "cache-control", "x-accel-buffering"):
        assert answer.headers[name] == whole.headers[name]
    assert "content-length" not in answer.headers
    assert "head" not in counts(server)["begun"]


@keeping
def test_pipelined_requests_are_answered_one_after_the_other(server: LiveServer) -> None:
    """A request that waits on the connection is neither eaten nor taken for a departure."""
    skip_where_pipelining_fails(server)
    paths = ["/short/p1", "/plain/p2", "/refused", "/short/p3", "/broken", "/plain/p4", "/short/p5"]
    requests = [request_bytes(path, headers=KEEP) for path in paths]
    requests.append(request_bytes("/short/last"))
    rest = exchange(server, b"".join(requests))
    for path in [*paths, "/short/last"]:
        answer = parse_answer(rest)
        rest = answer.rest
        name = path.split("/")[-1]
        if path.startswith("/short"):
            check_short(answer, name)
        elif path.startswith("/plain"):
            assert json.loads(answer.body.decode()) == {"name": name}
        elif path == "/refused":
            assert answer.status == 502
        else:
            assert parse_events(answer.body).terminal()[0] == "failed"
    assert rest == b""


@keeping
def test_connection_serves_on_after_a_head_request(server: LiveServer) -> None:
    skip_where_pipelining_fails(server)
    data = request_bytes("/short/any", method="HEAD", headers=KEEP) + request_bytes("/plain/next")
    first = parse_answer(exchange(server, data), head=True)
    assert json.loads(parse_answer(first.rest).body.decode()) == {"name": "next"}


@keeping
def test_second_request_comes_while_the_stream_runs(server: LiveServer) -> None:
    with contextlib.closing(server.connect()) as sock:
        sock.sendall(request_bytes("/short/a", headers=KEEP))
        reader = read_stream(sock)
        reader.read_until(b"a 0")
        sock.sendall(request_bytes("/short/b"))
        assert b"event: done" in reader.read()
        assert reader.complete
        check_short(parse_answer(reader.rest + read_all(sock)), "b")


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_stream_over_a_unix_socket(tmp_path: Path, worker: str) -> None:
    path = str(tmp_path / "socket")

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(10)
        sock.connect(path)
        return sock

    def ask(target: str) -> Answer:
        with contextlib.closing(connect()) as sock:
            sock.sendall(request_bytes(target))
            return parse_answer(read_all(sock))

    with gunicorn_server(APP, worker, threads=4, config_lines=f"bind = {'unix:' + path!r}") as server:
        check_short(ask("/short/unix"), "unix")
        if worker == "gevent":
            # The client's departure is seen there, too.
            with contextlib.closing(connect()) as sock:
                sock.sendall(request_bytes("/silent"))
                read_stream(sock).read_until(b"begin")
            wait_until(
                lambda: json.loads(ask("/counts").body.decode())["ended"].get("disconnect") == 1,
                5.0,
                "the stream to be cancelled",
            )
        assert "Traceback" not in server.log()
