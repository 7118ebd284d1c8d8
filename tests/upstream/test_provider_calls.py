"""What holds of the calls to all providers, and of their SDKs' streams when they are adapted."""

from __future__ import annotations

import threading
import traceback

import pytest
import requests
from known_providers import CALLS, FAULTS, KEY, MESSAGES, adapted, ours, sums

from flask_llmstream.exceptions import ConfigurationError, UpstreamError, UpstreamInterrupted, UpstreamTimeout
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.testing.upstreams import (
    chunk,
    cut,
    delay_headers,
    hold,
    raw,
    silence,
    speak,
    status,
    tokens,
    wait,
)
from flask_llmstream.upstream import anthropic_messages, gemini_chat, ollama_chat, openai_responses

CALL = ToolCallDelta(0, "call_1", "weather", '{"city":"Köln"}')
#: Ollama's and Gemini's calls have no id here, as with most of their models.
NAMELESS = ("ollama", "gemini")

every = pytest.mark.parametrize("provider", list(CALLS))
both = pytest.mark.parametrize("make", [ours, adapted])


def answer(provider, *more):
    return speak(provider, ReasoningDelta("Hm. "), "Hel", "lö 你", *more, Finish("stop"), Usage(7, 5))


def failure(source):
    received = []
    with pytest.raises(UpstreamError) as caught:
        for item in source:
            received.append(item)
    assert source.closed
    return received, caught.value


@every
@both
def test_an_answer(upstream, provider, make):
    upstream.script = answer(provider)
    source = make(provider, upstream)
    deltas = list(source)
    expected = {"text": "Hellö 你", "reasoning": "Hm. ", "calls": {}, "finish": ["stop"]}
    assert sums(deltas) == expected
    assert deltas[-1] == source.usage
    assert (source.usage.input_tokens, source.usage.output_tokens) == (7, 5)
    assert (source.finish_reason, source.estimated, source.closed) == ("stop", False, True)
    assert list(source) == []


@every
def test_our_call_and_the_sdk_agree(upstream, provider):
    upstream.script = speak(provider, "Let me see.", CALL, Finish("tool_calls"), Usage(7, 5))
    a, b = ours(provider, upstream), adapted(provider, upstream)
    said = sums(list(a))
    assert said == sums(list(b))
    assert a.usage == b.usage
    id = None if provider in NAMELESS else "call_1"
    assert said["calls"] == {0: (id, "weather", '{"city":"Köln"}')}
    assert said["finish"] == ["tool_calls"]


@every
def test_an_answer_that_was_too_long(upstream, provider):
    upstream.script = speak(provider, "a", Finish("length"), Usage(1, 1))
    assert Finish("length") in list(ours(provider, upstream))


@every
@both
def test_tokens_come_as_they_are_sent(upstream, provider, make):
    flag = threading.Event()
    upstream.script = speak(provider, "a", hold(flag), "b", Finish("stop"))
    source = make(provider, upstream)
    assert next(source) == TextDelta("a")
    flag.set()
    assert TextDelta("b") in list(source)


@every
def test_five_answers_need_one_connection(upstream, provider):
    upstream.script = answer(provider)
    for _ in range(5):
        list(ours(provider, upstream))
    assert (upstream.requests, upstream.connections) == (5, 1)


@every
@pytest.mark.parametrize(
    "code, expected, retryable",
    [
        (400, "upstream_rejected", False),
        (401, "upstream_auth", False),
        (429, "upstream_rate_limited", True),
        (529, "upstream_unavailable", True),
    ],
)
def test_a_refusal(upstream, provider, code, expected, retryable):
    said = {"error": {"message": f"no: {MESSAGES[0]['content']} {KEY} AIzaSyD-1234567890"}}
    upstream.script = [status(code, headers={"Retry-After": "7"}, json=said)]
    _, error = failure(CALLS[provider](upstream, api_key=KEY))
    assert (error.code, error.status, error.retryable) == (expected, code, retryable)
    assert error.retry_after == 7.0
    logged = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    assert "12345678" not in logged and "your name" not in logged
    assert (upstream.requests, upstream.connections) == (1, 1), "it was tried again"


@every
@both
def test_an_error_inside_the_answer(upstream, provider, make):
    upstream.script = speak(provider, "a", wait(0.05), FAULTS[provider], silence())
    received, error = failure(make(provider, upstream))
    assert sums(received)["text"] == "a"
    expected = "upstream_error" if provider == "ollama" else "upstream_unavailable"
    if not (provider == "gemini" and make is adapted):  # whose SDK says what it will
        assert error.code == expected and "busy" in str(error)
    upstream.wait_closed()


@every
@both
@pytest.mark.parametrize("end", [[wait(0.05), cut()], []], ids=["cut", "clean-end"])
def test_an_answer_that_was_cut_is_paid_for(upstream, provider, make, end):
    upstream.script = speak(provider, ReasoningDelta("x"), "a", "b", *end)
    source = make(provider, upstream)
    received, error = failure(source)
    assert sums(received)["text"] == "ab"
    assert isinstance(error, UpstreamInterrupted) and error.deltas_sent == 3
    known = 7 if provider in ("anthropic", "gemini") else None
    assert (source.usage, source.estimated) == (Usage(known, 3), True)


@every
def test_bytes_that_are_not_utf8(upstream, provider):
    upstream.script = speak(provider, "a", wait(0.05), raw(b"\xff\xfe\n"), silence())
    received, error = failure(ours(provider, upstream))
    assert (sums(received)["text"], error.code) == ("a", "upstream_invalid")


@every
def test_silence(upstream, provider):
    upstream.script = speak(provider, "a", silence())
    # Long enough for the first token to come in time on a machine that is busy.
    received, error = failure(CALLS[provider](upstream, timeout=(5, 0.5)))
    assert isinstance(error, UpstreamTimeout) and sums(received)["text"] == "a"
    upstream.script = [delay_headers()]
    _, error = failure(CALLS[provider](upstream, timeout=(5, 0.05)))
    assert isinstance(error, UpstreamTimeout)


@every
@both
def test_close_from_another_thread_wakes_a_blocked_next(upstream, provider, make):
    """On threads nothing but a shutdown of the socket does that, and Ollama's client hides it."""
    upstream.script = speak(provider, "a", silence())
    source = make(provider, upstream)
    assert next(source) == TextDelta("a")
    timer = threading.Timer(0.1, source.close)
    timer.start()
    assert list(source) == []
    timer.join()
    upstream.wait_closed()


@every
def test_close_between_two_items(upstream, provider):
    upstream.script = speak(provider, "a", silence())
    with ours(provider, upstream) as source:
        assert next(source) == TextDelta("a")
    upstream.wait_closed()
    assert source.estimated and source.usage.output_tokens == 1


@every
def test_unknown_events_are_passed_over(upstream, provider):
    odd = {"type": "something.new", "value": 7}
    line = raw(b'{"new":7}\n') if provider == "ollama" else chunk(odd)
    upstream.script = speak(provider, "a", line, "b", Finish("stop"))
    assert sums(list(ours(provider, upstream)))["text"] == "ab"


@every
def test_another_content_type_is_not_read(upstream, provider):
    upstream.script = [status(200, headers={"Content-Type": "text/html"}, body=b"<title>Welcome</title>")]
    _, error = failure(ours(provider, upstream))
    assert error.code == "upstream_invalid" and "text/html" in str(error)


@every
def test_an_answer_moved_elsewhere_is_not_followed(upstream, provider):
    upstream.script = [status(307, headers={"Location": "/elsewhere"})]
    _, error = failure(ours(provider, upstream))
    assert error.code == "upstream_rejected" and "it moved to" in str(error)
    assert upstream.requests == 1


WHOLE = {
    "openai-responses": {"object": "response", "status": "completed", "output": [
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}]},
    "anthropic": {"type": "message", "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn"},
    "ollama": {"message": {"content": "Hi"}, "done": True, "done_reason": "stop"},
    "gemini": {"candidates": [{"content": {"parts": [{"text": "Hi"}]}, "finishReason": "STOP"}]},
}


@pytest.mark.parametrize("provider", list(WHOLE))
def test_a_server_that_does_not_stream(upstream, provider):
    upstream.script = [status(200, json=WHOLE[provider])]
    assert list(ours(provider, upstream)) == [TextDelta("Hi"), Finish("stop")]
    upstream.script = [status(200, json={"unheard": "of"})]
    if provider != "ollama":  # whose lines may be anything
        _, error = failure(ours(provider, upstream))
        assert error.code == "upstream_invalid"


def test_gemini_that_says_stop_with_every_chunk_may_still_take_its_time(upstream, monkeypatch):
    monkeypatch.setattr("flask_llmstream.upstream.answer._LAST_SECONDS", 0.05)
    piece = {"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}]}
    upstream.script = [chunk(piece), wait(0.3), chunk(piece)]
    assert sums(list(ours("gemini", upstream)))["text"] == "aa"
    upstream.script = [chunk(piece), wait(0.05), cut()]
    _, error = failure(ours("gemini", upstream))
    assert isinstance(error, UpstreamInterrupted)


# -- what is sent ----------------------------------------------------------------------------


def test_what_is_sent_to_the_responses_api(upstream):
    upstream.script = speak("openai-responses", "a", Finish("stop"))
    items = ({"role": "user", "content": text} for text in ("a", "b"))
    list(openai_responses("m", items, base_url=upstream.url, api_key="sk-1", instructions="Be brief."))
    request = upstream.exchanges[0]
    assert request.path == "/v1/responses"
    assert request.headers["authorization"] == "Bearer sk-1"
    assert request.json == {
        "model": "m",
        "input": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        "instructions": "Be brief.",
        "stream": True,
    }


def test_what_is_sent_to_anthropic(upstream):
    upstream.script = speak("anthropic", "a", Finish("stop"))
    headers = {"anthropic-beta": "some"}
    for base_url in (upstream.origin, upstream.url + "/"):
        list(anthropic_messages(
            "m", MESSAGES, max_tokens=9, system="Be brief.", base_url=base_url, api_key=KEY, headers=headers
        ))
    first, second = upstream.exchanges
    assert first.path == second.path == "/v1/messages"
    assert first.headers["x-api-key"] == KEY and "authorization" not in first.headers
    assert (first.headers["anthropic-version"], first.headers["anthropic-beta"]) == ("2023-06-01", "some")
    assert first.json == {
        "model": "m", "messages": MESSAGES, "max_tokens": 9, "system": "Be brief.", "stream": True
    }


def test_what_is_sent_to_ollama(upstream):
    upstream.script = speak("ollama", "a", Finish("stop"))
    list(ollama_chat("m", MESSAGES, base_url=f"127.0.0.1:{upstream.port}/", think=True))
    request = upstream.exchanges[0]
    assert request.path == "/api/chat"
    assert "authorization" not in request.headers
    assert request.json == {"model": "m", "messages": MESSAGES, "think": True, "stream": True}


def test_what_is_sent_to_gemini(upstream):
    upstream.script = speak("gemini", "a", Finish("stop"))
    list(gemini_chat("g-1", "Hi", base_url=upstream.origin, api_key=KEY, generationConfig={"topK": 1}))
    contents = [{"role": "user", "parts": [{"text": "Hi"}]}]
    list(gemini_chat("tunedModels/t", contents, base_url=upstream.url + "?a=b"))
    first, second = upstream.exchanges
    assert first.path == "/v1beta/models/g-1:streamGenerateContent?alt=sse"
    assert second.path == "/v1/tunedModels/t:streamGenerateContent?a=b&alt=sse"
    assert first.headers["x-goog-api-key"] == KEY and "authorization" not in first.headers
    assert first.json == {"contents": contents, "generationConfig": {"topK": 1}}
    assert second.json == {"contents": contents}


@pytest.mark.parametrize(
    "provider, variables, header",
    [
        ("openai-responses", ("OPENAI_BASE_URL", "OPENAI_API_KEY"), "authorization"),
        ("anthropic", ("ANTHROPIC_BASE_URL", "ANTHROPIC_API_KEY"), "x-api-key"),
        ("ollama", ("OLLAMA_HOST", "OLLAMA_API_KEY"), "authorization"),
        ("gemini", ("GOOGLE_GEMINI_BASE_URL", "GEMINI_API_KEY"), "x-goog-api-key"),
        ("gemini", ("GOOGLE_GEMINI_BASE_URL", "GOOGLE_API_KEY"), "x-goog-api-key"),
    ],
)
def test_address_and_key_come_from_the_environment(upstream, monkeypatch, provider, variables, header):
    upstream.script = answer(provider)
    monkeypatch.setenv(variables[0], upstream.origin)
    monkeypatch.setenv(variables[1], "key-of-the-environment\n")
    nowhere = type("Nowhere", (), {"url": None, "origin": None})
    assert sums(list(CALLS[provider](nowhere)))["text"] == "Hellö 你"
    assert upstream.exchanges[0].headers[header].endswith("key-of-the-environment")
    given = CALLS[provider](upstream, headers={header: "mine"})
    list(given)
    assert upstream.exchanges[1].headers[header] == "mine"
    monkeypatch.setenv(variables[0], "ftp://host")
    with pytest.raises(ConfigurationError, match=variables[0]):
        CALLS[provider](nowhere)


@pytest.mark.parametrize(
    "host, name",
    [
        (None, "http://127.0.0.1:11434/api/chat"),
        ("box", "http://box:11434/api/chat"),
        ("box:80", "http://box:80/api/chat"),
        ("[::1]", "http://[::1]:11434/api/chat"),
        ("[::1]:80/x", "http://[::1]:80/x/api/chat"),
        ("https://box/x/", "https://box/x/api/chat"),
    ],
)
def test_ollamas_way_to_name_a_host(monkeypatch, host, name):
    if host is not None:
        monkeypatch.setenv("OLLAMA_HOST", host)
    assert f" {name} " in repr(ollama_chat("m", MESSAGES))


def test_the_addresses_of_the_others():
    assert "https://api.openai.com/v1/responses" in repr(openai_responses("m", "Hi"))
    assert "https://api.anthropic.com/v1/messages" in repr(anthropic_messages("m", MESSAGES, max_tokens=1))
    base = "https://generativelanguage.googleapis.com/v1beta/models/m:streamGenerateContent"
    assert f"<GeminiChat {base} not started>" == repr(gemini_chat("models/m", "Hi"))


def test_without_a_key_that_of_netrc_is_not_sent(upstream, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for provider in CALLS:
        upstream.script = answer(provider)
        list(ours(provider, upstream))
        list(CALLS[provider](upstream, api_key=KEY))
    sent = [each.headers.get("authorization", "") for each in upstream.exchanges]
    assert not any("Basic" in each for each in sent)


@every
def test_a_session_of_ones_own(upstream, provider):
    upstream.script = answer(provider)
    with requests.Session() as session:
        session.headers["X-Mine"] = "1"
        list(CALLS[provider](upstream, session=session))
    assert upstream.exchanges[0].headers["x-mine"] == "1"


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: openai_responses("m", {"role": "user"}), TypeError, "input is a list"),
        (lambda: openai_responses("m", "Hi", background=True), ValueError, "leave background out"),
        (lambda: openai_responses("m", "Hi", stream=False), ValueError, "openai_responses always streams"),
        (lambda: anthropic_messages("m", "Hi", max_tokens=1), TypeError, "messages is a list"),
        (lambda: anthropic_messages("m", []), TypeError, "max_tokens"),
        (lambda: anthropic_messages("m", [], max_tokens=1, base_url="host"), ValueError, "base_url"),
        (lambda: anthropic_messages("m", [], max_tokens=1, api_key="a\nb"), ValueError, "a header cannot"),
        (lambda: ollama_chat("m", b"Hi"), TypeError, "messages is a list"),
        (lambda: ollama_chat("m", [], stream=False), ValueError, "ollama_chat always streams"),
        (lambda: ollama_chat("m", [], timeout=0), ValueError, "timeout is 0"),
        (lambda: gemini_chat("m", {"parts": []}), TypeError, "contents is a list"),
        (lambda: gemini_chat("../x", "Hi"), ValueError, "model is '../x'"),
        (lambda: gemini_chat("m?key=1", "Hi"), ValueError, "expected a name"),
        (lambda: gemini_chat("m", [], temperature=float("nan")), ValueError, "JSON"),
        (lambda: gemini_chat("m", [], tools=object()), TypeError, "JSON"),
    ],
)
def test_what_cannot_be_asked(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_tokens_of_a_plain_script_are_openais(upstream):
    upstream.script = [tokens("a"), raw(b"data: [DONE]\n\n")]
    assert list(ours("openai", upstream)) == [TextDelta("a")]
