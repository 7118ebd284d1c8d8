"""The events of OpenAI's Responses API, as it and others write them."""

from __future__ import annotations

import pytest
from recorded import (
    ARGUMENTS,
    CALL,
    FUNCTION_CALL,
    MESSAGE,
    RESPONSE,
    RESPONSES,
    SEARCH,
    THOUGHT,
    WHOLE_RESPONSE,
    feed,
    item_event,
    of_item,
)

from flask_llmstream.exceptions import DecodeError, UpstreamError
from flask_llmstream.sansio.events import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.providers.openai_responses import ResponsesDecoder

WHOLE_CALL = ToolCallDelta(0, "call_1", "look_up", "".join(ARGUMENTS))
OPENED = ToolCallDelta(0, "call_1", "look_up")
ADDED = item_event("added", 0, FUNCTION_CALL, arguments="")
ARGUMENTS_DONE = of_item("function_call_arguments.done", 0, FUNCTION_CALL, arguments="".join(ARGUMENTS))


def without(chunk, *keys):
    return {key: value for key, value in chunk.items() if key not in keys}


def end(type="completed", **fields):
    return {"type": f"response.{type}", "response": dict(RESPONSE, status=type, **fields)}


def test_the_documented_events_are_those_of_the_sdk():
    responses = pytest.importorskip("openai.types.responses")
    pydantic = pytest.importorskip("pydantic", "2")
    known = pydantic.TypeAdapter(responses.ResponseStreamEvent)
    decoder = ResponsesDecoder()
    deltas = []
    for chunk in RESPONSES.chunks:
        event = known.validate_python(chunk)
        assert event.type == chunk["type"]
        # As adapt() has it.
        deltas += decoder.feed_chunk(event.model_dump())
    assert deltas == RESPONSES.deltas


@pytest.mark.parametrize(
    "chunks, deltas",
    [
        pytest.param([of_item("refusal.delta", 0, MESSAGE, delta="No.")], [TextDelta("No.")], id="refusal"),
        pytest.param(
            [of_item("reasoning_text.delta", 0, THOUGHT, delta="hm")], [ReasoningDelta("hm")],
            id="reasoning",
        ),
        pytest.param([of_item("output_text.delta", 0, MESSAGE, delta="")], [], id="empty"),
        pytest.param([of_item("output_text.delta", 0, MESSAGE)], [], id="no-delta"),
        pytest.param([of_item("output_text.done", 0, MESSAGE, text="a")], [TextDelta("a")], id="done-only"),
        pytest.param([of_item("refusal.done", 0, MESSAGE, refusal="No")], [TextDelta("No")], id="refused"),
        pytest.param(
            [of_item("output_text.delta", 0, MESSAGE, content_index=0, delta="a"),
             of_item("output_text.done", 0, MESSAGE, content_index=0, text="a"),
             of_item("output_text.done", 0, MESSAGE, content_index=1, text="b")],
            [TextDelta("a"), TextDelta("b")], id="two-parts",
        ),
        pytest.param(
            [{"type": "response.output_text.delta", "delta": "a"},
             {"type": "response.output_text.delta", "delta": "b"},
             {"type": "response.output_text.done", "text": "ab"},
             item_event("done", 0, MESSAGE)],
            [TextDelta("a"), TextDelta("b")], id="no-places",
        ),
        pytest.param(
            [{"type": "response.output_text.delta", "item_id": "msg_1", "delta": "Let me see."},
             without(item_event("done", 0, MESSAGE), "output_index"),
             end(output=[dict(MESSAGE, id="msg_9")])],
            [TextDelta("Let me see."), Finish("stop")], id="ids-only",
        ),
        pytest.param([item_event("done", 0, MESSAGE)], [TextDelta("Let me see.")], id="item-done-only"),
        pytest.param([item_event("added", 0, MESSAGE)], [], id="text-in-added"),
        pytest.param(
            [item_event("done", 0, dict(THOUGHT, content=[{"type": "reasoning_text", "text": "raw"}]))],
            [ReasoningDelta("**Look** it up."), ReasoningDelta("raw")], id="thought-done-only",
        ),
        pytest.param(
            [item_event("done", 0, dict(MESSAGE, content=[None, {"type": "audio"}, {"type": 1}]))],
            [], id="odd-parts",
        ),
        pytest.param([item_event("done", 0, {"id": "x"}), item_event("done", 1, SEARCH)], [], id="odd-items"),
        pytest.param([{"type": "response.output_item.done"}], [], id="no-item"),
        pytest.param([{"type": "response.output_text.finished"}], [], id="unknown-step"),
        pytest.param([{"type": "response.function_call_arguments.x"}, end()], [Finish("stop")],
                     id="unknown-step-of-a-call"),
        pytest.param([{"type": "output_text.delta", "delta": "a"}], [], id="other-prefix"),
        pytest.param([{"type": ["response.created"]}, {"delta": "a"}], [], id="odd-type"),
        pytest.param(
            [of_item("output_text.delta", 0, MESSAGE, delta="a"), end(usage={"input_tokens": 1})],
            [TextDelta("a"), Finish("stop"), Usage(1)], id="usage",
        ),
        pytest.param([end("completed"), of_item("output_text.delta", 0, MESSAGE, delta="after")],
                     [Finish("stop")], id="after-the-end"),
    ],
)
def test_texts(chunks, deltas):
    assert feed(ResponsesDecoder(), *chunks) == deltas


@pytest.mark.parametrize(
    "chunks, deltas",
    [
        pytest.param([ADDED, ARGUMENTS_DONE], [OPENED, ToolCallDelta(0, arguments="".join(ARGUMENTS))],
                     id="done-only"),
        pytest.param([ARGUMENTS_DONE, item_event("done", 0, FUNCTION_CALL)],
                     [ToolCallDelta(0, arguments="".join(ARGUMENTS)), OPENED], id="late-name"),
        pytest.param([ADDED, item_event("done", 0, FUNCTION_CALL)],
                     [OPENED, ToolCallDelta(0, arguments="".join(ARGUMENTS))], id="item-done-has-them"),
        pytest.param([item_event("done", 0, FUNCTION_CALL)], [WHOLE_CALL], id="item-done-only"),
        pytest.param([item_event("added", 0, FUNCTION_CALL), ARGUMENTS_DONE], [WHOLE_CALL],
                     id="added-has-them"),
        pytest.param(
            [without(ADDED, "output_index"),
             *({"type": "response.function_call_arguments.delta", "item_id": "fc_1", "delta": piece}
               for piece in ARGUMENTS)],
            CALL, id="ids-only",
        ),
        pytest.param(
            [{"type": "response.output_item.added", "item": without(FUNCTION_CALL, "id", "arguments")},
             *({"type": "response.function_call_arguments.delta", "item_id": "call_1", "delta": piece}
               for piece in ARGUMENTS),
             {"type": "response.output_item.done", "item": without(FUNCTION_CALL, "id")}],
            CALL, id="llama-cpp",
        ),
        pytest.param(
            [without(ADDED, "output_index"),
             *({"type": "response.function_call_arguments.delta", "delta": piece} for piece in ARGUMENTS)],
            CALL, id="no-places",
        ),
        pytest.param(
            [ADDED, item_event("added", 1, FUNCTION_CALL, id="fc_2", call_id="call_2", arguments=""),
             of_item("function_call_arguments.delta", 1, {"id": "fc_2"}, delta="b"),
             of_item("function_call_arguments.delta", 0, FUNCTION_CALL, delta="a")],
            [OPENED, ToolCallDelta(1, "call_2", "look_up"), ToolCallDelta(1, arguments="b"),
             ToolCallDelta(0, arguments="a")],
            id="two-at-once",
        ),
        pytest.param(
            [ADDED, item_event("added", 0, FUNCTION_CALL, id="fc_2", call_id="call_2", arguments="b")],
            [OPENED, ToolCallDelta(1, "call_2", "look_up", "b")], id="two-at-one-place",
        ),
        pytest.param(
            [of_item("function_call_arguments.delta", 0, FUNCTION_CALL, delta="a")],
            [ToolCallDelta(0, arguments="a")], id="never-added",
        ),
        pytest.param(
            [item_event("done", 0, without(FUNCTION_CALL, "call_id"))],
            [ToolCallDelta(0, "fc_1", "look_up", "".join(ARGUMENTS))], id="no-call-id",
        ),
        pytest.param(
            [item_event("added", 0, {"id": "ctc_1", "type": "custom_tool_call", "call_id": "c1",
                                     "name": "run", "input": ""}),
             {"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": "print("},
             {"type": "response.custom_tool_call_input.delta", "output_index": 0, "delta": "1)"},
             {"type": "response.custom_tool_call_input.done", "output_index": 0, "input": "print(1)"}],
            [ToolCallDelta(0, "c1", "run"), ToolCallDelta(0, arguments="print("),
             ToolCallDelta(0, arguments="1)")],
            id="custom",
        ),
    ],
)
def test_calls(chunks, deltas):
    decoder = ResponsesDecoder()
    assert feed(decoder, *chunks) == deltas
    assert feed(decoder, end()) == [Finish("tool_calls")]


@pytest.mark.parametrize(
    "chunk, reason",
    [
        (end(), "stop"),
        (end("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
        (end("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
        (end("incomplete", incomplete_details={"reason": "new"}), "other"),
        (end("incomplete", incomplete_details={"reason": None}), "other"),
        (end("incomplete"), "other"),
        (end("cancelled"), "other"),
        ({"type": "response.completed"}, "stop"),
    ],
)
def test_finish(chunk, reason):
    decoder = ResponsesDecoder()
    assert feed(decoder, chunk) == [Finish(reason)]
    assert (decoder.done, decoder.finished) == (True, reason)


def test_an_answer_that_only_the_last_event_has():
    assert feed(ResponsesDecoder(), {"type": "response.completed", "response": WHOLE_RESPONSE}) == [
        ReasoningDelta("**Look** it up."), TextDelta("Let me see."), WHOLE_CALL, Finish("tool_calls"),
        Usage(36, 20, 8, 12),
    ]


def test_calls_that_only_the_last_event_has():
    text = of_item("output_text.delta", 2, dict(MESSAGE, id="changing"), delta="Let me see.")
    assert feed(ResponsesDecoder(), text, {"type": "response.completed", "response": WHOLE_RESPONSE}) == [
        TextDelta("Let me see."), WHOLE_CALL, Finish("tool_calls"), Usage(36, 20, 8, 12),
    ]


def test_the_type_may_stand_in_the_name_of_the_event_only():
    event = Event('{"output_index":0,"delta":"a"}', "response.output_text.delta")
    assert ResponsesDecoder().feed_event(event) == [TextDelta("a")]


@pytest.mark.parametrize(
    "event, code, retryable",
    [
        (Event('{"type":"error","code":"rate_limit_exceeded","message":"no"}', "error"),
         "upstream_rate_limited", True),
        (Event('{"type":"error","code":"server_error","message":"no"}'), "upstream_unavailable", True),
        (Event('{"type":"response.failed","response":{"error":{"code":"server_error","message":"no"}}}'),
         "upstream_unavailable", True),
        (Event('{"type":"response.failed","response":{"error":{"code":"invalid_prompt","message":"no"}}}'),
         "upstream_rejected", False),
        (Event('{"type":"response.failed","response":{"error":{"code":"new","message":"no"}}}'),
         "upstream_error", False),
        (Event('{"error":{"type":"invalid_request_error","message":"no"}}'), "upstream_rejected", False),
    ],
)
def test_errors(event, code, retryable):
    with pytest.raises(UpstreamError, match="stream: no$") as caught:
        ResponsesDecoder().feed_event(event)
    assert (caught.value.code, caught.value.retryable) == (code, retryable)


def test_what_a_failed_response_has_cost_can_be_seen():
    decoder = ResponsesDecoder()
    with pytest.raises(UpstreamError):
        decoder.feed_chunk(end("failed", usage={"input_tokens": 5, "output_tokens": 2}))
    assert decoder.usage == Usage(5, 2)


def test_whole():
    decoder = ResponsesDecoder()
    assert decoder.feed_whole(WHOLE_RESPONSE) == [
        ReasoningDelta("**Look** it up."), TextDelta("Let me see."), WHOLE_CALL, Finish("tool_calls"),
        Usage(36, 20, 8, 12),
    ]
    assert decoder.done


def test_whole_without_a_status():
    assert ResponsesDecoder().feed_whole({"output": [MESSAGE]}) == [TextDelta("Let me see."), Finish("stop")]


@pytest.mark.parametrize("status", ["queued", "in_progress"])
def test_whole_that_is_not_there_yet(status):
    with pytest.raises(DecodeError, match=f"is {status} is no answer yet; leave out background"):
        ResponsesDecoder().feed_whole(dict(RESPONSE, status=status))


def test_whole_that_failed():
    with pytest.raises(UpstreamError, match="stream: no$"):
        ResponsesDecoder().feed_whole({"output": [], "status": "failed", "error": {"message": "no"}})


@pytest.mark.parametrize(
    "chunk, message",
    [
        (of_item("output_text.delta", 0, MESSAGE, delta=["secret"]), "delta must be a string, got list"),
        (of_item("output_text.done", 0, MESSAGE, text={"secret": 1}), "text must be a string, got dict"),
        (of_item("function_call_arguments.delta", 0, MESSAGE, delta=5), "delta must be a string, got int"),
        (item_event("done", 0, {"type": "message", "content": "secret"}), "content must be an array"),
        (item_event("done", 0, {"type": "message", "content": ["secret"]}), "a part must be an object"),
        (item_event("done", 0, dict(FUNCTION_CALL, arguments={"secret": 1})), "arguments must be a string"),
        ({"type": "response.output_item.done", "item": "secret"}, "an item must be an object, got str"),
        ({"type": "response.completed", "response": "secret"}, "response must be an object, got str"),
        (end(output=["secret"]), "an item must be an object, got str"),
    ],
)
def test_what_is_no_text_is_a_decode_error_that_quotes_nothing(chunk, message):
    with pytest.raises(DecodeError, match=message) as caught:
        feed(ResponsesDecoder(), chunk)
    assert "secret" not in str(caught.value)
