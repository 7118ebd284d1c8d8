"""The events of Anthropic's Messages API, as it and others write them."""

from __future__ import annotations

import pytest
from recorded import ARGUMENTS, MESSAGE_START, MESSAGES, block, feed, json_piece

from flask_llmstream.exceptions import DecodeError, UpstreamError
from flask_llmstream.sansio.events import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.providers.anthropic import MessagesDecoder

TOOL = {"type": "tool_use", "id": "call_1", "name": "look_up", "input": {}}
OPENED = ToolCallDelta(0, "call_1", "look_up")
STOP = {"type": "message_stop"}


def delta(index, **fields):
    return {"type": "content_block_delta", "index": index, "delta": fields}


def end(reason=None, **usage):
    return {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage or None}


def start(**usage):
    return {"type": "message_start", "message": {"usage": usage}}


def test_the_documented_events_are_those_of_the_sdk():
    types = pytest.importorskip("anthropic.types")
    pydantic = pytest.importorskip("pydantic", "2")
    if not hasattr(types, "RawMessageStreamEvent") or not hasattr(types, "ThinkingBlock"):
        pytest.skip("this stack's anthropic SDK knows no thoughts")
    known = pydantic.TypeAdapter(types.RawMessageStreamEvent)
    decoder = MessagesDecoder()
    deltas = []
    for chunk in MESSAGES.chunks:
        if chunk["type"] != "ping":  # which the SDK passes over itself
            event = known.validate_python(chunk)
            assert event.type == chunk["type"]
            deltas += decoder.feed_chunk(event.model_dump())
    assert deltas == MESSAGES.deltas


@pytest.mark.parametrize(
    "chunks, deltas",
    [
        pytest.param([delta(0, type="text_delta", text="a")], [TextDelta("a")], id="never-started"),
        pytest.param([delta(0, type="text_delta", text="")], [], id="no-text"),
        pytest.param([delta(0, type="thinking_delta", thinking="hm")], [ReasoningDelta("hm")], id="thinking"),
        pytest.param(block(0, {"type": "text", "text": "a"}, {"type": "text_delta", "text": "b"}),
                     [TextDelta("a"), TextDelta("b")], id="text-in-start"),
        pytest.param(block(0, {"type": "thinking", "thinking": "hm"}), [ReasoningDelta("hm")],
                     id="thinking-in-start"),
        pytest.param([delta(0, type="brand_new_delta", x=1), delta(0)], [], id="unknown-delta"),
        pytest.param([delta(0, type="input_json_delta", partial_json="{}")], [], id="unknown-call"),
        pytest.param(block(0, {"type": "mcp_tool_use", "id": "m", "name": "n", "input": {}},
                           json_piece("{}")), [], id="the-providers-own-tool"),
        pytest.param(block(0, TOOL, json_piece(""), *map(json_piece, ARGUMENTS)),
                     [OPENED, *(ToolCallDelta(0, arguments=piece) for piece in ARGUMENTS)], id="call"),
        pytest.param([*block(0, TOOL), end("tool_use")],
                     [OPENED, ToolCallDelta(0, arguments="{}"), Finish("tool_calls")], id="no-arguments"),
        pytest.param([*block(0, TOOL), STOP], [OPENED, ToolCallDelta(0, arguments="{}")],
                     id="no-arguments-and-no-reason"),
        pytest.param([*block(0, dict(TOOL, input={"a": "é"})), STOP],
                     [ToolCallDelta(0, "call_1", "look_up", '{"a":"é"}')], id="input-in-start"),
        pytest.param([*block(0, dict(TOOL, input={"a": 1}), json_piece('{"a":1}')), STOP],
                     [ToolCallDelta(0, "call_1", "look_up", '{"a":1}')], id="input-twice"),
        pytest.param([*block(0, dict(TOOL, input=None)), end("tool_use"), STOP],
                     [OPENED, ToolCallDelta(0, arguments="{}"), Finish("tool_calls")], id="null-input"),
        pytest.param(
            [*block(2, TOOL), *block(5, dict(TOOL, id="call_2")),
             delta(5, **json_piece("b")), delta(2, **json_piece("a"))],
            [OPENED, ToolCallDelta(1, "call_2", "look_up"), ToolCallDelta(1, arguments="b"),
             ToolCallDelta(0, arguments="a")],
            id="mixed",
        ),
        pytest.param([{"type": "content_block_start"}, {"type": "content_block_delta"}], [], id="empty"),
        pytest.param([{"type": "message_start"}, {"type": "message_delta"}], [], id="nothing-in-them"),
        pytest.param([STOP, delta(0, type="text_delta", text="after")], [], id="after-the-end"),
        pytest.param(["[DONE]"], [], id="done-of-another-api"),
    ],
)
def test_events(chunks, deltas):
    assert feed(MessagesDecoder(), *chunks) == deltas


@pytest.mark.parametrize(
    "said, reason",
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "other"),
        ("brand_new", "other"),
    ],
)
def test_finish(said, reason):
    decoder = MessagesDecoder()
    assert feed(decoder, end(said)) == [Finish(reason)]
    assert (decoder.finished, decoder.done) == (reason, False)
    assert feed(decoder, end("end_turn"), STOP) == []
    assert decoder.done


def test_no_reason():
    decoder = MessagesDecoder()
    assert feed(decoder, end(None, output_tokens=1)) == []
    assert decoder.finished is None
    assert feed(decoder, STOP) == [Usage(None, 1)]


@pytest.mark.parametrize(
    "chunks, usage",
    [
        pytest.param([start(input_tokens=25, output_tokens=1), end(output_tokens=15)], Usage(25, 15),
                     id="plain"),
        pytest.param(
            [start(input_tokens=2, cache_creation_input_tokens=10, cache_read_input_tokens=30),
             end(output_tokens=15)],
            Usage(42, 15, cached_tokens=30), id="cache",
        ),
        pytest.param([start(input_tokens=0, output_tokens=0), end(input_tokens=25, output_tokens=15)],
                     Usage(25, 15), id="at-the-end"),
        pytest.param([start(input_tokens=25), end(input_tokens=0, output_tokens=15)], Usage(25, 15),
                     id="a-zero-at-the-end"),
        pytest.param([start(), end(output_tokens=7), end(output_tokens=15)], Usage(None, 15), id="growing"),
        pytest.param([start(input_tokens=None, cache_read_input_tokens=0), end(output_tokens=True)],
                     Usage(0, None, cached_tokens=0), id="odd"),
        pytest.param([end(output_tokens=9, output_tokens_details={"thinking_tokens": 4})],
                     Usage(None, 9, 4), id="thinking"),
    ],
)
def test_usage(chunks, usage):
    decoder = MessagesDecoder()
    assert feed(decoder, *chunks, STOP) == [usage]
    assert decoder.usage == usage


def test_usage_of_an_answer_that_is_cut():
    decoder = MessagesDecoder()
    assert feed(decoder, MESSAGE_START) == []
    assert decoder.usage == Usage(40, 1, cached_tokens=12)


@pytest.mark.parametrize(
    "type, code, retryable",
    [
        ("overloaded_error", "upstream_unavailable", True),
        ("api_error", "upstream_unavailable", True),
        ("rate_limit_error", "upstream_rate_limited", True),
        ("timeout_error", "upstream_timeout", True),
        ("billing_error", "upstream_rate_limited", False),
        ("authentication_error", "upstream_auth", False),
        ("permission_error", "upstream_auth", False),
        ("invalid_request_error", "upstream_rejected", False),
        ("not_found_error", "upstream_rejected", False),
        ("request_too_large", "upstream_rejected", False),
        ("brand_new_error", "upstream_error", False),
    ],
)
@pytest.mark.parametrize("name", ["error", None])
def test_errors(type, code, retryable, name):
    said = f'{{"type":"error","error":{{"type":"{type}","message":"no"}},"request_id":"req_1"}}'
    with pytest.raises(UpstreamError, match="stream: no$") as caught:
        MessagesDecoder().feed_event(Event(said, name))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


def test_error_without_an_error_in_it():
    with pytest.raises(UpstreamError, match="stream: no$"):
        MessagesDecoder().feed_chunk({"type": "error", "message": "no"})


def test_whole():
    content = [
        {"type": "thinking", "thinking": "hm", "signature": "x"},
        {"type": "text", "text": "Let me see."},
        dict(TOOL, input={"city": "Zürich"}),
        dict(TOOL, id="call_2"),
        {"type": "text", "text": ""},
    ]
    usage = {"input_tokens": 9, "output_tokens": 7, "cache_read_input_tokens": 3}
    decoder = MessagesDecoder()
    assert decoder.feed_whole(
        {"type": "message", "content": content, "stop_reason": "tool_use", "usage": usage}
    ) == [
        ReasoningDelta("hm"), TextDelta("Let me see."),
        ToolCallDelta(0, "call_1", "look_up", '{"city":"Zürich"}'),
        ToolCallDelta(1, "call_2", "look_up"), ToolCallDelta(1, arguments="{}"),
        Finish("tool_calls"), Usage(12, 7, cached_tokens=3),
    ]
    assert decoder.done


@pytest.mark.parametrize(
    "chunk, message",
    [
        (delta(0, type="text_delta", text=["secret"]), "text must be a string, got list"),
        (delta(0, type="thinking_delta", thinking=1), "thinking must be a string, got int"),
        (delta(0, type="input_json_delta", partial_json={"secret": 1}), "partial_json must be a string"),
        ({"type": "content_block_delta", "delta": "secret"}, "delta must be an object, got str"),
        ({"type": "content_block_start", "content_block": "secret"}, "content_block must be an object"),
        ({"type": "message_start", "message": "secret"}, "message must be an object, got str"),
        ({"type": "message_delta", "delta": "secret"}, "delta must be an object, got str"),
        (block(0, dict(TOOL, input={"secret": float("nan")}))[0], "cannot be written as JSON"),
    ],
)
def test_what_is_no_text_is_a_decode_error_that_quotes_nothing(chunk, message):
    with pytest.raises(DecodeError, match=message) as caught:
        MessagesDecoder().feed_chunk(chunk)
    assert "secret" not in str(caught.value)
