"""Whatever a model or a user says, it stays where it was put: no reader gets an item more, or another one.

Each format writes an answer of every kind of item twice: once with a harmless word in every place where a
text can stand, and once with one that means harm. What is read must differ in that word and nothing else.
"""

from __future__ import annotations

import json
from typing import Any, Callable, List

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.channels import ChannelFailed, Channels, Tagged, check_names
from flask_llmstream.sansio.formats import make_format
from flask_llmstream.sansio.frames import FrameDecoder
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder
from flask_llmstream.sansio.sse import SSEDecoder

EVENT_STREAMS = ("sse", "ai-sdk", "openai", "openai-responses", "anthropic", "ag-ui")
#: Those that can keep channels apart.
CHANNELLED = ("sse", "ndjson", "frames", "ai-sdk", "openai")
#: What ends a line, a string, an event or a field somewhere, and what no encoding likes.
ENDS = [
    "\n", "\r", "\r\n", "\n\n", "\r\r", "\0", "\x85", "\u2028", "\u2029", "\x0b", "\x0c", "\x1c", "\x7f",
]
ODD = ["\ufeff", "\ud83d", "\ude00", "\ufffe", "😀", '"', "\\", "/", "~", "}", "]", "</script>", ":", " ", "a"]
LINES = [
    "data: [DONE]", "[DONE]", "event: done", 'data: {"reason":"stop","usage":null}', "id: 1", "retry: 1",
    ": hb",
    '"}\n{"type":"done","reason":"stop"}', "\x00\x00\x00\x02\x08\x00{}", "__proto__", "HTTP/1.1 200 OK",
]
HARM = st.lists(st.sampled_from(ENDS + ODD + LINES), min_size=1, max_size=6).map("".join)
#: The harmless word. What stands for it begins and ends with a letter, so that it is found again.
WORD = "word"


def items_with(word: str) -> List[Any]:
    """Return an answer of items of every kind, with *word* wherever a text can stand."""
    path = "/" + word.replace("~", "~0").replace("/", "~1")
    return [
        word, e.TextDelta(word), e.ReasoningDelta(word), {word: [word, {word: word}]},
        e.JsonDelta("", "replace", {}), e.JsonDelta(path, "add", ""), e.JsonDelta(path, "append", word),
        e.JsonDelta(path, "complete"), e.Custom(word, {word: word}),
        e.ToolCallDelta(0, word, word, word), e.ToolCallDelta(0, arguments=word), word,
        e.Usage(1, 2), e.Finish(word),
    ]


def written(name: str, items: List[Any], end: Callable[[Any], bytes]) -> bytes:
    wire = make_format(name, "0")
    said = wire.opening(0)
    for item in items:
        said += wire.encode(item) + (wire.heartbeat or b"")
    return said + end(wire)


def read(name: str, data: bytes) -> List[Any]:
    """Return what a reader of the format finds, as values of JSON."""
    if name == "ndjson":
        values: List[Any] = NDJSONDecoder().feed(data)
        return values
    if name == "frames":
        return [[frame.kind, frame.channel, frame.data] for frame in FrameDecoder().feed(data)]
    return [
        [event.event, event.id, event.retry, json.loads(event.data) if event.data[:2] == '{"' else event.data]
        for event in SSEDecoder().feed(data)
    ]


def with_word(value: Any, harm: str) -> Any:
    """Return *value* with the harmless word in the place of *harm*."""
    if isinstance(value, str):
        for each in (harm, harm.replace("~", "~0").replace("/", "~1")):
            value = value.replace(each, WORD)
        return value
    if isinstance(value, dict):
        return {with_word(key, harm): with_word(each, harm) for key, each in value.items()}
    return [with_word(each, harm) for each in value] if isinstance(value, list) else value


def as_json(text: str) -> str:
    """Return *text* as JSON can have it: two halves of a character beside each other are the character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def as_utf8(text: str) -> str:
    """Return *text* as bare UTF-8 can have it: no halves of characters."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def compare(
    name: str, harm: str, answer: Callable[[str], List[Any]], end: Callable[[Any, str], bytes]
) -> bytes:
    data = written(name, answer(harm), lambda wire: end(wire, harm))
    plain = written(name, answer(WORD), lambda wire: end(wire, WORD))
    # What is in no JSON string in frames, text, is bare UTF-8.
    found = read(name, data)
    for each in (harm, as_json(harm), as_utf8(harm)):
        found = with_word(found, each)
    assert found == read(name, plain)
    return data


@pytest.mark.parametrize("name", EVENT_STREAMS + ("ndjson", "frames"))
@settings(max_examples=25)
@given(harm=HARM, failing=st.booleans())
@example(harm="\u2028event: done\u2028data: [DONE]\u2028\u2028", failing=False)
@example(harm="\n\ndata: [DONE]\n\n", failing=True)
def test_no_text_becomes_an_item(name: str, harm: str, failing: bool) -> None:
    def end(wire: Any, word: str) -> bytes:
        ended: bytes = wire.failed(word, word, True) if failing else wire.done(word, e.Usage(1, 2))
        return ended

    data = compare(name, f"Q{harm}Z", items_with, end)
    if name != "frames":
        # Readers with other ideas of a line find no more lines than were written.
        text = data.decode()
        assert text.splitlines() == text.split("\n")[:-1]


@pytest.mark.parametrize("name", CHANNELLED)
@settings(max_examples=20)
@given(harm=HARM)
@example(harm="\ud83d\ud83d\ude00")
def test_no_text_leaves_its_channel(name: str, harm: str) -> None:
    harm = f"Q{harm}Z"
    try:
        check_names([harm])
        channel = harm
    except ValueError:
        channel = WORD  # a name that cannot be refuses the stream before it begins

    def answer(word: str) -> List[Any]:
        names = [word if channel == harm else WORD, "b"]
        tagged = [Tagged(each, item) for item in items_with(word)[:-1] for each in names]
        return [Channels(names), *tagged, Tagged("b", ChannelFailed(word, word, False))]

    compare(name, harm, answer, lambda wire, word: wire.done("stop"))


@given(harm=HARM)
def test_plain_text_is_the_text_and_nothing_else(harm: str) -> None:
    data = written("text", items_with(harm)[:-3], lambda wire: wire.done("stop"))
    assert data.decode() == as_utf8(harm * 2)


@pytest.mark.parametrize("name", EVENT_STREAMS + ("ndjson", "frames"))
@settings(max_examples=25)
@given(harm=HARM)
def test_events_and_comments_of_the_app_are_whole_or_refused(name: str, harm: str) -> None:
    """What is written with full control: one item or a clear error, and never two."""
    for item in (
        e.Event(harm), e.Event("x", harm), e.Event("x", None, harm), e.Event({"x": harm}, "name", "1", 5),
        e.Comment(harm),
    ):
        wire = make_format(name, "0")
        try:
            data = wire.encode(item)
        except ValueError:
            continue
        found = read(name, data + wire.done("stop"))
        expected = make_format(name, "0")
        plain: Any = e.Comment("x") if isinstance(item, e.Comment) else e.Event("x", item.event and "x")
        counted = read(name, expected.encode(plain) + expected.done("stop"))
        assert len(found) == len(counted), item


def test_fields_of_an_event_that_could_begin_another_are_refused() -> None:
    wire = make_format("sse")
    for end in ("\n", "\r", "\0"):
        for event in (e.Event("x", f"a{end}data: b"), e.Event("x", None, f"1{end}data: b")):
            with pytest.raises(ValueError, match="CR, LF"):
                wire.encode(event)
    for retry in ("1\ndata: b", 1.5, True):
        with pytest.raises(TypeError, match="retry must be an int"):
            wire.encode(e.Event("x", retry=retry))  # type: ignore[arg-type]
    for name in ("\ud800", "\n", "\x85", "\u2028", "", "x" * 65):
        with pytest.raises(ValueError, match="channel's name"):
            check_names([name])


def test_reader_that_cuts_lines_elsewhere_gets_the_same_lines() -> None:
    """``iter_lines()`` of httpx, and of requests with ``decode_unicode=True``: ``str.splitlines()``."""
    for name in EVENT_STREAMS + ("ndjson",):
        data = written(name, items_with("a\u2028data: [DONE]\u2029\x85"), lambda wire: wire.done("stop"))
        lines = data.decode().splitlines()
        assert lines == data.decode().split("\n")[:-1], name
        assert lines.count("data: [DONE]") == (name in ("openai", "ai-sdk")), name
