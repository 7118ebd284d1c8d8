"""Streams of SDKs beyond their plainest: helpers, frameworks above them, and HTTP without an SDK."""

from __future__ import annotations

import contextlib
import threading

import pytest
import requests
from known_providers import CALLS, KEY, MESSAGES, client_of, sdk, sums

from flask_llmstream.exceptions import UpstreamError, UpstreamInterrupted
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.testing.upstreams import cut, hold, raw, silence, speak, status, wait
from flask_llmstream.upstream import adapt
from flask_llmstream.upstream.foreign import foreign_error

CALL = ToolCallDelta(0, "call_1", "weather", '{"city":"Köln"}')
every = pytest.mark.parametrize("provider", list(CALLS))


def answer(provider):
    return speak(provider, ReasoningDelta("Hm. "), "Hel", "lö", CALL, Finish("tool_calls"), Usage(7, 5))


def check(source, provider=None):
    said = sums(list(source))
    assert (said["text"], said["finish"]) == ("Hellö", ["tool_calls"])
    assert [call[1:] for call in said["calls"].values()] == [("weather", '{"city":"Köln"}')]
    assert (source.usage.input_tokens, source.usage.output_tokens) == (7, 5)
    assert not source.estimated
    return said


def httpx_of_this_stack():
    try:
        import httpx
    except ImportError:
        return pytest.importorskip("httpx2")
    return httpx


@every
def test_a_response_of_requests_is_recognised(upstream, provider):
    upstream.script = answer(provider)
    with requests.post(upstream.url, json={}, stream=True) as response:
        assert check(adapt(response))["reasoning"] == "Hm. "


@every
def test_a_response_of_httpx_is_recognised(upstream, provider):
    upstream.script = answer(provider)
    with httpx_of_this_stack().stream("POST", upstream.url, json={}) as response:
        assert check(adapt(response))["reasoning"] == "Hm. "


def test_faults_of_a_response_of_httpx(upstream):
    httpx = httpx_of_this_stack()

    def failure(*script, **options):
        upstream.script = script
        with httpx.stream("POST", upstream.url, json={"messages": MESSAGES}, **options) as response:
            with pytest.raises(UpstreamError) as caught:
                list(adapt(response))
        return caught.value

    error = failure(*speak("anthropic", "a", "b", wait(0.05), cut()))
    assert isinstance(error, UpstreamInterrupted) and error.deltas_sent == 2
    assert failure(*speak("ollama", "a", silence()), timeout=0.8).code == "upstream_timeout"
    said = {"error": {"message": f"cannot read: {MESSAGES[0]['content']}"}}
    error = failure(status(429, json=said, headers={"Retry-After": "3"}))
    assert (error.code, error.retry_after) == ("upstream_rate_limited", 3.0)
    assert "cannot read" in str(error) and "your name" not in str(error)


def test_what_of_httpx_cannot_be_adapted(upstream):
    httpx = httpx_of_this_stack()
    upstream.script = [status(200, json={})]
    with pytest.raises(TypeError, match="open and unread"):
        adapt(httpx.get(upstream.url))
    with httpx.stream("GET", upstream.url) as response:
        with pytest.raises(ValueError, match="iter_text"):
            adapt(response)


@contextlib.contextmanager
def helped(provider, upstream):
    """Yield what the SDK's helper for streams gives."""
    client = client_of(provider, upstream)[0]
    if provider == "anthropic":
        manager = client.messages.stream(model="m", messages=MESSAGES, max_tokens=9)
    else:
        manager = client.responses.stream(model="m", input="Hello")
    with manager as stream:
        yield stream


@pytest.mark.parametrize("provider", ["anthropic", "openai-responses"])
def test_the_helpers_for_streams(upstream, provider):
    upstream.script = answer(provider)
    with helped(provider, upstream) as stream:
        check(adapt(stream))


def test_the_texts_of_anthropics_helper(upstream):
    upstream.script = answer("anthropic")
    with helped("anthropic", upstream) as stream:
        assert list(adapt(stream.text_stream)) == ["Hel", "lö"]


def test_the_manager_itself_is_refused_with_a_way_out(upstream):
    client = client_of("anthropic", upstream)[0]
    with pytest.raises(TypeError, match="with statement"):
        adapt(client.messages.stream(model="m", messages=MESSAGES, max_tokens=9))


@every
def test_a_generator_of_the_application_around_an_sdks_stream(upstream, provider):
    upstream.script = answer(provider)
    ask = client_of(provider, upstream)[1]
    check(adapt(each for each in ask()))


@every
def test_tokens_that_the_sdk_has_read_are_not_lost_when_the_source_is_closed(upstream, provider):
    flag = threading.Event()
    upstream.script = speak(provider, "a", hold(flag), "b", silence())
    ask = client_of(provider, upstream)[1]
    source = adapt(ask())
    assert next(source) == TextDelta("a")
    source.close()
    flag.set()
    assert list(source) == []
    upstream.wait_closed()
    assert source.estimated and source.usage.output_tokens == 1


# -- LangChain ---------------------------------------------------------------------------------


def langchain(upstream, **options):
    model = sdk("langchain_openai").ChatOpenAI(
        model="scripted", base_url=upstream.url, api_key=KEY, max_retries=0, stream_usage=True, **options
    )
    return model


def test_langchain(upstream):
    upstream.script = answer("openai")
    source = adapt(langchain(upstream).stream("Hello"))
    check(source)


def test_langchain_over_the_responses_api(upstream):
    items = [ReasoningDelta("Hm. "), "Hel", "lö", Finish("stop"), Usage(7, 5)]
    upstream.script = speak("openai-responses", *items)
    source = adapt(langchain(upstream, use_responses_api=True).stream("Hello"))
    said = sums(list(source))
    assert (said["text"], said["reasoning"]) == ("Hellö", "Hm. ")
    assert (source.usage.input_tokens, source.usage.output_tokens) == (7, 5)


def test_a_chain_that_ends_in_texts(upstream):
    upstream.script = answer("openai")
    parsers = sdk("langchain_core.output_parsers")
    source = adapt((langchain(upstream) | parsers.StrOutputParser()).stream("Hello"))
    assert "".join(list(source)) == "Hellö"


def test_langchain_when_its_provider_fails(upstream):
    upstream.script = speak("openai", "a", wait(0.05), raw(b'data: {"error":{"message":"x","code":500}}\n\n'))
    source = adapt(langchain(upstream).stream("Hello"))
    with pytest.raises(UpstreamError) as caught:
        list(source)
    assert caught.value.code == "upstream_unavailable"
    upstream.script = [status(429)]
    with pytest.raises(UpstreamError) as caught:
        list(adapt(langchain(upstream).stream("Hello")))
    assert caught.value.code == "upstream_rate_limited"


def test_langchain_that_is_left_while_it_waits(upstream):
    upstream.script = speak("openai", "a", "b", silence())
    source = adapt(langchain(upstream).stream("Hello"))
    assert [next(source), next(source)] == [TextDelta("a"), TextDelta("b")]
    timer = threading.Timer(0.1, source.close)
    timer.start()
    assert list(source) == []
    timer.join()
    upstream.wait_closed()
    assert (source.usage, source.estimated) == (Usage(None, 2), True)


def test_langchains_content_blocks():
    """As its integrations for Anthropic and others make them."""
    chunk = sdk("langchain_core.messages").AIMessageChunk
    items = [
        chunk(content=[{"type": "thinking", "thinking": "Hm. "}, {"type": "text", "text": "Hel"}]),
        chunk(content=["lo", {"type": "image"}, {"type": "text", "text": ""}]),
        chunk(content=[{"type": "reasoning", "summary": [{"type": "summary_text", "text": "so"}]}]),
        chunk(content="", additional_kwargs={"reasoning_content": "!"}),
        chunk(
            content="",
            response_metadata={"stop_reason": "end_turn"},
            usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        ),
        chunk(content="", usage_metadata={"input_tokens": 0, "output_tokens": 3, "total_tokens": 3}),
    ]
    assert list(adapt(each for each in items)) == [
        ReasoningDelta("Hm. "), TextDelta("Hel"), TextDelta("lo"), ReasoningDelta("so"), ReasoningDelta("!"),
        Finish("stop"), Usage(1, 2), Usage(1, 5),
    ]


# -- LiteLLM -----------------------------------------------------------------------------------


class CustomStreamWrapper:
    """As LiteLLM's: an iterator without ``close()`` around the stream of another SDK."""

    __module__ = "litellm.litellm_core_utils.streaming_handler"

    def __init__(self, stream):
        self.completion_stream = stream

    def __iter__(self):
        return self

    def __next__(self):
        return ModelResponseStream(next(self.completion_stream))


class ModelResponseStream:
    __module__ = "litellm.types.utils"

    def __init__(self, chunk):
        self.chunk = chunk

    def model_dump(self, **options):
        return self.chunk.model_dump(**options)


def test_litellm(upstream):
    upstream.script = answer("openai")
    ask = client_of("openai", upstream)[1]
    check(adapt(CustomStreamWrapper(ask())))
    upstream.script = speak("openai", "a", silence())
    source = adapt(CustomStreamWrapper(ask()))
    assert next(source) == TextDelta("a")
    timer = threading.Timer(0.1, source.close)
    timer.start()
    assert list(source) == []
    timer.join()
    upstream.wait_closed()


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "provider, code, expected",
    [
        ("ollama", 404, "upstream_rejected"),
        ("ollama", 503, "upstream_unavailable"),
    ],
)
def test_refusals_that_come_with_the_first_item(upstream, provider, code, expected):
    upstream.script = [status(code, json={"error": "model 'm' not found"})]
    ask = client_of(provider, upstream)[1]
    with pytest.raises(UpstreamError) as caught:
        list(adapt(ask()))
    assert (caught.value.code, caught.value.status) == (expected, code)
    assert "not found" in str(caught.value)


def test_refusals_of_the_other_sdks():
    """They come from create(), but also through generators that call it late."""
    genai = sdk("google.genai.errors")
    error = genai.ClientError(429, {"error": {"message": "slow down", "status": "RESOURCE_EXHAUSTED"}})
    mapped = foreign_error(error, "it", 0)
    assert (mapped.code, mapped.status, mapped.original_error) == ("upstream_rate_limited", 429, error)
    assert "slow down" in str(mapped)
    httpx = httpx_of_this_stack()
    request = httpx.Request("GET", "http://host/")
    error = httpx.HTTPStatusError("no", request=request, response=httpx.Response(503, request=request))
    assert foreign_error(error, "it", 0).code == "upstream_unavailable"


def test_a_response_whose_first_events_tell_nothing(upstream):
    begin, *rest = speak("anthropic", "a", Finish("stop"))
    odd = [raw(b'data: {"type":"unheard.of"}\n\n'), raw(b"event: ping\ndata:\n\n")]
    upstream.script = [begin, *odd, *rest]
    deltas = list(adapt(requests.post(upstream.url, json={}, stream=True)))
    assert deltas[:2] == [TextDelta("a"), Finish("stop")]


@pytest.mark.parametrize(
    "event, code",
    [
        (b'data: {"error":{"message":"busy","type":"overloaded_error"}}\n\n', "upstream_unavailable"),
        (b"data: {broken\n\n", "upstream_invalid"),
    ],
)
def test_a_response_that_begins_with_a_fault(upstream, event, code):
    upstream.script = [raw(event), silence()]
    with pytest.raises(UpstreamError) as caught:
        list(adapt(requests.post(upstream.url, json={}, stream=True)))
    assert caught.value.code == code


def test_a_key_in_the_url_or_in_any_header_is_not_quoted(upstream):
    said = {"error": {"message": "API key not valid: abcdef-in-url, uvwxyz-in-header"}}
    upstream.script = [status(400, json=said)]
    response = requests.post(
        upstream.url + "?key=abcdef-in-url", headers={"x-goog-api-key": "uvwxyz-in-header"}, stream=True
    )
    with pytest.raises(UpstreamError) as caught:
        list(adapt(response))
    assert "not valid" in str(caught.value)
    assert "in-url" not in str(caught.value) and "in-header" not in str(caught.value)
