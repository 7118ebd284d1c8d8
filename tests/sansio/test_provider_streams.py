"""Whole streams of every provider, as they are documented, and as nobody would send them."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from items import JSON
from recorded import ALL, read_all, write_all

from flask_llmstream.exceptions import DecodeError, UpstreamError
from flask_llmstream.sansio.events import (
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)

every_provider = pytest.mark.parametrize("recorded", [pytest.param(each, id=id) for id, each in ALL])
#: Words of the formats, so that guesses come further than the first field.
WORDS = sorted({
    word
    for _, recorded in ALL
    for chunk in recorded.chunks
    for word in json.dumps(chunk).replace(":", '"').split('"')
    if word.replace("_", "").replace(".", "").isalnum()
} | {"error", "response.failed", "response.incomplete", "response.custom_tool_call_input.delta",
     "response.refusal.done", "promptFeedback", "blockReason", "finish_reason", "custom_tool_call"})
words = st.sampled_from(WORDS)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 9) | st.floats() | words | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=5),
    max_leaves=12,
)


@every_provider
@pytest.mark.parametrize("size", [0, 1, 7, 100])
def test_documented_stream(recorded, size):
    decoder = recorded.make()
    assert read_all(decoder, write_all(recorded), size) == recorded.deltas
    finish, usage = recorded.deltas[-2:]
    assert (decoder.finished, decoder.usage) == (finish.reason, usage)
    # Gemini marks no end.
    assert decoder.done is (recorded.make.__name__ != "GeminiDecoder")


@every_provider
def test_each_chunk_may_come_as_an_event_or_parsed(recorded):
    decoder = recorded.make()
    deltas = [delta for chunk in recorded.chunks for delta in decoder.feed_chunk(chunk)]
    assert deltas == recorded.deltas
    assert decoder.feed_event(Event("[DONE]")) == []
    assert decoder.done
    assert decoder.feed_event(Event("no json at all")) == []


@every_provider
def test_what_is_known_of_a_stream_that_is_cut(recorded):
    """Nothing but the beginning of the whole."""
    whole = recorded.deltas
    for end in range(len(recorded.chunks)):
        decoder = recorded.make()
        deltas = [delta for chunk in recorded.chunks[:end] for delta in decoder.feed_chunk(chunk)]
        assert deltas == whole[: len(deltas)]
        assert (decoder.finished is not None) == any(isinstance(delta, Finish) for delta in deltas)


@every_provider
def test_unknown_events_and_fields_are_passed_over(recorded):
    decoder = recorded.make()
    deltas = []
    for chunk in recorded.chunks:
        deltas += decoder.feed_chunk({"type": "response.brand_new.delta", "delta": {"x": 1}, "new": [1]})
        deltas += decoder.feed_chunk({})
        deltas += decoder.feed_chunk(dict(chunk, brand_new={"a": [1]}))
    assert deltas == recorded.deltas


@every_provider
@pytest.mark.parametrize("value", [None, 5, "secret", True])
def test_what_is_no_object_is_a_decode_error(recorded, value):
    for feed in (recorded.make().feed_chunk, recorded.make().feed_whole):
        with pytest.raises(DecodeError, match="must be an object, got") as caught:
            feed(value)
        assert "secret" not in str(caught.value)


@every_provider
@pytest.mark.parametrize("data", ["secret", '{"a": secret', "[" * 100000])
def test_what_is_no_json_is_a_decode_error(recorded, data):
    with pytest.raises(DecodeError, match="is not JSON") as caught:
        recorded.make().feed_event(Event(data))
    assert "secret" not in str(caught.value)


@every_provider
@pytest.mark.parametrize("chunk", [{"error": {"message": "Overloaded", "type": "overloaded_error"}}])
def test_an_error_in_band(recorded, chunk):
    for feed in (recorded.make().feed_chunk, recorded.make().feed_whole):
        with pytest.raises(UpstreamError, match="Overloaded") as caught:
            feed(chunk)
        assert (caught.value.code, caught.value.retryable) == ("upstream_unavailable", True)


@every_provider
def test_scrub_sees_the_providers_words(recorded):
    with pytest.raises(UpstreamError, match="stream: GONE$"):
        recorded.make(lambda text: "GONE").feed_chunk({"error": "said this"})


@every_provider
@pytest.mark.parametrize("answer", [{}, {"type": "x", "output": 1, "content": 2, "choices": []}])
def test_what_is_no_whole_answer_is_a_decode_error(recorded, answer):
    with pytest.raises(DecodeError, match="must have|must be"):
        recorded.make().feed_whole(answer)


# -- what nobody would send -------------------------------------------------------------------


def check(feed, value):
    """Feed *value*: what comes out is deltas with texts, or a documented error."""
    try:
        deltas = feed(value)
    except (DecodeError, UpstreamError):
        return
    for delta in deltas:
        if isinstance(delta, (TextDelta, ReasoningDelta)):
            assert isinstance(delta.text, str) and delta.text
        elif isinstance(delta, ToolCallDelta):
            assert isinstance(delta.arguments, str) and (delta.id or delta.name or delta.arguments)
        else:
            assert isinstance(delta, (Finish, Usage))


@every_provider
@settings(max_examples=50)
@given(chunks=st.lists(values | JSON, max_size=6), whole=st.booleans())
def test_any_json(recorded, chunks, whole):
    decoder = recorded.make()
    for chunk in chunks:
        check(decoder.feed_whole if whole else decoder.feed_chunk, chunk)


def replace_somewhere(data, value, draw):
    """Put *value* somewhere into a copy of *data*."""
    if not isinstance(data, (dict, list)) or not data or draw(st.integers(0, 4)) == 0:
        return value
    where = draw(st.sampled_from(sorted(data) if isinstance(data, dict) else range(len(data))))
    copy = data.copy()
    copy[where] = replace_somewhere(data[where], value, draw)
    return copy


@every_provider
@settings(max_examples=50)
@given(data=st.data())
def test_documented_streams_with_something_else_in_them(recorded, data):
    chunks = list(recorded.chunks)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(chunks) - 1))
        chunks[at] = replace_somewhere(chunks[at], data.draw(values), data.draw)
    if data.draw(st.booleans()):
        chunks = data.draw(st.permutations(chunks))
    decoder = recorded.make()
    for chunk in chunks:
        check(decoder.feed_chunk, chunk)


@every_provider
@settings(max_examples=50)
@given(
    wire=st.binary(max_size=40), name=st.none() | words, cut=st.integers(0, 3000), size=st.integers(1, 50),
)
def test_any_bytes_inside_a_documented_stream(recorded, wire, name, cut, size):
    decoder = recorded.make()
    check(decoder.feed_event, Event(wire.decode("utf-8", "replace"), name))
    whole = write_all(recorded)
    check(lambda wire: read_all(recorded.make(), wire, size), whole[:cut] + wire + whole[cut:])


@every_provider
@settings(max_examples=50)
@given(kind=st.sampled_from(WORDS), data=values)
def test_any_event_of_a_known_kind(recorded, kind, data):
    text = json.dumps(data)
    check(recorded.make().feed_event, Event(text, kind))
    if isinstance(data, dict):
        check(recorded.make().feed_chunk, dict(data, type=kind))


def endless(recorded, number):
    """Return chunk *number* of an answer that has ever new parts and calls."""
    name = recorded.make.__name__
    text = "x" * 1000
    if name == "ChatChunkDecoder":
        call = {"index": number, "id": f"c{number}", "function": {"name": "f", "arguments": text}}
        return {"choices": [{"delta": {"content": text, "tool_calls": [call]}}]}
    if name == "ResponsesDecoder":
        return {"type": "response.output_text.delta", "output_index": number, "delta": text}
    if name == "MessagesDecoder":
        start = {"type": "tool_use", "id": f"c{number}", "name": "f", "input": {"x": text}}
        return {"type": "content_block_start", "index": number, "content_block": start}
    call = {"name": "f", "args": {"x": text}, "arguments": {"x": text}}
    if name == "OllamaDecoder":
        return {"message": {"content": text, "tool_calls": [{"function": call}]}}
    return {"candidates": [{"content": {"parts": [{"text": text}, {"functionCall": call}]}}]}


@every_provider
def test_an_endless_answer_does_not_fill_the_memory(recorded):
    decoder = recorded.make()
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="an answer has more than"):
            for number in range(20000):
                decoder.feed_chunk(endless(recorded, number))
        assert number > 4000
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 8 << 20
