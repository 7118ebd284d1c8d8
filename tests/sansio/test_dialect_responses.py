"""The format ``openai-responses``, as OpenAI's own SDK reads it."""

from __future__ import annotations

import pytest
from dialects import ANSWER, TEXT, ends, items, read, text_of, write
from hypothesis import given

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.openai_responses import OpenAIResponsesFormat
from flask_llmstream.testing.upstreams import raw

CALLS = [("call_a", "look_up", '{"city": "Berlin"}'), ("call_b", "now", "{}")]


@pytest.fixture
def responses(openai_client):
    """Return the part of the SDK that knows responses."""
    if not hasattr(openai_client, "responses"):
        pytest.skip("this stack's openai SDK knows no responses")
    return openai_client.responses


@pytest.fixture
def respond(upstream, responses):
    """Return a function that has the SDK read what was written: its events, and what they make."""

    def respond(written, whole=True):
        upstream.script = [raw(written)]
        with responses.stream(model="any", input="Hello") as stream:
            events = list(stream)
            return events, stream.get_final_response() if whole else events[-1].response

    return respond


def test_the_sdk_makes_the_same_response_of_it(respond):
    wire = OpenAIResponsesFormat("resp_7", "my-model", 1700000000)
    events, response = respond(write(wire, ANSWER, "tool_calls"))
    assert (response.id, response.model, response.created_at) == ("resp_7", "my-model", 1700000000)
    assert (response.status, response.error, response.incomplete_details) == ("completed", None, None)
    thought, message, *calls = response.output
    assert [part.text for part in thought.summary] == ["Let me see."]
    assert (message.role, response.output_text) == ("assistant", TEXT)
    assert [(call.call_id, call.name, call.arguments) for call in calls] == CALLS
    assert {item.status for item in response.output} == {"completed"}
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (11, 20, 31)
    assert usage.input_tokens_details.cached_tokens == 3
    assert usage.output_tokens_details.reasoning_tokens == 5
    # What the SDK has put together of the deltas, piece by piece.
    snapshots = [event.snapshot for event in events if event.type == "response.output_text.delta"]
    assert snapshots == ["Grüße \U0001f600", TEXT]
    snapshots = [event.snapshot for event in events if event.type == "response.function_call_arguments.delta"]
    assert snapshots == ['{"city": "Ber', '{"city": "Berlin"}', "{}"]
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in done] == [item.id for item in response.output]


def test_every_event_is_one_of_the_sdks_own():
    """The SDK itself does not look whether what is required is there."""
    responses = pytest.importorskip("openai.types.responses")
    pydantic = pytest.importorskip("pydantic", "2")
    known = pydantic.TypeAdapter(responses.ResponseStreamEvent)
    for reason in ("stop", "length", "cancelled", None):
        for _, data in read(write(OpenAIResponsesFormat(), ANSWER, reason)):
            assert known.validate_python(data).type == data["type"]


def test_heartbeats_and_comments_are_passed_over(upstream, responses):
    wire = OpenAIResponsesFormat()
    frames = [wire.encode(item) for item in ("a", e.Comment("still here"), "b")] + [wire.done("stop")]
    upstream.script = [raw(wire.heartbeat + frame) for frame in frames]
    with responses.create(model="any", input="Hello", stream=True) as stream:
        events = list(stream)
    assert [event.delta for event in events if event.type == "response.output_text.delta"] == ["a", "b"]


@pytest.mark.parametrize(
    "reason, status, details",
    [
        ("other", "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
        ("cancelled", "incomplete", None),
    ],
)
def test_reasons(respond, reason, status, details):
    source = ["a", e.ToolCallDelta(0, None, "f", "{")]
    events, response = respond(write(OpenAIResponsesFormat("r"), source, reason), whole=False)
    assert events[-1].type == f"response.{status}"
    assert response.status == status
    assert [item.status for item in response.output] == ["completed", status], "the text was whole"
    assert response.output[1].call_id == "call_r_0"
    assert response.output_text == "a"
    if status == "incomplete":
        assert response.incomplete_details.reason == details


def test_a_failure(respond):
    events, response = respond(write(OpenAIResponsesFormat(), ["some", b"\xc3"], None), whole=False)
    assert events[-1].type == "response.failed"
    assert (response.status, response.error.code) == ("failed", "rate_limit_exceeded")
    assert response.error.message == "it broke"
    assert response.output[0].status == "incomplete"
    assert response.output_text == "some\ufffd"
    _, event = read(OpenAIResponsesFormat().failed("it broke", "internal_error", False))[-1]
    assert event["response"]["error"] == {"code": "server_error", "message": "it broke"}


def test_calls_that_are_mixed_with_others_and_text_are_whole(respond):
    source = [
        e.ToolCallDelta(0, "a", "f", "1"),
        e.ToolCallDelta(1, "b", "g", "2"),
        "text",
        e.ToolCallDelta(0, arguments="1"),
    ]
    response = respond(write(OpenAIResponsesFormat(), source, "tool_calls"))[1]
    calls = [item for item in response.output if item.type == "function_call"]
    assert [(call.call_id, call.arguments) for call in calls] == [("a", "11"), ("b", "2")]


@given(items, ends)
def test_whatever_comes_the_parts_are_those_of_the_whole(source, reason):
    events = read(write(OpenAIResponsesFormat(), source, reason))
    items, texts = {}, {}
    for number, (name, data) in enumerate(events):
        assert data["type"] == name
        assert data["sequence_number"] == number
        if name == "response.output_item.added":
            assert data["output_index"] == len(items)
            items[data["output_index"]] = data["item"]
        elif name == "response.output_item.done":
            assert data["item"]["id"] == items[data["output_index"]]["id"]
            items[data["output_index"]] = data["item"]
        elif "delta" in data:
            assert data["item_id"] == items[data["output_index"]]["id"]
            texts[data["item_id"]] = texts.get(data["item_id"], "") + data["delta"]
    first, last = events[0], events[-1]
    assert first[0] == "response.created"
    assert last[1]["response"]["output"] == list(items.values())
    for item in items.values():
        parts = item.get("content") or item.get("summary") or [{"text": item.get("arguments")}]
        assert texts.get(item["id"], "") == parts[0]["text"]
        assert item["status"] in ("completed", "incomplete")
    said = [item["content"][0]["text"] for item in items.values() if item["type"] == "message"]
    assert "".join(said) == text_of(source)
