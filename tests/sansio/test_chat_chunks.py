"""The stream of an OpenAI-compatible chat completion, as many servers write it."""

from __future__ import annotations

import json

import pytest

from flask_llmstream.exceptions import DecodeError, UpstreamError
from flask_llmstream.sansio.events import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder
from flask_llmstream.sansio.sse import SSEDecoder


def chunk(delta=None, finish_reason=None, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return dict({"id": "c", "object": "chat.completion.chunk", "choices": [choice]}, **more)


def feed(*chunks):
    decoder = ChatChunkDecoder()
    deltas = []
    for each in chunks:
        deltas += decoder.feed_event(Event(each if isinstance(each, str) else json.dumps(each)))
    return decoder, deltas


def call(index=None, id=None, name=None, arguments=None, **more):
    fields = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return chunk({"tool_calls": [dict(fields, **more)]})


RECORDED = b"""\
: ping

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":\
[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":\
[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":\
[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}

data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[],\
"usage":{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10,\
"prompt_tokens_details":{"cached_tokens":4},"completion_tokens_details":{"reasoning_tokens":0}}}

data: [DONE]

data: {"choices":[{"index":0,"delta":{"content":"after the end"}}]}

"""


def test_whole_stream():
    decoder = ChatChunkDecoder()
    deltas = [delta for event in SSEDecoder().feed(RECORDED) for delta in decoder.feed_event(event)]
    usage = Usage(9, 1, reasoning_tokens=0, cached_tokens=4)
    assert deltas == [TextDelta("Hi"), Finish("stop"), usage]
    assert (decoder.done, decoder.finished, decoder.usage) == (True, "stop", usage)


@pytest.mark.parametrize(
    "fed, deltas",
    [
        pytest.param(chunk({"content": "a"}), [TextDelta("a")], id="content"),
        pytest.param(chunk({"role": "assistant", "content": None}), [], id="null-content"),
        pytest.param(chunk({"content": ""}), [], id="empty-content"),
        pytest.param(chunk({"refusal": "No."}), [TextDelta("No.")], id="refusal"),
        pytest.param(chunk({"content": None, "refusal": None}), [], id="null-refusal"),
        pytest.param(chunk(None), [], id="null-delta"),
        pytest.param(chunk({"reasoning_content": "hm"}), [ReasoningDelta("hm")], id="reasoning-content"),
        pytest.param(chunk({"reasoning": "hm"}), [ReasoningDelta("hm")], id="reasoning"),
        pytest.param(
            chunk({"reasoning": "hm", "reasoning_content": "hm"}), [ReasoningDelta("hm")],
            id="reasoning-twice",
        ),
        pytest.param(chunk({"reasoning": {"effort": 1}, "reasoning_content": ""}), [], id="odd-reasoning"),
        pytest.param(
            chunk({"content": "a", "reasoning": "hm"}), [ReasoningDelta("hm"), TextDelta("a")],
            id="reasoning-first",
        ),
        pytest.param(
            chunk({"content": "a"}, "stop"), [TextDelta("a"), Finish("stop")],
            id="finish-with-content",
        ),
        pytest.param({"choices": []}, [], id="no-choice"),
        pytest.param({"choices": None}, [], id="null-choices"),
        pytest.param({}, [], id="empty-object"),
        pytest.param({"choices": [None]}, [], id="null-choice"),
        pytest.param({"choices": [{}]}, [], id="empty-choice"),
        pytest.param({"choices": [{"delta": {"content": "a"}}]}, [TextDelta("a")], id="no-index"),
        pytest.param(
            {"choices": [{"index": 1, "delta": {"content": "b"}}, {"index": 0, "delta": {"content": "a"}}]},
            [TextDelta("a")],
            id="first-choice-only",
        ),
        pytest.param(
            chunk({"content": "a", "x": [1]}, x={"y": 1}, error=None), [TextDelta("a")], id="unknown-keys"
        ),
        pytest.param("", [], id="no-data"),
        pytest.param(" \n ", [], id="blank-data"),
    ],
)
def test_chunk(fed, deltas):
    assert feed(fed)[1] == deltas


@pytest.mark.parametrize(
    "said, reason",
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("eos", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("content_filter", "content_filter"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("something new", "other"),
    ],
)
def test_finish_reason_is_said_in_one_vocabulary(said, reason):
    decoder, deltas = feed(chunk({}, said))
    assert deltas == [Finish(reason)]
    assert decoder.finished == reason
    assert not decoder.done


@pytest.mark.parametrize("reason", [None, "", 5])
def test_no_finish_reason(reason):
    decoder, deltas = feed(chunk({}, reason))
    assert deltas == []
    assert decoder.finished is None


def test_finish_is_reported_once():
    assert feed(chunk({}, "length"), chunk({}, "stop"))[1] == [Finish("length")]


@pytest.mark.parametrize("end", [" [DONE] ", "[DONE]\n"])
def test_done_with_blanks_around(end):
    assert feed(end)[0].done


# -- usage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, usage",
    [
        pytest.param({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4), id="totals"),
        pytest.param({}, Usage(), id="empty"),
        pytest.param(
            {"prompt_tokens": None, "completion_tokens": "4", "prompt_tokens_details": None},
            Usage(),
            id="odd-types",
        ),
        pytest.param(
            {"prompt_tokens": True, "prompt_tokens_details": {"cached_tokens": 1.5}}, Usage(),
            id="no-ints",
        ),
    ],
)
def test_usage(fields, usage):
    assert feed({"choices": [], "usage": fields})[1] == [usage]


def test_usage_that_grows_with_each_chunk_is_reported_at_the_end():
    counted = [{"prompt_tokens": 1, "completion_tokens": n} for n in range(4)]
    decoder, deltas = feed(
        chunk({"content": "a"}, usage=counted[1]),
        chunk({"content": "b"}, usage=counted[2]),
        chunk({}, "stop", usage=counted[2]),
        {"choices": [], "usage": counted[2]},
        "[DONE]",
    )
    assert deltas == [TextDelta("a"), TextDelta("b"), Finish("stop"), Usage(1, 2)]


def test_usage_before_a_cut_can_be_seen():
    decoder, deltas = feed(chunk({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 1}))
    assert deltas == [TextDelta("a")]
    assert decoder.usage == Usage(1, 1)


def test_usage_without_a_finish_is_reported_by_done():
    fed = chunk({"content": "a"}, usage={"prompt_tokens": 1, "completion_tokens": 1})
    assert feed(fed, "[DONE]")[1] == [TextDelta("a"), Usage(1, 1)]


# -- tool calls -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunks, deltas",
    [
        pytest.param(
            [call(0, "c1", "look", ""), call(0, arguments='{"q'), call(0, arguments='":1}')],
            [
                ToolCallDelta(0, "c1", "look"),
                ToolCallDelta(0, arguments='{"q'),
                ToolCallDelta(0, arguments='":1}'),
            ],
            id="pieces",
        ),
        pytest.param(
            [call(0, "c1", "look", "a"), call(0, "c1", "look", "b")],
            [ToolCallDelta(0, "c1", "look", "a"), ToolCallDelta(0, arguments="b")],
            id="id-and-name-repeated",
        ),
        pytest.param(
            [call(0, "c1", "look", "a"), call(0, "", "", "b"), call(0, "c1", "look", "c")],
            [ToolCallDelta(0, "c1", "look", "a")] + [ToolCallDelta(0, arguments=text) for text in "bc"],
            id="id-and-name-empty-in-between",
        ),
        pytest.param(
            [call(0, "c1", "look", "a"), call(0, "c2", "look", "b")],
            [ToolCallDelta(0, "c1", "look", "a"), ToolCallDelta(0, "c2", "look", "b")],
            id="new-call-at-the-same-index",
        ),
        pytest.param(
            [call(0, None, "look", "a"), call(0, None, "look", "b")],
            [ToolCallDelta(0, None, "look", "a"), ToolCallDelta(0, arguments="b")],
            id="no-id",
        ),
        pytest.param([call(0, "c1"), call(0)], [ToolCallDelta(0, "c1")], id="empty-piece"),
        pytest.param(
            [chunk({"tool_calls": [{"id": "a", "function": {"name": "f"}}, {"id": "b", "function": None}]})],
            [ToolCallDelta(0, "a", "f"), ToolCallDelta(1, "b")],
            id="no-index",
        ),
        pytest.param([chunk({"tool_calls": None}), chunk({"tool_calls": []})], [], id="none"),
        pytest.param([chunk({"tool_calls": [None]})], [], id="null-call"),
    ],
)
def test_tool_calls(chunks, deltas):
    assert feed(*chunks)[1] == deltas


# -- an answer in one piece ---------------------------------------------------------------------


def test_whole():
    message = {
        "role": "assistant", "content": "Let me see.", "reasoning_content": "hm",
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
    }
    decoder = ChatChunkDecoder()
    assert decoder.feed_whole({
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }) == [
        ReasoningDelta("hm"), TextDelta("Let me see."), ToolCallDelta(0, "c1", "look", "{}"),
        Finish("tool_calls"), Usage(3, 4),
    ]
    assert decoder.done


def test_whole_without_a_reason():
    decoder = ChatChunkDecoder()
    answer = {"choices": [{"message": {"content": "Hi"}}], "usage": {"prompt_tokens": 3}}
    assert decoder.feed_whole(answer) == [TextDelta("Hi"), Usage(3)]


@pytest.mark.parametrize("choices", [[{}], [None], [{"message": None}], [{"message": "secret"}]])
def test_whole_without_a_message(choices):
    with pytest.raises(DecodeError, match="must have a choice with a message$"):
        ChatChunkDecoder().feed_whole({"choices": choices})


# -- what is no chunk -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, message",
    [
        pytest.param('{"choices":[{"delta":{"content":"secr', "is not JSON: Unterminated string", id="cut"),
        pytest.param("secret", "is not JSON", id="text"),
        pytest.param("[" * 100000, "is not JSON", id="too-deep"),
        pytest.param("[1]", "must be an object, got list", id="array"),
        pytest.param("null", "must be an object, got NoneType", id="null"),
        pytest.param('{"choices":{"secret":1}}', "choices must be an array, got dict", id="choices"),
        pytest.param('{"choices":["secret"]}', "a choice must be an object, got str", id="choice"),
        pytest.param('{"choices":[{"delta":"secret"}]}', "delta must be an object, got str", id="delta"),
        pytest.param(
            '{"choices":[{"delta":{"content":["secret"]}}]}', "content must be a string, got list",
            id="content",
        ),
        pytest.param(
            '{"choices":[{"delta":{"tool_calls":5}}]}', "tool_calls must be an array, got int",
            id="calls",
        ),
        pytest.param(
            '{"choices":[{"delta":{"tool_calls":[5]}}]}', "a tool call must be an object, got int",
            id="call",
        ),
        pytest.param(
            '{"choices":[{"delta":{"tool_calls":[{"function":"secret"}]}}]}',
            "a tool call's function must be an object, got str",
            id="function",
        ),
        pytest.param(
            '{"choices":[{"delta":{"tool_calls":[{"function":{"arguments":{"secret":1}}}]}}]}',
            "arguments must be a string, got dict",
            id="arguments",
        ),
    ],
)
def test_what_is_no_chunk_is_a_decode_error_that_quotes_nothing(text, message):
    with pytest.raises(DecodeError, match=message) as caught:
        feed(text)
    assert "secr" not in str(caught.value)


# -- errors inside the stream -----------------------------------------------------------------

PREFIX = "the provider reported an error inside its stream"


@pytest.mark.parametrize(
    "error, status, code, retryable",
    [
        pytest.param({"type": "server_error"}, None, "upstream_unavailable", True, id="openai"),
        pytest.param(
            {"type": "invalid_request_error", "code": "context_length_exceeded", "param": "messages"},
            None, "upstream_rejected", False, id="openai-too-long",
        ),
        pytest.param({"type": "insufficient_quota"}, None, "upstream_rate_limited", False, id="no-money"),
        pytest.param(
            {"type": "tokens", "code": "rate_limit_exceeded"}, None, "upstream_rate_limited", True,
            id="rate-limit",
        ),
        pytest.param(
            {"code": 500, "type": "server_error"}, 500, "upstream_unavailable", True,
            id="llama-cpp",
        ),
        pytest.param({"code": 400, "type": "BadRequestError"}, 400, "upstream_rejected", False, id="vllm"),
        pytest.param({"code": 429}, 429, "upstream_rate_limited", True, id="gateway-429"),
        pytest.param({"code": "503"}, 503, "upstream_unavailable", True, id="status-as-text"),
        pytest.param({"status": 401}, 401, "upstream_auth", False, id="status"),
        pytest.param({"code": 504}, 504, "upstream_timeout", True, id="gateway-504"),
        pytest.param({"code": 418}, 418, "upstream_rejected", False, id="other-4xx"),
        pytest.param({"code": 200}, None, "upstream_error", False, id="no-error-status"),
        pytest.param({"code": "5000"}, None, "upstream_error", False, id="no-status"),
        pytest.param({"code": None, "type": None}, None, "upstream_error", False, id="unknown"),
        pytest.param("boom", None, "upstream_error", False, id="text"),
        pytest.param(["boom"], None, "upstream_error", False, id="array"),
    ],
)
def test_error_in_a_chunk(error, status, code, retryable):
    with pytest.raises(UpstreamError, match=PREFIX) as caught:
        feed({"error": error, "choices": []})
    assert (caught.value.status, caught.value.code, caught.value.retryable) == (status, code, retryable)


@pytest.mark.parametrize(
    "data, message",
    [
        pytest.param('{"error":{"message":"out of memory"}}', PREFIX + ": out of memory", id="error-key"),
        pytest.param('{"message":"out of memory"}', PREFIX + ": out of memory", id="bare"),
        pytest.param('"out of memory"', PREFIX + ": out of memory", id="json-text"),
        pytest.param("out of memory", PREFIX + ": out of memory", id="no-json"),
        pytest.param('{"error":"out of memory"}', PREFIX + ": out of memory", id="error-text"),
        pytest.param('{"error":{"message":null}}', PREFIX, id="null-message"),
        pytest.param('{"message":["out"]}', PREFIX, id="odd-message"),
        pytest.param("{}", PREFIX, id="empty"),
        pytest.param("5", PREFIX, id="number"),
    ],
)
def test_error_event(data, message):
    with pytest.raises(UpstreamError) as caught:
        ChatChunkDecoder().feed_event(Event(data, event="error"))
    assert str(caught.value) == message


def test_error_message_is_short_and_holds_no_key():
    said = "Incorrect key sk-proj-abc123DEF provided.\n\nBearer abcdef " + "x" * 1000
    with pytest.raises(UpstreamError) as caught:
        feed({"error": {"message": said}})
    text = str(caught.value)
    assert text.startswith(PREFIX + ": Incorrect key *** provided. Bearer *** xxx")
    assert len(text) == len(PREFIX + ": ") + 300


def test_error_message_goes_through_the_callers_scrub():
    decoder = ChatChunkDecoder(scrub=lambda text: text.replace("my prompt", "…"))
    with pytest.raises(UpstreamError) as caught:
        decoder.feed_event(Event('{"error":{"message":"cannot answer my prompt"}}'))
    assert str(caught.value) == PREFIX + ": cannot answer …"


def test_other_named_events_are_chunks():
    fed = Event(json.dumps(chunk({"content": "a"})), event="message")
    assert ChatChunkDecoder().feed_event(fed) == [TextDelta("a")]


def test_parsed_chunks_can_be_fed():
    assert ChatChunkDecoder().feed_chunk(chunk({"content": "a"})) == [TextDelta("a")]
