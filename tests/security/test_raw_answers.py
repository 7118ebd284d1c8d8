"""No answer can be taken for the beginning of another: what stands on the wire, byte by byte.

The requests of a test go over one connection, together; so whatever an answer has too many or too few of
would be seen in the next.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from strict_http import Answer, parse_answer, parse_events, read_all, request_bytes

from flask_llmstream.testing import gunicorn_server, read_stream, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(120)]

APP = Path(__file__).with_name("apps") / "raw.py"
KEEP = {"Connection": "keep-alive"}

Connect = Callable[[], socket.socket]


#: The pinned stacks have no waitress.
WAITRESS = pytest.param("waitress", marks=pytest.mark.checkout)


@pytest.fixture(scope="module", params=["gunicorn", "pywsgi", WAITRESS])
def connect(request: Any) -> Iterator[Connect]:
    if request.param == "gunicorn":
        with gunicorn_server(APP, "gevent", config_lines="keepalive = 5") as server:
            yield server.connect
        return
    process = subprocess.Popen(
        [sys.executable, str(APP), request.param], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    try:
        port = int(process.stdout.readline())
        yield lambda: socket.create_connection(("127.0.0.1", port), 10)
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


def exchange(connect: Connect, data: bytes) -> bytes:
    with contextlib.closing(connect()) as sock:
        sock.sendall(data)
        return read_all(sock, 20.0)


def one(connect: Connect, path: str, method: str = "GET", headers: Optional[Dict[str, str]] = None) -> Answer:
    raw = exchange(connect, request_bytes(path, method=method, headers=headers))
    return parse_answer(raw, head=method == "HEAD")


def test_answers_of_all_kinds_are_told_apart(connect: Connect) -> None:
    kept = one(connect, "/kept")
    place = kept.headers["content-location"]
    last = [line[4:] for line in kept.body.decode().splitlines() if line.startswith("id: ")][-1]
    etag = one(connect, "/llmstream/llmstream.js").headers["etag"]
    asked: List[Tuple[str, str, int, Dict[str, str]]] = [
        ("GET", "/words/sse", 200, {}),
        ("HEAD", "/words/sse", 200, {}),
        ("GET", "/words/text", 200, {}),
        ("GET", "/refused", 429, {}),
        ("GET", place, 200, {}),
        ("GET", place, 204, {"Last-Event-ID": last}),
        ("GET", place + "x", 404, {}),
        ("DELETE", place, 204, {}),
        ("DELETE", place + "x", 404, {}),
        ("GET", "/llmstream/llmstream.js", 304, {"If-None-Match": etag}),
        ("HEAD", "/llmstream/llmstream.js", 200, {}),
        ("GET", "/broken/sse", 200, {}),
        ("GET", "/llmstream/probe", 404, {}),
        ("GET", "/words/ndjson", 200, {}),
        ("GET", "/plain", 200, {}),
    ]
    rest = b""
    for number, (method, path, status, _) in enumerate(asked):
        if not rest:
            rest = exchange(connect, b"".join(
                request_bytes(path, method=method, headers=dict(KEEP if path != "/plain" else {}, **more))
                for method, path, _, more in asked[number:]
            ))
        answer = parse_answer(rest, head=method == "HEAD")
        rest = answer.rest
        assert answer.status == status, (method, path, answer)
        if status == 200 and method == "GET" and "sse" in path:
            parse_events(answer.body).terminal()
        if answer.headers.get("connection") == "close":
            # So does waitress behind every stream; behind a bare head, too, with an end of chunks.
            assert rest in ((b"", b"0\r\n\r\n") if method == "HEAD" else (b"",)), (path, answer)
            rest = b""
        else:
            assert rest or path == "/plain", (path, answer)
    assert json.loads(answer.body.decode()) == {"plain": True}


def test_nothing_follows_an_answer_that_was_broken_off(connect: Connect) -> None:
    """A format that cannot say how it has failed: the connection ends inside the body."""
    both = [request_bytes(path, headers=KEEP) for path in ("/broken/text", "/plain")]
    raw = exchange(connect, b"".join(both))
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b"transfer-encoding: chunked" in head.lower()
    assert b"half of an answer" in body
    assert not body.endswith(b"0\r\n\r\n") and b"HTTP/1.1" not in body and b"plain" not in body


def test_connection_of_a_stopped_stream_serves_the_next_request(connect: Connect) -> None:
    """The stream was ended from elsewhere; its end is whole, and the next answer begins behind it."""
    with contextlib.closing(connect()) as sock:
        sock.sendall(request_bytes("/slow", headers=KEEP) + request_bytes("/plain"))
        reader = read_stream(sock)
        reader.read_until(b"word 1 ")
        assert one(connect, reader.headers["content-location"], "DELETE").status == 204
        said = reader.read()
        assert reader.complete and b'"reason":"cancelled"' in said
        rest = reader.rest + read_all(sock)
    if reader.headers.get("connection") == "close":
        assert rest == b""
    else:
        after = parse_answer(rest)
        assert json.loads(after.body.decode()) == {"plain": True} and after.rest == b""


def test_connection_whose_client_has_left_ends_the_stream_only(connect: Connect) -> None:
    with contextlib.closing(connect()) as sock:
        sock.sendall(request_bytes("/slow", headers=KEEP))
        reader = read_stream(sock)
        reader.read_until(b"word 1 ")
    wait_until(lambda: one(connect, "/plain").status == 200, 5.0, "the server to go on")


#: What says how a body is sent, or is the server's own.
FRAMING = {
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "trailer", "transfer-encoding",
    "upgrade",
}


def test_the_app_says_nothing_of_how_a_body_is_sent() -> None:
    """What the library gives to the server: no hop-by-hop field; a length only with the body that has it."""
    spec = importlib.util.spec_from_file_location("raw_answers_app", str(APP))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client = module.app.test_client()
    place = client.get("/kept").headers["Content-Location"]
    asked = ["/words/sse", "/words/text", "/words/frames", "/kept", "/refused", "/broken/sse", place + "x"]
    for path in [*asked, "/llmstream/probe", "/llmstream/llmstream.js", "/llmstream/nothing.js"]:
        for ask in (client.get, client.head, client.delete):
            answer = ask(path)
            names = {name.lower() for name, _ in answer.headers}
            assert not names & FRAMING, (path, names)
            if ask == client.get and "content-length" in names:
                assert int(answer.headers["Content-Length"]) == len(answer.data), path
                assert answer.status_code >= 400 or path.endswith(".js"), path
