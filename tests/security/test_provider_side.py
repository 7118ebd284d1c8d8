"""The call to the provider: whose certificate counts, where a key goes, and what of an answer may pass."""

from __future__ import annotations

import socket
import ssl
import threading
from typing import Any, Iterator, Tuple

import pytest
import requests
from flask import Flask, request

from flask_llmstream import LLMStream, UpstreamError, relay, stream_response
from flask_llmstream.sansio.headers import check_passed, may_pass
from flask_llmstream.testing import ScriptedUpstream
from flask_llmstream.testing.scripts import headers, raw, status, tokens
from flask_llmstream.upstream import openai_chat

KEY = "sk-canary-of-this-test"
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def impostor(certificate: Tuple[str, str]) -> Iterator[ScriptedUpstream]:
    """Somebody with a certificate that nobody has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ScriptedUpstream(ssl_context=context) as upstream:
        yield upstream


def test_key_is_sent_to_nobody_whose_certificate_does_not_count(impostor: ScriptedUpstream) -> None:
    assert impostor.url.startswith("https://")
    with pytest.raises(UpstreamError) as caught:
        list(openai_chat("m", MESSAGES, base_url=impostor.url, api_key=KEY))
    assert "TLS" in str(caught.value) and not caught.value.retryable
    assert not impostor.exchanges


def test_redirect_gets_neither_key_nor_prompt(upstream: ScriptedUpstream) -> None:
    with ScriptedUpstream() as other:
        for code in (301, 302, 307, 308):
            upstream.script = [status(code, headers={"Location": other.url + "/chat/completions"})]
            with pytest.raises(UpstreamError, match="it moved to"):
                list(openai_chat("m", MESSAGES, base_url=upstream.url, api_key=KEY))
        assert not other.exchanges


def test_client_has_no_say_in_where_the_key_goes(upstream: ScriptedUpstream) -> None:
    """Nothing of a request is looked at but its credentials, its cursor and what it accepts."""
    app = Flask(__name__)
    LLMStream(app)

    @app.route("/ask", methods=["GET", "POST"])
    def ask() -> Any:
        return stream_response(openai_chat("m", MESSAGES, base_url=upstream.url, api_key=KEY))

    other = "http://127.0.0.1:9/"
    answer = app.test_client().post(
        f"/ask?base_url={other}&api_key=x&upstream={other}", json={"base_url": other, "api_key": "x"},
        headers={"Authorization": "Bearer of-the-client", "X-Forwarded-Host": "127.0.0.1:9"},
    )
    assert answer.status_code == 200 and b"done" in answer.data
    (exchange,) = upstream.exchanges
    sent = {name.lower(): value for name, value in exchange.headers.items()}
    assert sent["authorization"] == "Bearer " + KEY
    assert "of-the-client" not in str(sent) and "cookie" not in sent


@pytest.mark.parametrize(
    "name",
    ["Content-Length", "transfer-encoding", "Connection", "Keep-Alive", "ETag", "Content-Encoding"],
)
def test_relay_refuses_to_pass_on_how_another_body_was_sent(name: str) -> None:
    """A length that does not fit begins the next answer inside of this one."""
    with pytest.raises(ValueError, match="cannot be passed on"):
        check_passed(["x-request-id", name])
    with Flask(__name__).test_request_context(), pytest.raises(ValueError, match="cannot be passed on"):
        relay(lambda: None, pass_headers=[name])


@pytest.mark.parametrize(
    "value, passes",
    [
        ("text/event-stream; charset=utf-8", True), ("a\tb", True), ("\xe9", True), ("", True),
        ("a\r\nSet-Cookie: b", False), ("a\r\n b", False), ("a\rb", False), ("a\nb", False), ("a\0", False),
        ("\x0b", False), ("\x7f", False), ("\x85", False), ("\u2028", False), ("漢", False),
    ],
)
def test_value_of_another_answer_passes_if_it_is_plain(value: str, passes: bool) -> None:
    assert may_pass(value) == passes


class Forger:
    """A provider that writes what it likes into its headers; serves one connection."""

    def __init__(self, answer: bytes) -> None:
        self._sock = socket.socket()
        self._sock.bind(("127.0.0.1", 0))
        self._sock.listen(1)
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}/"
        self._answer = answer
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Forger:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join(10)
        self._sock.close()

    def _serve(self) -> None:
        self._sock.settimeout(10)
        peer, _ = self._sock.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(self._answer)


def test_provider_cannot_forge_headers_of_the_app() -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Request-Id: a\r\n Set-Cookie: evil=1\r\n"
        b"Request-Id: \x01\x0b\xff\r\nRetry-After: 5\r\nSet-Cookie: b=1\r\nConnection: x\r\n"
        b"Content-Length: 9\r\n\r\ndata: a\n\n"
    )
    app = Flask(__name__)
    LLMStream(app)

    @app.route("/relayed")
    def relayed() -> Any:
        return relay(lambda: requests.get(request.args["url"], stream=True, timeout=10))

    with Forger(answer) as forger:
        got = app.test_client().get("/relayed", query_string={"url": forger.url})
        assert got.status_code == 200 and b"data: a\n\n" in got.data
    names = {name.lower() for name, _ in got.headers}
    assert "retry-after" in names
    assert not names & {"set-cookie", "request-id", "connection", "content-length"}
    assert not [value for _, value in got.headers if "\n" in value or "\r" in value]


def test_scripted_header_passes(upstream: ScriptedUpstream) -> None:
    """What is plain is not lost."""
    upstream.script = [
        headers({"Content-Type": "text/event-stream", "X-Request-Id": "req_1"}), tokens("a"),
        raw(b"data: [DONE]\n\n"),
    ]
    app = Flask(__name__)
    LLMStream(app)

    @app.route("/relayed")
    def relayed() -> Any:
        url = upstream.url + "/chat/completions"
        return relay(lambda: requests.post(url, json={"model": "m"}, stream=True, timeout=10))

    got = app.test_client().get("/relayed")
    assert got.headers["X-Request-Id"] == "req_1" and b"[DONE]" in got.data
