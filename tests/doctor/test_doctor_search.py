"""The app behind the first hop: what it tells of itself, to whom, and whom the doctor asks."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from flask import Flask

from flask_llmstream import LLMStream
from flask_llmstream.doctor.connecting import Request
from flask_llmstream.doctor.examining import Plan, examine
from flask_llmstream.doctor.observations import Hop, Observation
from flask_llmstream.doctor.searching import search
from flask_llmstream.whereabouts import address_text, answer_for, proof_of, whereabouts

SECRET = "of the tests"
GOOD = {
    "address": ["127.0.0.1", 1], "peer": "127.0.0.1:2", "path": "/llmstream/probe", "tls": False,
    "ask": "question", "key": "a" * 64,
}


@contextlib.contextmanager
def connection(family: int = socket.AF_INET, address: Any = ("127.0.0.1", 0)) -> Iterator[Tuple[Any, Any]]:
    """Yield both ends of one: the client's, and the server's."""
    with socket.socket(family) as listener, socket.socket(family) as client:
        listener.bind(address)
        listener.listen(1)
        client.connect(listener.getsockname())
        served, _ = listener.accept()
        with served:
            yield client, served


def test_app_tells_where_it_is_and_proves_it_to_who_has_the_key() -> None:
    with connection() as (client, served), connection() as (_, other):
        environ = {"gunicorn.socket": served, "RAW_URI": "http://x/p%20q/llmstream/probe?token=t"}
        here = whereabouts(environ, SECRET)
        assert here["address"] == list(served.getsockname()) and here["path"] == "/p%20q/llmstream/probe"
        assert here["peer"] == address_text(client.getsockname()) and not here["tls"]
        proof = answer_for(environ, SECRET, here["ask"])
        assert proof == proof_of(here["key"], address_text(client.getsockname()))
        # Through something in between the app sees another address.
        assert answer_for({"gunicorn.socket": other}, SECRET, here["ask"]) != proof
        asked = [here["ask"], here["ask"][:-1] + "~", "", "é" * 9]
        assert [answer_for(environ, "another", each) for each in asked] == [None] * 4
        assert [answer_for(environ, SECRET, each) for each in asked[1:]] == [None] * 3
        bare = whereabouts(dict(environ, RAW_URI="", SCRIPT_NAME="/a b", PATH_INFO="/probe"), None)
        assert "ask" not in bare and "key" not in bare and bare["path"] == "/a%20b/probe"
        assert answer_for(environ, None, here["ask"]) is None
    assert whereabouts({"gunicorn.socket": served}, SECRET) == {} == whereabouts({}, SECRET)
    assert address_text(("::ffff:127.0.0.1", 80, 0, 0)) == "127.0.0.1:80" and address_text("") == ""
    assert address_text(("fe80::1%eth0", 80)) == "fe80::1:80" and address_text(("?", 1)) == "?:1"


def test_question_does_not_hold_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_llmstream.whereabouts._HOLDS", -2.0)
    with connection() as (_, served):
        environ = {"gunicorn.socket": served}
        assert answer_for(environ, SECRET, whereabouts(environ, SECRET)["ask"]) is None


def test_unix_socket_is_named(tmp_path: Any) -> None:
    for address, shown in ((str(tmp_path / "s"), str(tmp_path / "s")), (f"\0{tmp_path}", f"@{tmp_path}")):
        with connection(socket.AF_UNIX, address) as (_, served):
            assert whereabouts({"gunicorn.socket": served}, SECRET)["unix"] == shown


def test_probe_answers_the_question_of_a_stranger_as_a_page_that_is_not_there() -> None:
    app = Flask("stranger")
    app.secret_key = SECRET
    LLMStream(app)
    with connection() as (client, served):
        environ = {"gunicorn.socket": served}
        here = whereabouts(environ, SECRET)
        ask = app.test_client().get
        wrong = ask("/llmstream/probe?same=x", environ_base=environ)
        assert (wrong.status_code, wrong.data) == (404, ask("/llmstream/probe").data)
        answer = ask("/llmstream/probe", query_string={"same": here["ask"]}, environ_base=environ)
        assert answer.status_code == 200 and answer.headers["Cache-Control"] == "no-store"
        proof = proof_of(here["key"], address_text(client.getsockname()))
        assert json.loads(answer.data.decode()) == {"same": proof}


def looked(here: Any, local: str = "", remote: str = "127.0.0.1") -> Any:
    seen = Observation(Hop("site", "http://site/llmstream/probe?token=geheim"))
    seen.hello, seen.local, seen.remote = {"here": here}, local, remote
    return search(seen, Request(), ["site"])


SAID: List[Any] = [
    pytest.param({}, "does not say where", id="nothing"),
    pytest.param("x", "does not say where", id="no object"),
    pytest.param({"unix": "/run/app.sock"}, "unix socket /run/app.sock, which has no URL", id="unix"),
    pytest.param(dict(GOOD, address=["8.8.8.8", 80]), "neither on this machine nor", id="far"),
    pytest.param(dict(GOOD, address=["169.254.169.254", 80]), "neither on this machine nor", id="metadata"),
    pytest.param(dict(GOOD, address=["224.0.0.1", 80]), "neither on this machine nor", id="multicast"),
    pytest.param(dict(GOOD, address=["0.0.0.0", 80]), "neither on this machine nor", id="anywhere"),
    pytest.param(dict(GOOD, address=["evil.example", 80]), "nothing usable", id="name"),
    pytest.param(dict(GOOD, address=["127.0.0.1", 0]), "nothing usable", id="port"),
    pytest.param(dict(GOOD, address=7), "nothing usable", id="number"),
    pytest.param(dict(GOOD, path="/x?y=/probe"), "nothing usable", id="query"),
    pytest.param(dict(GOOD, path="/probe HTTP/1.1\r\nX: /probe"), "nothing usable", id="smuggled"),
    pytest.param(dict(GOOD, path=None), "nothing usable", id="path"),
    pytest.param(dict(GOOD, tls=True), "add --hop app=https://127.0.0.1:1", id="TLS"),
    pytest.param(dict(GOOD, ask=None), "has no secret key", id="no secret"),
    pytest.param(dict(GOOD, ask="a&token=b"), "tells nothing by which", id="question"),
    pytest.param(dict(GOOD, key="é"), "tells nothing by which", id="key"),
    pytest.param(dict(GOOD, address=["::1", 1]), "add --hop app=http://[::1]:1", id="IPv6"),
    pytest.param(GOOD, "cannot be reached from here (", id="closed"),
]


@pytest.mark.parametrize("here, said", SAID)
def test_what_is_not_found_is_said_with_what_to_add(here: Any, said: str) -> None:
    found = looked(here)
    assert found.hop is None and said in found.said and "--hop app=http" in found.said
    assert "geheim" not in found.said


def test_nothing_is_looked_for_where_nobody_is_in_between() -> None:
    assert looked(GOOD, local="127.0.0.1:2") == (None, "")


@pytest.fixture
def stranger() -> Iterator[Any]:
    """Start somebody who listens where the app is said to be, and notes what he is sent."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        requests: List[bytes] = []
        answers: Dict[str, Any] = {"requests": requests, "address": list(listener.getsockname())}

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock, contextlib.suppress(OSError):
                    sock.settimeout(10)
                    requests.append(sock.recv(65536))
                    sock.sendall(answers["answer"](requests[-1], address_text(sock.getpeername())))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield answers
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def http(body: bytes, status: int = 200, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def probe(request: bytes, stranger: Any) -> bytes:
    """Return a probe that says of its app that it is where the stranger is."""
    nonce = request.partition(b"nonce=")[2][:16].decode()
    hello = {"nonce": nonce, "here": dict(GOOD, address=stranger["address"])}
    event = json.dumps({"t": 0, "n": 0, "hello": hello})
    return http(f"event: probe\ndata: {event}\n\n".encode(), kind="text/event-stream")


def look_at(stranger: Any) -> List[Any]:
    """Return what is seen of the site, which is asked with a token and with credentials."""
    url = f"http://127.0.0.1:{stranger['address'][1]}/llmstream/probe?token=geheim"
    request = Request((("Cookie", "geheim"), ("Authorization", "geheim")), timeout=5.0)
    return examine(Plan([Hop("site", url)], request, leave=False))


@pytest.mark.parametrize(
    "answer, said",
    [
        (b"SSH-2.0-x\r\n\r\n", "cannot be reached from here (does not speak HTTP"),
        (b"", "cannot be reached from here (closes the connection"),
        (http(b"no", 404), "something else answers from here, with status 404"),
        (http(b'{"same": "' + b"0" * 64 + b'"}'), "through something else only"),
        (http(b'{"same": "\xc3\xa9"}'), "through something else only"),
        (http(b'["same"]'), "something else answers from here"),
        (b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "something else answers from here"),
        (b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", "with status 302"),
    ],
)
def test_stranger_gets_a_question_and_nothing_else(stranger: Any, answer: bytes, said: str) -> None:
    """The site of the URL says that its app is there; the site's own request has credentials and a token."""
    stranger["answer"] = lambda request, peer: answer if b"same=" in request else probe(request, stranger)
    (look,) = look_at(stranger)
    assert said in look.search, look.search
    first, question = stranger["requests"]
    assert first.count(b"geheim") == 3
    assert question.startswith(b"GET /llmstream/probe?same=question HTTP/1.1\r\n")
    assert b"geheim" not in question and b"Cookie" not in question


@pytest.mark.parametrize("well", [True, False])
def test_proven_app_gets_the_token_and_nothing_else(stranger: Any, well: bool) -> None:
    def app(request: bytes, peer: str) -> bytes:
        if b"same=" in request:
            return http(json.dumps({"same": proof_of(GOOD["key"], peer)}).encode())
        return probe(request, stranger) if well or b"Cookie" in request else http(b"log in", 401)

    stranger["answer"] = app
    looks = look_at(stranger)
    assert len(stranger["requests"]) == 3
    assert b"token=geheim" in stranger["requests"][2] and stranger["requests"][2].count(b"geheim") == 1
    assert [look.seen.hop.found for look in looks] == ([True, False] if well else [False])
    assert ("there was read as 'app'" if well else "which answers 401: log in") in looks[-1].search
