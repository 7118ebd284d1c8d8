"""Whatever goes wrong with a call has a code, says whether a retry is worth it, and tells no secret."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import traceback

import pytest
import requests
import urllib3
from costs import costs_at_most

from flask_llmstream.exceptions import UpstreamError, UpstreamInterrupted, UpstreamTimeout
from flask_llmstream.sansio.events import TextDelta
from flask_llmstream.testing.upstreams import (
    ScriptedUpstream,
    chunk,
    close_delimited,
    cut,
    delay_headers,
    done,
    headers,
    invalid_utf8,
    raw,
    reset,
    silence,
    status,
    tokens,
    wait,
)
from flask_llmstream.upstream import openai_chat
from flask_llmstream.upstream.decoding import AnswerDecoder
from flask_llmstream.upstream.errors import call_failed, is_timeout, name_of, read_failed, refused, scrub

MESSAGES = [{"role": "user", "content": "Hello"}]


def failure(call):
    """Iterate *call* to its error; return what came before, and the error."""
    received = []
    with pytest.raises(UpstreamError) as caught:
        for delta in call:
            received.append(delta)
    assert list(call) == [], "an error is the end"
    assert caught.value.deltas_sent == len(received)
    return received, caught.value


@pytest.mark.parametrize(
    "code, fields, expected",
    [
        (401, {}, ("upstream_auth", False, None)),
        (403, {}, ("upstream_auth", False, None)),
        (429, {"Retry-After": "7"}, ("upstream_rate_limited", True, 7.0)),
        (429, {"Retry-After": "0.5"}, ("upstream_rate_limited", True, 0.5)),
        (429, {}, ("upstream_rate_limited", True, None)),
        (429, {"Retry-After": "soon"}, ("upstream_rate_limited", True, None)),
        (429, {"Retry-After": "Thu, 01 Jan 1970 00:00:00 GMT"}, ("upstream_rate_limited", True, 0.0)),
        (400, {}, ("upstream_rejected", False, None)),
        (402, {}, ("upstream_rejected", False, None)),
        (404, {}, ("upstream_rejected", False, None)),
        (413, {}, ("upstream_rejected", False, None)),
        (422, {}, ("upstream_rejected", False, None)),
        (408, {}, ("upstream_timeout", True, None)),
        (500, {}, ("upstream_unavailable", True, None)),
        (502, {}, ("upstream_unavailable", True, None)),
        (503, {"Retry-After": "30"}, ("upstream_unavailable", True, 30.0)),
        (529, {}, ("upstream_unavailable", True, None)),
        (204, {}, ("upstream_rejected", False, None)),
        (302, {}, ("upstream_rejected", False, None)),
    ],
)
def test_statuses(ask, upstream, code, fields, expected):
    received, error = failure(ask(status(code, headers=fields)))
    assert received == []
    assert (error.code, error.retryable, error.retry_after) == expected
    assert error.status == code
    assert isinstance(error, UpstreamTimeout) == (code == 408)
    assert upstream.requests == 1, "nothing is retried"


def test_what_the_provider_says_is_in_the_message(ask):
    _, error = failure(ask(status(400, json={"error": {"message": "max_tokens is too large"}})))
    assert str(error).endswith("/v1/chat/completions answered 400: max_tokens is too large")


def test_a_spent_quota_is_not_worth_a_retry(ask):
    body = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}
    _, error = failure(ask(status(429, json=body)))
    assert (error.code, error.retryable) == ("upstream_rate_limited", False)


def test_a_redirect_is_not_followed(ask, upstream):
    target = "https://user:password@elsewhere.example/v2?key=secret"
    _, error = failure(ask(status(308, headers={"Location": target})))
    assert "it moved to https://elsewhere.example/v2" in str(error)
    assert "password" not in str(error) and "secret" not in str(error)


def test_a_refusal_does_not_cost_the_connection(ask, upstream):
    failure(ask(status(429)))
    failure(ask(status(500)))
    assert upstream.connections == 1


def test_only_the_beginning_of_a_refusal_is_read(ask, upstream):
    script = [headers({"Content-Type": "text/plain"}, status=500), raw(b"x" * 20_000), silence()]
    _, error = failure(ask(*script))
    assert error.code == "upstream_unavailable"
    assert len(str(error)) < 500
    upstream.wait_closed()


def test_a_refusal_whose_body_never_comes(ask, upstream, monkeypatch):
    monkeypatch.setattr("flask_llmstream.upstream.answer._REFUSAL_SECONDS", 0.1)
    _, error = failure(ask(headers({"Content-Length": "100"}, status=503), silence()))
    assert error.code == "upstream_unavailable"
    upstream.wait_closed()


@pytest.mark.parametrize(
    "kind, shown",
    [("text/html; charset=utf-8", "text/html"), ("TEXT/PLAIN", "text/plain"), ("a/x-ndjson", "ndjson")],
)
def test_another_content_type_is_not_read(ask, upstream, kind, shown):
    page = b"<html><title>Welcome</title></html>"
    _, error = failure(ask(status(200, headers={"Content-Type": kind}, body=page)))
    assert error.code == "upstream_invalid"
    assert shown in str(error) and "text/event-stream" in str(error)


@pytest.mark.parametrize(
    "body", [b"[]", b"7", b"{}", b'{"choices": []}', b'{"choices": [7]}', b"{broken", b"\xff", b"[" * 100_000]
)
def test_json_that_is_no_answer(ask, body):
    _, error = failure(ask(status(200, body=body)))
    assert error.code == "upstream_invalid"


def test_json_with_an_error_inside(ask):
    body = {"error": {"message": "overloaded", "code": 503}}
    _, error = failure(ask(status(200, json=body)))
    assert (error.code, error.retryable) == ("upstream_unavailable", True)


def test_an_answer_in_one_piece_that_is_cut(ask):
    script = [headers({"Content-Type": "application/json", "Content-Length": "99"}), raw(b'{"cho'), cut()]
    _, error = failure(ask(*script))
    assert isinstance(error, UpstreamInterrupted)


def test_nobody_listens():
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        call = openai_chat("m", MESSAGES, base_url=f"http://127.0.0.1:{port}/v1")
        _, error = failure(call)
    assert (error.code, error.retryable, error.status) == ("upstream_unavailable", True, None)
    assert "connection refused" in str(error)
    assert isinstance(error.original_error, requests.ConnectionError)


def test_no_such_host():
    _, error = failure(openai_chat("m", MESSAGES, base_url="http://no-such-host.invalid/v1"))
    assert (error.code, error.retryable) == ("upstream_unavailable", True)
    assert "http://no-such-host.invalid/v1/chat/completions" in str(error)


def test_a_host_that_does_not_answer():
    """Its listening queue is full, as that of a host behind a silent firewall seems to be."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = []
        try:
            for _ in range(8):
                filler = socket.socket()
                fillers.append(filler)
                filler.setblocking(False)
                filler.connect_ex(address)
            call = openai_chat("m", MESSAGES, base_url=f"http://127.0.0.1:{address[1]}", timeout=(0.3, 5))
            _, error = failure(call)
        finally:
            for filler in fillers:
                filler.close()
    assert isinstance(error, UpstreamTimeout)
    assert (error.code, error.retryable) == ("upstream_timeout", True)
    assert "no connection" in str(error)


@pytest.mark.parametrize("end", [reset(), cut()])
def test_closed_before_the_status(ask, upstream, end):
    """The server takes the request and goes."""
    _, error = failure(ask(end))
    assert (error.code, error.retryable) == ("upstream_unavailable", True)
    assert upstream.requests == 1, "nothing is retried"


def test_tls_with_a_server_that_does_not_speak_it(upstream):
    call = openai_chat("m", MESSAGES, base_url=upstream.url.replace("http", "https"))
    _, error = failure(call)
    assert (error.code, error.retryable) == ("upstream_unavailable", False)


def test_silence_before_the_status(ask, upstream):
    _, error = failure(ask(delay_headers(), timeout=(5, 0.1)))
    assert isinstance(error, UpstreamTimeout)
    assert (error.code, error.retryable) == ("upstream_timeout", True)
    assert "sent no answer" in str(error)
    upstream.wait_closed()


@pytest.mark.parametrize("start", [[], [close_delimited]], ids=["chunked", "close-delimited"])
def test_silence_inside_the_answer(ask, upstream, start):
    # Long enough for the tokens to come in time on a machine that is busy.
    received, error = failure(ask(*start, tokens("a", "b"), silence(), timeout=(5, 0.5)))
    assert received == [TextDelta("a"), TextDelta("b")]
    assert isinstance(error, UpstreamTimeout)
    assert "went silent" in str(error)
    upstream.wait_closed()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param([cut()], id="fin"),
        pytest.param([wait(0.05), reset()], id="rst"),
        pytest.param([raw(b'data: {"choices":[{"de'), cut()], id="inside-an-event"),
        pytest.param([raw(b'data: {"choices":[{"delta":{"content":"\xc3'), cut()], id="inside-a-character"),
        pytest.param([raw(b"data: [DONE]"), cut()], id="inside-the-end"),
        pytest.param([], id="a-clean-end-of-http"),
    ],
)
@pytest.mark.parametrize("start", [[], [close_delimited]], ids=["chunked", "close-delimited"])
def test_a_cut_answer(ask, upstream, start, end):
    received, error = failure(ask(*start, tokens("a", "b"), *end))
    assert received == [TextDelta("a"), TextDelta("b")]
    assert isinstance(error, UpstreamInterrupted)
    assert (error.code, error.retryable) == ("upstream_interrupted", True)


@pytest.mark.parametrize(
    "fault, said",
    [
        pytest.param(invalid_utf8(), "not UTF-8", id="utf-8"),
        pytest.param(raw(b": \xff\n"), "not UTF-8", id="utf-8-in-a-comment"),
        pytest.param(raw(b"data: \xc3(\n\n"), "not UTF-8", id="utf-8-sequence"),
        pytest.param(raw(b"data: {broken\n\n"), "not JSON", id="json"),
        pytest.param(raw(b"data: 7\n\n"), "must be an object", id="json-of-another-kind"),
        pytest.param(chunk({"choices": [{"delta": {"content": 7}}]}), "content must be", id="content-type"),
    ],
)
@pytest.mark.parametrize("together", [True, False])
def test_what_comes_before_a_fault_is_handed_out(ask, upstream, fault, said, together):
    """Whether it came in the same piece or not."""
    between = [] if together else [wait(0.05)]
    received, error = failure(ask(tokens("a", "ü"), *between, fault, tokens("c"), silence()))
    assert received == [TextDelta("a"), TextDelta("ü")]
    assert (error.code, error.retryable) == ("upstream_invalid", False)
    assert said in str(error)
    upstream.wait_closed()


@pytest.mark.parametrize("cut_at", [1, 2, 3])
def test_a_character_cut_between_two_pieces_is_whole(ask, cut_at):
    """Four bytes of UTF-8, in an HTTP chunk each side."""
    frame = b'data: {"choices":[{"delta":{"content":"\xf0\x9f\x98\x80"}}]}\n\n'
    at = frame.index(b"\xf0") + cut_at
    call = ask(raw(frame[:at]), wait(0.05), raw(frame[at:]), done())
    assert next(call) == TextDelta("😀")
    call.close()


def test_invalid_utf8_that_begins_in_the_piece_before(ask):
    first, second = b'data: {"choices":[{"delta":{"content":"\xf0\x9f', b'"}}]}\n\n'
    _, error = failure(ask(raw(first), wait(0.05), raw(second), silence()))
    assert error.code == "upstream_invalid"


def test_an_endless_line_behind_a_good_event_in_the_same_piece():
    """The event is handed out first; the end of the body must not hide the fault."""
    decoder = AnswerDecoder("it", "openai")
    event = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    assert decoder.feed(event + b"data: " + b"x" * 1_100_000) == ([TextDelta("a")], None)
    assert decoder.flush()[1].code == "upstream_invalid"


def test_an_endless_line_is_cut_off():
    """20 MB without a line end: an error, early, and memory that stays small."""
    with ScriptedUpstream() as upstream:
        upstream.script = [tokens("a"), raw(b"data: " + b"x" * 20_000_000), silence()]
        code = (
            "import resource, sys\n"
            "from flask_llmstream.exceptions import UpstreamError\n"
            "from flask_llmstream.upstream import openai_chat\n"
            "call = openai_chat('m', [], base_url=sys.argv[1])\n"
            "print(next(call))\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "try:\n"
            "    next(call)\n"
            "except UpstreamError as error:\n"
            "    print(error.code, error.deltas_sent)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
        )
        result = subprocess.run(
            [sys.executable, "-c", code, upstream.url], stdout=subprocess.PIPE, timeout=60, check=True
        )
        # As much as the buffers of both sides hold was sent, not the whole line.
        upstream.wait_closed()
    first, error, grown = result.stdout.decode().splitlines()
    assert first == "TextDelta(text='a')"
    assert error == "upstream_invalid 1"
    assert int(grown) < 12_000, "KiB"


@pytest.mark.parametrize(
    "body, expected",
    [
        ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, ("upstream_rate_limited", True)),
        ({"error": {"message": "no", "code": 500}}, ("upstream_unavailable", True)),
        ({"error": "something"}, ("upstream_error", False)),
    ],
)
def test_an_error_inside_the_stream(ask, upstream, body, expected):
    received, error = failure(ask(tokens("a"), chunk(body), silence()))
    assert received == [TextDelta("a")]
    assert (error.code, error.retryable) == expected
    upstream.wait_closed()


SECRET = "The merger with Example Corp will be announced on Friday, tell nobody about it."


def says(message):
    return status(400, json={"error": {"message": message}})


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(says("Incorrect API key provided: sk-12345678"), id="key"),
        pytest.param(says(f"cannot read: {SECRET}"), id="prompt"),
        pytest.param(says(f"cannot read {SECRET[8:40]}…"), id="half-a-prompt"),
        pytest.param(status(422, json={"detail": [{"msg": "bad", "input": SECRET}]}), id="detail"),
        pytest.param(status(500, body=f"<title>Error</title><pre>{SECRET}</pre>".encode()), id="page"),
        pytest.param(status(500, body=f"error in {SECRET}".encode()), id="text"),
        pytest.param(chunk({"error": {"message": f"bad: {SECRET} sk-12345678"}}), id="inside-the-stream"),
    ],
)
def test_no_message_quotes_the_key_or_the_prompt(upstream, answer):
    upstream.script = [answer]
    call = openai_chat(
        "m",
        [{"role": "user", "content": [{"type": "text", "text": SECRET}]}],
        base_url=upstream.url,
        api_key="sk-12345678",
    )
    _, error = failure(call)
    logged = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    for text in (str(error), logged):
        assert "12345678" not in text
        assert "merger" not in text and "Example Corp" not in text


@pytest.mark.parametrize(
    "text, sent, expected",
    [
        ("all is well", [], "all is well"),
        ("two\n  lines", [], "two lines"),
        ("key sk-proj-abcdefgh is wrong", [], "key *** is wrong"),
        ("header 'Authorization: Bearer abc.def'", [], "header 'Authorization: Bearer ***"),
        ("a valid answer", ["a"], "… valid answer"),
        ("say Hi to him", ["Hi"], "say … to him"),
        ("this is history", ["is"], "this … history"),
        ("cannot read 'tell me a secret now' at all", ["tell me a secret now"], "cannot read '…' at all"),
        ("cannot read 'tell me a sec…'", ["tell me a secret now"], "cannot read '……'"),
        ("two  blanks are one", ["two\nblanks are one"], "…"),
        ("x" * 400, [""], "x" * 300),
    ],
)
def test_scrub(text, sent, expected):
    assert scrub(text, sent) == expected


def test_scrubbing_is_not_a_way_to_stop_a_worker():
    """A long conversation, a long message: milliseconds."""
    sent = [("lorem ipsum dolor sit amet " * 400)[i:] for i in range(100)]
    print(f"{costs_at_most(2, lambda: scrub('y' * 8192, sent)) * 1e3:.1f} ms")


@pytest.mark.parametrize(
    "body, expected",
    [
        (b'{"error": "a text"}', "a text"),
        (b'{"message": "a text"}', "a text"),
        (b'{"detail": "a text"}', "a text"),
        (b'{"error": {"message": "a text", "code": 7}}', "a text"),
        (b'{"detail": [{"loc": ["body", "n"], "msg": "bad"}, 7]}', "['body', 'n']: bad"),
        (b"a text", "a text"),
        (b"<html><head><title>\n502 Bad Gateway</title>", "502 Bad Gateway"),
        (b"<html>no title", ""),
        (b"[1, 2]", ""),
        (b"{}", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"", ""),
    ],
)
def test_what_is_taken_from_a_refusal(body, expected):
    message = str(refused(400, "it", body))
    assert message == (f"it answered 400: {expected}" if expected else "it answered 400")


@pytest.mark.parametrize(
    "error, expected",
    [
        (socket.timeout("timed out"), True),
        (requests.ReadTimeout(), True),
        (requests.ConnectionError(urllib3.exceptions.ReadTimeoutError(None, "/", "read")), True),
        (requests.ConnectionError(urllib3.exceptions.ProtocolError("x", socket.timeout())), True),
        (requests.ConnectionError("refused"), False),
        (ConnectionResetError(), False),
        (ValueError(), False),
    ],
)
def test_is_timeout(error, expected):
    assert is_timeout(error) is expected


def test_what_ended_a_call():
    invalid_url = requests.exceptions.InvalidURL("secret")
    assert call_failed(invalid_url, "http://host/").code == "upstream_rejected"
    assert "secret" not in str(call_failed(invalid_url, "http://host/"))
    broken = urllib3.exceptions.DecodeError("bad gzip")
    assert read_failed(broken, "http://host/", 3).code == "upstream_invalid"
    assert read_failed(ConnectionResetError(104, "Connection reset by peer"), "http://h/", 3).deltas_sent == 3


@pytest.mark.parametrize(
    "url, name",
    [
        ("https://user:password@host:8443/v1?key=1#x", "https://host:8443/v1"),
        ("localhost:8080?key=1", "localhost:8080"),
        ("/v1", "/v1"),
        ("", "the provider"),
    ],
)
def test_a_name_holds_no_secret(url, name):
    assert name_of(url) == name


def test_errors_carry_their_cause(ask):
    _, error = failure(ask(raw(b"data: {broken\n\n")))
    assert error.original_error is not None
    _, error = failure(ask(tokens("a"), wait(0.05), reset()))
    assert isinstance(error.__cause__, OSError) and error.original_error is error.__cause__


def test_the_body_of_a_call_is_json():
    json.loads(openai_chat("m", MESSAGES, base_url="http://127.0.0.1:9")._body)
