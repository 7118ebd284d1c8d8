"""What applications call already, as sources: the same deltas, the same errors, the same end."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import warnings

import pytest
import requests

from flask_llmstream.exceptions import UpstreamError, UpstreamInterrupted, UpstreamTimeout
from flask_llmstream.sansio.events import Finish, TextDelta, ToolCallDelta, Usage
from flask_llmstream.testing.upstreams import (
    chunk,
    close_delimited,
    cut,
    done,
    headers,
    hold,
    invalid_utf8,
    raw,
    reset,
    silence,
    status,
    tokens,
    wait,
)
from flask_llmstream.upstream import adapt, openai_chat
from flask_llmstream.upstream.foreign import foreign_error

BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "stream": True}
PLAIN = headers({"Content-Type": "text/plain"})


@pytest.fixture
def post(upstream):
    """Return a function that has a script run and returns the adapted ``requests.Response``."""

    def post(*script, timeout=5, stream=True):
        upstream.script = script
        url = upstream.url + "/chat/completions"
        return adapt(requests.post(url, json=BODY, stream=stream, timeout=timeout))

    return post


@pytest.fixture(scope="module")
def openai():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old SDKs on new Pythons
        return pytest.importorskip("openai")


@pytest.fixture
def client(openai, upstream):
    client = openai.OpenAI(base_url=upstream.url, api_key="sk-12345678", max_retries=0, timeout=5)
    yield client
    client.close()


@pytest.fixture
def sdk(client, upstream):
    """Return a function that has a script run and returns the SDK's adapted stream."""

    def sdk(*script):
        upstream.script = script
        return adapt(client.chat.completions.create(**BODY, stream_options={"include_usage": True}))

    return sdk


@pytest.fixture(params=["requests", "openai"])
def either(request):
    return request.getfixturevalue("post" if request.param == "requests" else "sdk")


def failure(source):
    received = []
    with pytest.raises(UpstreamError) as caught:
        for item in source:
            received.append(item)
    assert caught.value.deltas_sent == len(received)
    assert source.closed
    return received, caught.value


def test_an_answer(either, upstream):
    source = either(tokens("Hel", "lo"), done(usage=True))
    assert list(source) == [TextDelta("Hel"), TextDelta("lo"), Finish("stop"), Usage(7, 2)]
    assert (source.finish_reason, source.usage) == ("stop", Usage(7, 2))


def test_tool_calls(either):
    source = either(
        chunk({"choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": ""}}]}}]}),
        chunk({"choices": [{"index": 0, "delta": {"tool_calls": [
            {"index": 0, "function": {"arguments": "{}"}}]}}]}),
        done(usage=False, finish_reason="tool_calls"),
    )
    pieces = [ToolCallDelta(0, "x", "f"), ToolCallDelta(0, None, None, "{}")]
    assert list(source) == [*pieces, Finish("tool_calls")]


def test_tokens_come_as_they_are_sent(either):
    flag = threading.Event()
    source = either(tokens("a"), hold(flag), tokens("b"), done())
    assert next(source) == TextDelta("a")
    flag.set()
    assert next(source) == TextDelta("b")
    source.close()


def test_close_closes_what_was_adapted(either, upstream):
    source = either(tokens("a"), silence())
    assert next(source) == TextDelta("a")
    source.close()
    assert list(source) == []
    upstream.wait_closed()


def test_close_before_the_first_next_closes_it_as_well(either, upstream):
    """The application has opened the connection already."""
    source = either(tokens("a"), silence())
    source.close()
    upstream.wait_closed()


def test_close_from_another_thread_wakes_a_blocked_next(either, upstream):
    source = either(tokens("a"), silence())
    assert next(source) == TextDelta("a")
    timer = threading.Timer(0.1, source.close)
    timer.start()
    assert list(source) == []
    timer.join()
    upstream.wait_closed()


@pytest.mark.parametrize("end", [[cut()], [wait(0.05), reset()], []], ids=["fin", "rst", "clean-end"])
@pytest.mark.parametrize("start", [[], [close_delimited]], ids=["chunked", "close-delimited"])
def test_a_cut_answer(either, start, end):
    """The SDK itself calls a close-delimited one complete."""
    received, error = failure(either(*start, tokens("a"), *end))
    assert received == [TextDelta("a")]
    assert isinstance(error, UpstreamInterrupted)
    assert error.code == "upstream_interrupted"


@pytest.mark.parametrize(
    "fault, code",
    [
        (invalid_utf8(), "upstream_invalid"),
        (raw(b"data: {broken\n\n"), "upstream_invalid"),
        (chunk({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}), "upstream_rate_limited"),
        (chunk({"error": {"message": "broken", "code": 500}}), "upstream_unavailable"),
    ],
)
def test_faults_inside_the_answer(either, fault, code):
    received, error = failure(either(tokens("a"), wait(0.05), fault, silence()))
    assert received == [TextDelta("a")]
    assert error.code == code


def test_silence_inside_the_answer(upstream, post, openai):
    _, error = failure(post(tokens("a"), silence(), timeout=0.8))
    assert isinstance(error, UpstreamTimeout)
    client = openai.OpenAI(base_url=upstream.url, api_key="none", timeout=0.8, max_retries=0)
    _, error = failure(adapt(client.chat.completions.create(**BODY)))
    assert isinstance(error, UpstreamTimeout)
    client.close()


def test_a_refusal_that_requests_has_taken_for_an_answer(post, upstream):
    _, error = failure(post(status(429, headers={"Retry-After": "3"})))
    assert (error.code, error.retry_after, error.status) == ("upstream_rate_limited", 3.0, 429)


def test_a_refusal_says_nothing_that_was_sent(post):
    _, error = failure(post(status(400, json={"error": {"message": "bad content 'Hello'"}})))
    assert "Hello" not in str(error)


def test_a_response_is_opened_by_the_application_and_so_is_its_error(openai, client, upstream):
    """adapt() comes too late for what create() raises."""
    upstream.script = [status(401)]
    with pytest.raises(openai.AuthenticationError):
        client.chat.completions.create(**BODY)


@pytest.mark.parametrize(
    "kind, body, text",
    [
        ("text/plain", "grüße".encode(), "grüße"),
        ("text/plain; charset=utf-8", "grüße".encode(), "grüße"),
        ("text/plain; charset=ISO-8859-1", "grüße".encode("latin-1"), "grüße"),
        ("text/plain; charset=no-such", b"plain", "plain"),
        ("application/json", b'{"a": 1}', '{"a": 1}'),
        ("", b"plain", "plain"),
    ],
)
def test_any_other_body_is_text(post, kind, body, text):
    source = post(headers({"Content-Type": kind}), *[raw(body[i : i + 1]) for i in range(len(body))])
    deltas = list(source)
    assert all(isinstance(delta, TextDelta) and delta.text for delta in deltas)
    assert "".join(delta.text for delta in deltas) == text


def test_text_comes_as_it_is_sent(post):
    flag = threading.Event()
    source = post(PLAIN, raw(b"a\xc3"), hold(flag), raw(b"\xbcb"))
    assert next(source) == TextDelta("a")
    flag.set()
    assert "".join(delta.text for delta in source) == "üb"


@pytest.mark.parametrize(
    "end, code",
    [
        ([raw(b"\xff")], "upstream_invalid"),
        ([raw(b"\xc3")], "upstream_invalid"),
        ([wait(0.05), cut()], "upstream_interrupted"),
        ([silence()], "upstream_timeout"),
    ],
)
def test_faults_inside_a_text(post, end, code):
    received, error = failure(post(PLAIN, raw(b"a"), wait(0.05), *end, timeout=0.8))
    assert received == [TextDelta("a")]
    assert error.code == code


def test_a_response_that_was_loaded(post):
    assert list(post(tokens("a"), done(), stream=False)) == [TextDelta("a"), Finish("stop")]
    assert list(post(PLAIN, raw(b"a"), stream=False)) == [TextDelta("a")]


@pytest.mark.parametrize("body", [None, b"no json", b"[]", b"{}", io.BytesIO(b"{}")])
def test_a_response_to_a_request_of_another_shape(upstream, body):
    upstream.script = [status(400)]
    url = upstream.url + "/chat/completions"
    response = requests.request("POST", url, data=body, stream=True)
    _, error = failure(adapt(response))
    assert error.code == "upstream_rejected"


def test_a_response_without_a_request(post):
    """As test doubles make them."""
    source = post(status(400))
    source._source.request = None
    _, error = failure(adapt(source._source))
    assert error.code == "upstream_rejected"


def test_the_sdks_stream_helper(client, upstream):
    upstream.script = [tokens("a", "b"), done()]
    helper = getattr(client.chat.completions, "stream", None)
    if helper is None:
        pytest.skip("this SDK is older than its stream helper")
    with helper(model="m", messages=BODY["messages"]) as stream:
        source = adapt(stream)
        assert list(source) == [TextDelta("a"), TextDelta("b"), Finish("stop")]


def test_another_kind_of_the_sdks_streams(client, upstream):
    """Its text would be lost."""
    piece = {"object": "text_completion", "choices": [{"index": 0, "text": "a"}]}
    upstream.script = [chunk(piece), silence()]
    source = adapt(client.completions.create(model="m", prompt="Hello", stream=True))
    with pytest.raises(TypeError, match="no piece of a chat"):
        next(source)
    upstream.wait_closed()


def test_an_iterable_with_close_is_passed_through():
    closed = []

    def tokens():
        try:
            yield "a"
            yield {"any": "thing"}
            yield "b"
        finally:
            closed.append(True)

    source = adapt(tokens())
    assert next(source) == "a"
    assert next(source) == {"any": "thing"}
    source.close()
    assert closed == [True]
    assert list(source) == []
    assert list(adapt(tokens())) == ["a", {"any": "thing"}, "b"]


def test_errors_of_an_iterable_are_its_own():
    def failing():
        yield "a"
        raise KeyError("b")

    source = adapt(failing())
    assert next(source) == "a"
    with pytest.raises(KeyError):
        next(source)
    assert source.closed


def test_what_an_iterable_has_ready_is_passed_on(upstream):
    class Replay:
        ready = 3

        def __iter__(self):
            return iter("abc")

        def close(self):
            self.ready = 0

    source = adapt(Replay())
    assert source.ready == 3
    source.close()
    assert source.ready == 0


@pytest.fixture
def foreign(openai):
    """Return a function that makes the SDK's exceptions as it makes them itself."""
    try:
        import httpx2 as httpx
    except ImportError:  # openai 1 and 2
        import httpx
    request = httpx.Request("POST", "http://host/v1/chat/completions")

    def foreign(name, **details):
        if name in ("APIConnectionError", "APITimeoutError"):
            return getattr(openai, name)(request=request)
        if name == "APIError":
            return openai.APIError("it broke", request, body=details["body"])
        if name == "APIStatusError":
            headers = {"retry-after": "4"}
            response = httpx.Response(429, headers=headers, request=request)
            return openai.RateLimitError("slow down", response=response, body=details["body"])
        return getattr(httpx, name)("it broke")

    return foreign


@pytest.mark.parametrize(
    "name, details, expected",
    [
        ("APIConnectionError", {}, ("upstream_interrupted", True)),
        ("APITimeoutError", {}, ("upstream_timeout", True)),
        ("APIError", {"body": {"message": "x", "code": "server_error"}}, ("upstream_unavailable", True)),
        ("APIError", {"body": None}, ("upstream_error", False)),
        ("APIStatusError", {"body": {"message": "slow down"}}, ("upstream_rate_limited", True)),
        ("APIStatusError", {"body": None}, ("upstream_rate_limited", True)),
        ("ReadTimeout", {}, ("upstream_timeout", True)),
        ("RemoteProtocolError", {}, ("upstream_interrupted", True)),
    ],
)
def test_errors_of_the_sdk_and_of_its_http_library(foreign, name, details, expected):
    error = foreign(name, **details)
    mapped = foreign_error(error, "it", 3)
    assert (mapped.code, mapped.retryable) == expected
    assert mapped.original_error is error
    if name == "APIStatusError":
        assert (mapped.status, mapped.retry_after) == (429, 4.0)


def test_errors_of_the_system_below_an_sdk():
    assert foreign_error(ConnectionResetError(), "it", 0).code == "upstream_interrupted"
    assert foreign_error(KeyError("a bug"), "it", 0) is None


def test_a_fault_of_the_sdk_is_not_hidden(sdk):
    source = sdk(tokens("a"), silence())
    assert next(source) == TextDelta("a")

    def broken(*_):
        raise ZeroDivisionError

    source._iterator = iter(broken, None)
    with pytest.raises(ZeroDivisionError):
        next(source)
    assert source.closed


def test_a_chunk_that_is_not_valid(sdk):
    received, error = failure(sdk(tokens("a"), wait(0.05), chunk({"choices": [{"delta": {"content": 7}}]})))
    assert received == [TextDelta("a")]
    assert error.code == "upstream_invalid"


def test_chunks_on_pydantic_1(sdk):
    """Its models know no argument to keep quiet."""

    class Chunk:
        __module__ = "openai.types"

        def model_dump(self):
            return {"choices": [{"delta": {"content": "a"}, "finish_reason": "stop"}]}

    source = sdk(silence())
    source._iterator = iter([Chunk()])
    assert list(source) == [TextDelta("a"), Finish("stop")]


def test_our_own_sources_need_no_adapting(upstream):
    call = openai_chat("m", BODY["messages"], base_url=upstream.url)
    assert adapt(call) is call


class Asynchronous:
    def __aiter__(self):
        raise NotImplementedError

    def close(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "obj, hint",
    [
        (7, "builtins.int"),
        (None, "NoneType"),
        ("text", "use it as it is"),
        (["a"], "use it as it is"),
        (Asynchronous(), "synchronous client"),
        (open, "builtin_function"),
    ],
)
def test_anything_else_is_refused_and_told_what_is_known(obj, hint):
    with pytest.raises(TypeError) as caught:
        adapt(obj)
    assert hint in str(caught.value)
    assert "requests.Response" in str(caught.value)


def test_what_was_adapted_and_never_read_is_left_alone_when_the_source_is_dropped(upstream):
    response = requests.get(upstream.url, stream=True)
    adapt(response)
    assert b"Hello" in next(response.iter_content(None))
    response.close()


def test_no_sdk_is_imported_to_recognise_one():
    code = (
        "import sys; from flask_llmstream.upstream import adapt, openai_chat; adapt(x for x in 'a')\n"
        "print([name for name in ('openai', 'httpx', 'httpx2', 'anthropic', 'flask', 'gevent')"
        " if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True)
    assert result.stdout.strip() == b"[]"


def test_the_package_names_what_it_has():
    import flask_llmstream.upstream as package

    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert callable(getattr(package, name)) and getattr(package, name).__doc__
    with pytest.raises(AttributeError, match="no_such"):
        package.no_such
