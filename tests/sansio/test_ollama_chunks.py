"""The lines of Ollama's own API."""

from __future__ import annotations

import pytest
from recorded import ENDED, OLLAMA, line

from flask_llmstream.exceptions import DecodeError, UpstreamError
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.sansio.providers.ollama import OllamaDecoder


def feed(*chunks):
    decoder = OllamaDecoder()
    return [delta for chunk in chunks for delta in decoder.feed_chunk(chunk)]


def call(arguments, **more):
    return line({"tool_calls": [dict(more, function={"name": "look_up", "arguments": arguments})]})


def test_the_documented_lines_are_those_of_the_sdk():
    ollama = pytest.importorskip("ollama")
    decoder = OllamaDecoder()
    deltas = []
    for chunk in OLLAMA.chunks:
        deltas += decoder.feed_chunk(ollama.ChatResponse(**chunk).model_dump())
    # The SDK leaves out the id, which is newer than it.
    expected = [
        ToolCallDelta(1, None, "now", "{}") if delta == ToolCallDelta(1, "call_2", "now", "{}") else delta
        for delta in OLLAMA.deltas
    ]
    assert deltas in (expected, OLLAMA.deltas)


@pytest.mark.parametrize(
    "chunks, deltas",
    [
        pytest.param([line({"thinking": "hm", "content": "a"})], [ReasoningDelta("hm"), TextDelta("a")],
                     id="both"),
        pytest.param([line({"content": None, "thinking": None, "tool_calls": None})], [], id="null"),
        pytest.param([{"response": "a", "done": False}, {"thinking": "hm"}],
                     [TextDelta("a"), ReasoningDelta("hm")], id="generate"),
        pytest.param([dict(ENDED, response="", context=[1, 2])], [Finish("stop"), Usage(26, 30)],
                     id="generate-ended"),
        pytest.param([{"status": "pulling manifest"}], [], id="something-else"),
        pytest.param([call({"a": {"b": [1, None]}})],
                     [ToolCallDelta(0, None, "look_up", '{"a":{"b":[1,null]}}')], id="call"),
        pytest.param([call('{"a": 1}')], [ToolCallDelta(0, None, "look_up", '{"a": 1}')], id="text"),
        pytest.param([call(None), call("")],
                     [ToolCallDelta(0, None, "look_up", "{}"), ToolCallDelta(1, None, "look_up", "{}")],
                     id="no-arguments"),
        pytest.param([call({}, id="c1")], [ToolCallDelta(0, "c1", "look_up", "{}")], id="id"),
        pytest.param([line({"tool_calls": [None]})], [ToolCallDelta(0, arguments="{}")], id="odd-call"),
        pytest.param([dict(line({"content": "a"}), **ENDED), line({"content": "after"})],
                     [TextDelta("a"), Finish("stop"), Usage(26, 30)], id="after-the-end"),
        pytest.param([dict(line({}), done="yes")], [], id="odd-done"),
    ],
)
def test_lines(chunks, deltas):
    assert feed(*chunks) == deltas


@pytest.mark.parametrize(
    "said, reason",
    [("stop", "stop"), ("length", "length"), ("load", "other"), (None, "stop"), (5, None)],
)
def test_finish(said, reason):
    decoder = OllamaDecoder()
    assert decoder.feed_chunk({"done": True, "done_reason": said}) == ([Finish(reason)] if reason else [])
    assert (decoder.done, decoder.finished, decoder.usage) == (True, reason, None)


@pytest.mark.parametrize("said, reason", [("stop", "tool_calls"), ("length", "length")])
def test_finish_after_a_call(said, reason):
    assert feed(call({}), {"done": True, "done_reason": said})[-1] == Finish(reason)


def test_a_prompt_from_the_cache_is_not_counted():
    assert feed({"done": True, "eval_count": 3})[-1] == Usage(None, 3)


@pytest.mark.parametrize("chunk", [line({"content": "Hi"}), {"response": "Hi"}])
def test_whole(chunk):
    decoder = OllamaDecoder()
    assert decoder.feed_whole(dict(chunk, **ENDED)) == [TextDelta("Hi"), Finish("stop"), Usage(26, 30)]
    assert decoder.done


def test_error():
    with pytest.raises(UpstreamError, match="stream: an error was encountered while running the model$"):
        feed({"error": "an error was encountered while running the model"})


@pytest.mark.parametrize(
    "chunk, message",
    [
        (line({"content": ["secret"]}), "content must be a string, got list"),
        (line({"thinking": 5}), "thinking must be a string, got int"),
        ({"response": {"secret": 1}}, "response must be a string, got dict"),
        ({"message": "secret"}, "message must be an object, got str"),
        (line({"tool_calls": "secret"}), "tool_calls must be an array, got str"),
        (line({"tool_calls": ["secret"]}), "a tool call must be an object, got str"),
        (line({"tool_calls": [{"function": "secret"}]}), "a tool call's function must be an object"),
        (call({"secret": float("inf")}), "cannot be written as JSON"),
        (call({"secret": object()}), "cannot be written as JSON"),
    ],
)
def test_what_is_no_text_is_a_decode_error_that_quotes_nothing(chunk, message):
    with pytest.raises(DecodeError, match=message) as caught:
        feed(chunk)
    assert "secret" not in str(caught.value)
