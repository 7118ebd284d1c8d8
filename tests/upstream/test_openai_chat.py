"""A call to a server that speaks OpenAI's protocol: what it sends, what it reads, how it ends."""

from __future__ import annotations

import json
import logging
import threading
import time

import pytest
import requests

from flask_llmstream.exceptions import ConfigurationError, UpstreamInterrupted, UpstreamTimeout
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.testing.upstreams import (
    ScriptedUpstream,
    chunk,
    close_delimited,
    cut,
    delay_headers,
    done,
    flood,
    hold,
    raw,
    reset,
    silence,
    status,
    tokens,
    wait,
)
from flask_llmstream.upstream import openai_chat

MESSAGES = [{"role": "user", "content": "Hello"}]


def texts(deltas):
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))


def test_an_answer(ask):
    call = ask(tokens("Hel", "lo, ", "wörld 你好"), done())
    assert list(call) == [
        TextDelta("Hel"),
        TextDelta("lo, "),
        TextDelta("wörld 你好"),
        Finish("stop"),
        Usage(7, 3),
    ]
    assert call.usage == Usage(7, 3)
    assert call.finish_reason == "stop"
    assert call.closed
    assert list(call) == [], "the end is the end"


def test_the_request(upstream):
    call = openai_chat(
        "some-model",
        iter([{"role": "user", "content": "Grüße"}]),
        base_url=upstream.url + "/",
        api_key="sk-secret\n",
        headers={"X-Trace": "7", "User-Agent": "mine"},
        temperature=0.5,
        stop=["\n"],
    )
    list(call)
    request = upstream.exchanges[0]
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert request.json == {
        "model": "some-model",
        "messages": [{"role": "user", "content": "Grüße"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "stop": ["\n"],
    }
    sent = request.headers
    assert sent["authorization"] == "Bearer sk-secret"
    assert sent["content-type"] == "application/json"
    assert sent["accept-encoding"] == "identity"
    assert sent["accept"].startswith("text/event-stream")
    assert sent["user-agent"] == "mine"
    assert sent["x-trace"] == "7"


@pytest.mark.parametrize(
    "options, sent",
    [
        ({}, {"include_usage": True}),
        ({"include_usage": False}, None),
        ({"stream_options": {"a": 1}}, {"include_usage": True, "a": 1}),
        ({"stream_options": {"include_usage": False}}, {"include_usage": False}),
        ({"include_usage": False, "stream_options": {"a": 1}}, {"a": 1}),
    ],
)
def test_usage_is_asked_for_unless_told_otherwise(ask, upstream, options, sent):
    list(ask(tokens("a"), done(), **options))
    assert upstream.exchanges[0].json.get("stream_options") == sent


def test_key_and_address_come_from_the_environment_when_the_call_is_made(upstream, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", upstream.url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    call = openai_chat("m", MESSAGES)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/elsewhere")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    assert texts(call) == "Hello, world!"
    assert upstream.exchanges[0].headers["authorization"] == "Bearer sk-environment"


def test_without_a_key_none_is_sent_not_even_that_of_netrc(ask, upstream, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    list(ask(tokens("a"), done()))
    list(ask(tokens("a"), done(), api_key="sk-1"))
    list(ask(tokens("a"), done(), api_key="sk-1", headers={"Authorization": "Basic eA=="}))
    sent = [each.headers.get("authorization") for each in upstream.exchanges]
    assert sent == [None, "Bearer sk-1", "Basic eA=="]


def test_the_address_defaults_to_openais():
    assert "https://api.openai.com/v1/chat/completions" in repr(openai_chat("m", MESSAGES))


@pytest.mark.parametrize(
    "base_url, path",
    [
        ("", "/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("/openai/deployments/d?api-version=1", "/openai/deployments/d/chat/completions?api-version=1"),
    ],
)
def test_where_a_base_url_leads(upstream, base_url, path):
    list(openai_chat("m", MESSAGES, base_url=f"http://127.0.0.1:{upstream.port}{base_url}"))
    assert upstream.exchanges[0].path == path


@pytest.mark.parametrize("base_url", ["localhost:8080", "ftp://host/v1", "/v1", "http://"])
def test_an_address_that_cannot_be_called_is_refused_at_once(base_url, monkeypatch):
    with pytest.raises(ValueError, match="base_url .* expected an http"):
        openai_chat("m", MESSAGES, base_url=base_url)
    monkeypatch.setenv("OPENAI_BASE_URL", base_url)
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL"):
        openai_chat("m", MESSAGES)


@pytest.mark.parametrize(
    "messages, options, error",
    [
        ("Hello", {}, TypeError),
        ({"role": "user"}, {}, TypeError),
        ([object()], {}, TypeError),
        (MESSAGES, {"temperature": float("nan")}, ValueError),
        (MESSAGES, {"stream": False}, ValueError),
        (MESSAGES, {"n": 2}, ValueError),
        (MESSAGES, {"timeout": 0}, ValueError),
        (MESSAGES, {"timeout": (1, 2, 3)}, ValueError),
        (MESSAGES, {"timeout": (1, -1)}, ValueError),
        (MESSAGES, {"api_key": "schlüssel"}, ValueError),
        (MESSAGES, {"api_key": "two\nlines"}, ValueError),
    ],
)
def test_bad_arguments_are_refused_at_once(messages, options, error):
    with pytest.raises(error) as caught:
        openai_chat("m", messages, base_url="http://127.0.0.1:9", **options)
    assert "schlüssel" not in str(caught.value) and "two" not in str(caught.value)


def test_stream_true_and_one_answer_are_what_happens_anyway(ask, upstream):
    list(ask(tokens("a"), done(), stream=True, n=1))
    assert upstream.exchanges[0].json["n"] == 1


def test_nothing_is_sent_before_the_first_next(ask, upstream):
    call = ask(tokens("a"), done())
    assert "not started" in repr(call)
    call.close()
    assert list(call) == []
    assert upstream.connections == 0


def test_tokens_come_as_they_are_sent(ask):
    flag = threading.Event()
    call = ask(tokens("a"), hold(flag), tokens("b"), done())
    assert next(call) == TextDelta("a")
    assert call.ready == 0
    assert "open" in repr(call)
    flag.set()
    assert texts(call) == "b"
    assert "closed" in repr(call)


def test_ready_counts_what_can_be_had_without_waiting(ask, upstream):
    call = ask(flood(20, "x", burst=20), silence())
    assert call.ready == 0
    assert next(call) == TextDelta("x")
    left = 19
    while left:
        for _ in range(call.ready):
            assert next(call) == TextDelta("x")
            left -= 1
        if left:
            next(call)
            left -= 1
    assert call.ready == 0
    call.close()
    upstream.wait_closed()


def test_a_burst_is_decoded_at_once(ask, upstream):
    call = ask(flood(40, "x", burst=40), done())
    ready = []
    for _ in call:
        ready.append(call.ready)
    assert max(ready) >= 20


def test_five_answers_use_one_connection(ask, upstream):
    for _ in range(5):
        # The end of the body comes later than [DONE], as most servers send it.
        assert texts(ask(tokens("a", "b"), done(), wait(0.01))) == "ab"
    assert upstream.requests == 5
    assert upstream.connections == 1


def test_a_server_that_keeps_the_body_open_after_done_is_not_waited_for(ask, upstream):
    call = ask(tokens("a"), done(), silence())
    started = time.monotonic()
    assert texts(call) == "a"
    assert time.monotonic() - started < 10
    upstream.wait_closed()


def test_what_follows_done_does_not_count(ask, upstream):
    call = ask(tokens("a"), done(), tokens("b"), raw(b"data: {broken\n\n"))
    assert texts(call) == "a"


def test_a_server_that_never_sends_done_is_not_waited_for_long(ask, upstream, monkeypatch):
    monkeypatch.setattr("flask_llmstream.upstream.answer._LAST_SECONDS", 0.1)
    call = ask(tokens("a"), done(marker=False), silence())
    assert list(call) == [TextDelta("a"), Finish("stop"), Usage(7, 1)]
    upstream.wait_closed()


@pytest.mark.parametrize(
    "end",
    [
        pytest.param([done(marker=False)], id="no-done"),
        pytest.param([done(finish_reason=None)], id="no-finish-reason"),
        pytest.param([done(marker=False), cut()], id="cut-after-finish-reason"),
        pytest.param([done(marker=False), wait(0.05), reset()], id="reset-after-finish-reason"),
    ],
)
@pytest.mark.parametrize("start", [[], [close_delimited]], ids=["chunked", "close-delimited"])
def test_either_sign_of_the_end_is_enough(ask, start, end):
    assert texts(ask(*start, tokens("a", "b"), *end)) == "ab"


def test_every_kind_of_delta(ask):
    call = ask(
        chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]}),
        chunk({"choices": [{"index": 0, "delta": {"reasoning_content": "Hm."}}]}),
        chunk({"choices": []}),
        raw(b": a comment\n\n"),
        chunk({"choices": [{"delta": {"tool_calls": [{"index": 0, "id": "t", "function": {"name": "f"}}]}}]}),
        chunk({"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]}),
        done(usage=False, finish_reason="tool_calls"),
    )
    assert list(call) == [
        ReasoningDelta("Hm."),
        ToolCallDelta(0, "t", "f"),
        ToolCallDelta(0, None, None, "{}"),
        Finish("tool_calls"),
    ]
    assert call.usage is None


def test_usage_is_known_even_where_the_answer_is_cut(ask):
    piece = {"choices": [{"index": 0, "delta": {"content": "a"}}], "usage": {"completion_tokens": 1}}
    call = ask(chunk(piece), cut())
    with pytest.raises(UpstreamInterrupted):
        list(call)
    assert call.usage == Usage(None, 1)


def test_a_server_that_does_not_stream(ask, upstream):
    completion = {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "All at once.", "tool_calls": None},
                "finish_reason": "length",
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3},
    }
    for _ in range(2):
        call = ask(status(200, json=completion))
        assert list(call) == [TextDelta("All at once."), Finish("length"), Usage(5, 3)]
    assert upstream.connections == 1


def test_tool_calls_of_a_server_that_does_not_stream(ask):
    calls = [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"id": "y", "type": "function", "function": {"name": "g", "arguments": "[]"}},
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    call = ask(status(200, json={"choices": [{"message": message, "finish_reason": "tool_calls"}]}))
    assert list(call)[:2] == [ToolCallDelta(0, "x", "f", "{}"), ToolCallDelta(1, "y", "g", "[]")]


def test_a_missing_content_type_is_taken_for_an_event_stream(ask):
    body = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'
    assert texts(ask(status(200, headers={"Content-Type": ""}, body=body))) == "a"


def test_a_session_of_ones_own(upstream):
    with requests.Session() as session:
        session.headers["X-Mine"] = "yes"
        session.auth = ("user", "password")
        assert texts(openai_chat("m", MESSAGES, base_url=upstream.url, session=session)) == "Hello, world!"
        list(openai_chat("m", MESSAGES, base_url=upstream.url, session=session, api_key="sk-1"))
    first, second = upstream.exchanges
    assert first.headers["x-mine"] == "yes"
    assert first.headers["authorization"].startswith("Basic ")
    assert second.headers["authorization"] == "Bearer sk-1"


@pytest.mark.parametrize("timeout", [5, 5.0, None, (None, 5), [5, 5]])
def test_ways_to_say_a_timeout(ask, timeout):
    assert texts(ask(tokens("a"), done(), timeout=timeout)) == "a"


def test_the_read_timeout_counts_from_byte_to_byte(ask):
    """An answer may take longer than the timeout, as long as it goes on; comments count."""
    # Each pause is much shorter, so that one on a busy machine is so, too; all together are longer.
    script = [tokens("a"), *[wait(0.2), raw(b": hb\n")] * 5, tokens("b"), done()]
    assert texts(ask(*script, timeout=(5, 0.9))) == "ab"


def test_close_while_reading_ends_the_call(ask, upstream):
    call = ask(tokens("a", "b"), silence())
    assert next(call) == TextDelta("a")
    call.close()
    call.close()
    assert list(call) == []
    upstream.wait_closed()


def test_as_a_context_manager(ask, upstream):
    with ask(tokens("a"), silence()) as call:
        assert next(call) == TextDelta("a")
    upstream.wait_closed()
    assert call.closed


@pytest.mark.parametrize("script", [[tokens("a"), silence()], [close_delimited, tokens("a"), silence()]])
def test_close_from_another_thread_wakes_a_blocked_next(ask, upstream, script):
    call = ask(*script)
    assert next(call) == TextDelta("a")
    closer = threading.Timer(0.1, call.close)
    closer.start()
    assert list(call) == []
    closer.join()
    upstream.wait_closed()


def test_close_while_the_answer_has_not_begun(ask, upstream):
    """The connection is not known yet; it is closed as soon as it is."""
    call = ask(delay_headers(0.3), tokens("a"), silence())
    closer = threading.Timer(0.1, call.close)
    closer.start()
    assert list(call) == []
    closer.join()
    upstream.wait_closed()


def test_dropping_a_call_closes_it(ask, upstream):
    call = ask(tokens("a"), silence())
    next(call)
    del call
    upstream.wait_closed()


def test_no_cookie_is_kept(upstream):
    upstream.script = [status(200, headers={"Set-Cookie": "who=somebody"}, json={"choices": []})]
    with pytest.raises(Exception):
        list(openai_chat("m", MESSAGES, base_url=upstream.url))
    upstream.script = [tokens("a"), done()]
    list(openai_chat("m", MESSAGES, base_url=upstream.url))
    assert "cookie" not in upstream.exchanges[1].headers


def test_many_calls_at_once_fill_no_log(upstream, caplog):
    """More connections come back than the pool keeps; urllib3 would warn about each."""
    flag = threading.Event()
    count = 150
    upstream.script = [tokens("a"), hold(flag), done()]
    answers = []
    threads = []
    with caplog.at_level(logging.WARNING):
        for _ in range(count):
            call = openai_chat("m", MESSAGES, base_url=upstream.url)
            thread = threading.Thread(target=lambda call=call: answers.append(texts(call)))
            thread.start()
            threads.append(thread)
        upstream.wait_for(lambda upstream: upstream.open_connections == count, 30)
        flag.set()
        for thread in threads:
            thread.join()
    assert answers == ["a"] * count
    assert caplog.records == []
    upstream.wait_for(lambda upstream: upstream.open_connections <= 128)


def test_a_timeout_before_the_status(ask, upstream):
    call = ask(delay_headers(), timeout=(5, 0.1))
    with pytest.raises(UpstreamTimeout) as caught:
        next(call)
    assert caught.value.deltas_sent == 0
    upstream.wait_closed()
    assert upstream.requests == 1, "nothing is retried"


def test_the_body_is_json_as_any_server_reads_it(ask, upstream):
    list(ask(tokens("a"), done(), stop="\ud800 half a pair"))
    assert json.loads(upstream.exchanges[0].body)["stop"] == "\ud800 half a pair"


def test_another_server_after_one_that_has_gone():
    """A pooled connection whose server was restarted is noticed before it is used."""
    with ScriptedUpstream() as first:
        list(openai_chat("m", MESSAGES, base_url=first.url))
        port = first.port
    with ScriptedUpstream(port=port) as second:
        assert texts(openai_chat("m", MESSAGES, base_url=second.url)) == "Hello, world!"
