"""The format ``openai``, as OpenAI's own SDK reads it, and this library's reader."""

from __future__ import annotations

import pytest
from dialects import ANSWER, TEXT, ends, items, read, texts, write
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.openai_format import OpenAIFormat
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder
from flask_llmstream.sansio.sse import HEARTBEAT, SSEDecoder
from flask_llmstream.testing.upstreams import raw

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def complete(upstream, openai_client):
    """Return a function that has the SDK put together what was written."""
    if not hasattr(openai_client.chat.completions, "stream"):
        pytest.skip("this stack's openai SDK does not put completions together")

    def complete(written):
        upstream.script = [raw(written)]
        with openai_client.chat.completions.stream(model="any", messages=MESSAGES) as stream:
            return stream.get_final_completion()

    return complete


def test_the_sdk_makes_the_same_message_of_it(complete):
    written = write(OpenAIFormat("chatcmpl-7", "my-model", 1700000000), ANSWER, "tool_calls")
    completion = complete(written)
    assert (completion.id, completion.model, completion.created) == ("chatcmpl-7", "my-model", 1700000000)
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    message = choice.message
    assert (message.role, message.content) == ("assistant", TEXT)
    assert message.reasoning_content == "Let me see."
    assert {call.type for call in message.tool_calls} == {"function"}
    assert [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls] == [
        ("call_a", "look_up", '{"city": "Berlin"}'),
        ("call_b", "now", "{}"),
    ]
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (11, 20, 31)
    assert usage.prompt_tokens_details.cached_tokens == 3
    assert usage.completion_tokens_details.reasoning_tokens == 5


def test_the_sdk_reads_each_piece_and_passes_heartbeats_over(upstream, openai_client):
    wire = OpenAIFormat()
    heartbeat = wire.heartbeat
    assert heartbeat == HEARTBEAT
    frames = [wire.encode(item) for item in ("a", e.Comment("still here"), "b")] + [wire.done("length")]
    upstream.script = [raw(heartbeat + frame) for frame in frames]
    with openai_client.chat.completions.create(model="any", messages=MESSAGES, stream=True) as stream:
        chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.content for delta in deltas] == ["", "a", "b", None]
    assert [delta.role for delta in deltas] == ["assistant", None, None, None]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, "length"]
    assert {chunk.id for chunk in chunks} == {"chatcmpl-llmstream"}


@pytest.mark.parametrize(
    "source",
    [
        pytest.param([e.ToolCallDelta(0, "a", "f", "1"), e.ToolCallDelta(0, "b", "g", "2")], id="one-index"),
        pytest.param([e.ToolCallDelta(3, "a", "f", "1"), e.ToolCallDelta(7, "b", "g", "2")], id="gaps"),
        pytest.param(
            [e.ToolCallDelta(0, "a"), e.ToolCallDelta(1, "b", "g"), e.ToolCallDelta(0, None, "f", "1"),
             e.ToolCallDelta(1, None, None, "2")],
            id="mixed",
        ),
    ],
)
def test_calls_are_kept_apart(complete, source):
    """The SDK puts calls into a list by their index, and ids together that share one."""
    calls = complete(write(OpenAIFormat(), source, "tool_calls")).choices[0].message.tool_calls
    found = {(call.id, call.function.name, call.function.arguments) for call in calls}
    assert found == {("a", "f", "1"), ("b", "g", "2")}


def test_calls_without_ids_get_some(complete):
    source = [e.ToolCallDelta(0, None, "f", "{}"), e.ToolCallDelta(1, None, None, "[]")]
    message = complete(write(OpenAIFormat("x"), source, "tool_calls")).choices[0].message
    calls = [(call.id, call.function.name) for call in message.tool_calls]
    assert calls == [("call_x_0", "f"), ("call_x_1", "")]
    assert message.tool_calls[1].function.arguments == "[]"
    assert message.content is None, "no text is not an empty text"


def test_a_call_whose_name_never_comes_is_not_lost(complete):
    source = [e.ToolCallDelta(0, "a", None, "1"), e.ToolCallDelta(0, "b", "g", "2")]
    calls = complete(write(OpenAIFormat(), source, "tool_calls")).choices[0].message.tool_calls
    found = [(call.id, call.function.name, call.function.arguments) for call in calls]
    assert found == [("a", "", "1"), ("b", "g", "2")]


def test_an_id_that_comes_late_is_no_other_call():
    source = [e.ToolCallDelta(0, None, "f", "1"), e.ToolCallDelta(0, "late", "f", "2")]
    calls = [
        call
        for _, data in read(write(OpenAIFormat("x"), source, "tool_calls"))[1:-2]
        for call in data["choices"][0]["delta"]["tool_calls"]
    ]
    assert [call.get("id") for call in calls] == ["call_x_0", None, None]
    assert {call["index"] for call in calls} == {0}


@pytest.mark.parametrize(
    "reason, sent",
    [(each, each) for each in ("stop", "length", "tool_calls", "content_filter")]
    + [("other", "stop"), ("cancelled", "stop")],
)
def test_reasons(upstream, openai_client, reason, sent):
    upstream.script = [raw(write(OpenAIFormat(), ["a"], reason))]
    with openai_client.chat.completions.create(model="any", messages=MESSAGES, stream=True) as stream:
        assert list(stream)[-1].choices[0].finish_reason == sent


def test_usage_where_half_of_it_is_known():
    usage = read(write(OpenAIFormat(), [], usage=e.Usage(None, 4)))[-2][1]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": None, "completion_tokens": 4, "total_tokens": None}


def test_an_error_is_raised_by_the_sdk(upstream, openai_client):
    openai = pytest.importorskip("openai")
    upstream.script = [raw(write(OpenAIFormat(), ["some", b"\xc3"], None))]
    said = []
    with pytest.raises(openai.APIError) as raised:
        for chunk in openai_client.chat.completions.create(model="any", messages=MESSAGES, stream=True):
            said.append(chunk.choices[0].delta.content)
    assert said == ["", "some", "\ufffd"]
    assert raised.value.message == "it broke"
    assert raised.value.code == "upstream_rate_limited"
    assert raised.value.type == "rate_limit_error"


@pytest.mark.parametrize(
    "code, type",
    [
        ("upstream_rate_limited", "rate_limit_error"),
        ("upstream_rejected", "invalid_request_error"),
        ("upstream_timeout", "timeout_error"),
        ("timeout", "timeout_error"),
        ("upstream_unavailable", "overloaded_error"),
        ("shutdown", "overloaded_error"),
        ("upstream_auth", "api_error"),
        ("internal_error", "api_error"),
    ],
)
def test_types_of_errors(code, type):
    error = {"message": "it broke", "type": type, "param": None, "code": code}
    assert read(OpenAIFormat().failed("it broke", code, True)) == [(None, {"error": error}), (None, "[DONE]")]


def test_what_has_no_word_is_left_out():
    wire = OpenAIFormat()
    for item in ({"a": 1}, [1], e.JsonDelta("/a", "add", 1), e.Custom("x", 1), e.Event("x"), e.Finish(), "",
                 e.TextDelta(""), e.ReasoningDelta(""), e.Usage(1, 1)):
        assert wire.encode(item) == b""
    with pytest.raises(TypeError, match="a float cannot be sent"):
        wire.encode(1.5)


def decode(written):
    sse, decoder = SSEDecoder(), ChatChunkDecoder()
    return [delta for event in sse.feed(written) + sse.flush() for delta in decoder.feed_event(event)]


whole_calls = st.lists(st.lists(texts, max_size=3), max_size=3).map(
    lambda calls: [
        piece
        for index, arguments in enumerate(calls)
        for piece in [e.ToolCallDelta(index, f"id{index}", "name")]
        + [e.ToolCallDelta(index, arguments=text) for text in arguments]
    ]
)


@given(
    st.lists(st.builds(e.TextDelta, texts) | st.builds(e.ReasoningDelta, texts)),
    whole_calls,
    st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
    st.none() | st.builds(e.Usage, *[st.none() | st.integers(0, 99)] * 4),
)
def test_reading_gives_what_was_written(deltas, calls, reason, usage):
    written = write(OpenAIFormat(), deltas + calls, reason, usage)
    end = [e.Finish(reason)] + ([] if usage is None else [usage])
    assert decode(written) == deltas + calls + end


@given(items, ends)
def test_whatever_comes_the_chunks_are_chunks(source, reason):
    *chunks, done = read(write(OpenAIFormat(), source, reason))
    assert done[1] == "[DONE]"
    opened = set()
    for number, (name, chunk) in enumerate(chunks):
        if "error" in chunk:
            assert reason is None and number == len(chunks) - 1
            continue
        for choice in chunk["choices"]:
            assert (choice["delta"].get("role") == "assistant") is (number == 0)
            for call in choice["delta"].get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(opened)
                    opened.add(call["index"])
                    assert call["type"] == "function" and call["id"] and "name" in call["function"]
                assert call["index"] in opened
