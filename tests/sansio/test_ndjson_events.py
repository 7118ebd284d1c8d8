"""NDJSON and frames read as events: the same that the event stream of the same items gives."""

from __future__ import annotations

import json
from typing import Any, List

import pytest

from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError
from flask_llmstream.sansio.channels import Channels, Tagged
from flask_llmstream.sansio.events import (
    Comment,
    Custom,
    Event,
    JsonDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.frame_events import FrameEvents
from flask_llmstream.sansio.frames import FramesFormat, with_cursor
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.ndjson import NDJSONFormat
from flask_llmstream.sansio.ndjson_events import NDJSONEvents
from flask_llmstream.sansio.sse import SSEDecoder

ITEMS: List[Any] = [
    "a\u2028\U0001f600", ReasoningDelta("hm"), {"a": [1]}, JsonDelta("/a/-", "add", 2),
    Custom("c", {"id": "x"}),
    Event("plain", event="mine", id="7", retry=1500), Event({"k": 1}, event="other"), TextDelta("b"),
    Comment("hello"), Usage(1, 2), Tagged("left", "t"), Tagged("left", Event({"k": 2}, event="e")),
    Tagged("left", Event("words", event="e")), Tagged("right", ReasoningDelta("r")),
]


def wire(format: Any) -> bytes:
    encoded = b"".join(format.encode(item) for item in ITEMS)
    return bytes(format.opening(0) + encoded + format.heartbeat + format.done("stop", Usage(3, 4)))


def fields_of(event: Event) -> Any:
    try:
        return json.loads(event.data)
    except ValueError:
        return event.data


@pytest.mark.parametrize("size", [1, 7, 10000])
@pytest.mark.parametrize("decoder_of, format", [(NDJSONEvents, NDJSONFormat), (FrameEvents, FramesFormat)])
def test_it_says_what_the_event_stream_says(decoder_of: Any, format: Any, size: int) -> None:
    comments: List[List[str]] = [[], []]
    read: List[Any] = []
    for decoder, data, seen in (
        (SSEDecoder(on_comment=comments[0].append), wire(SSEFormat()), comments[0]),
        (decoder_of(on_comment=comments[1].append), wire(format()), comments[1]),
    ):
        events: List[Event] = []
        for start in range(0, len(data), size):
            events += decoder.feed(data[start : start + size])
        events += decoder.flush()
        assert (decoder.last_event_id, decoder.retry) == ("7", 1500)
        read.append([(event.event, fields_of(event), event.id) for event in events])
        assert seen == (
            ["", "hello", ""] if isinstance(decoder, FrameEvents) else ["open", "hello", "hb"]
        )
    assert read[1] == read[0]
    assert len(read[0]) == len(ITEMS)


def test_a_tool_call_keeps_its_id_with_and_without_cursors() -> None:
    line = NDJSONFormat().encode(ToolCallDelta(0, "call_1", "find", "{}"))
    for cursor, data in [(None, line), ("c-1", line.replace(b"}\n", b',"cursor":"c-1"}\n'))]:
        (event,) = NDJSONEvents().feed(data)
        assert (event.event, json.loads(event.data)["id"], event.id) == ("tool", "call_1", cursor)
        assert "cursor" not in json.loads(event.data)


def test_cursors_are_ids_and_no_fields() -> None:
    decoder = NDJSONEvents()
    decoder.last_event_id = "c-0"
    lines = b'{"type":"text","text":"a","cursor":"c-1"}\n'
    lines += b'{"type":"tool","index":0,"cursor":"c-2"}\n{"type":"json"}\n'
    assert decoder.feed(lines) == [
        Event('{"text":"a"}', None, "c-1"), Event('{"index":0}', "tool", "c-2"), Event("{}", "json", "c-2"),
    ]
    decoder.reset()
    assert decoder.last_event_id == "c-2"


def test_what_is_not_ours_is_an_unnamed_event() -> None:
    lines = b'{"response":"Hi","id":"x"}\n[1]\n"a"\n{"type":5}\n{"type":"comment","text":"x"}\n'
    decoder = NDJSONEvents()
    data = [event.data for event in decoder.feed(lines)]
    assert data == ['{"response":"Hi","id":"x"}', "[1]", '"a"', '{"type":5}']
    assert decoder.feed(b'{"type":"event","data":1,"event":"","retry":-1}\n') == [Event("1", None, None)]
    assert decoder.retry is None


def test_the_last_line_needs_no_end_and_may_be_cut() -> None:
    decoder = NDJSONEvents()
    assert decoder.feed(b'{"type":"done"}') == []
    assert decoder.flush() == [Event("{}", "done", None)]
    decoder.reset()
    decoder.feed(b'{"type":"do')
    assert decoder.flush() == []


def test_faults_are_raised() -> None:
    with pytest.raises(DecodeError, match="line 1"):
        NDJSONEvents().feed(b"data: x\n")
    with pytest.raises(BufferLimitExceeded):
        NDJSONEvents(10).feed(b'"01234567890"\n')


def test_cursor_of_a_frame_counts_when_the_frame_is_whole() -> None:
    of, decoder = FramesFormat(), FrameEvents()
    decoder.last_event_id = "c-0"
    names = Channels(["left"])
    said = [names, "a", Tagged("left", "b"), Event("x", event="own", id="mine"), {"k": 1}]
    data = b"".join(with_cursor(of.encode(item), f"c-{n}") for n, item in enumerate(said, 1))
    found = []
    for n in range(len(data)):
        before = decoder.last_event_id
        events = decoder.feed(data[n : n + 1])
        assert (decoder.last_event_id != before) == bool(events)
        found += [(event.event, fields_of(event), event.id) for event in events]
    assert found == [
        (None, {"text": "a"}, "c-2"), (None, {"channel": "left", "text": "b"}, "c-3"), ("own", "x", "c-4"),
        ("json", {"path": "", "op": "replace", "value": {"k": 1}}, "c-5"),
    ]
    decoder.feed(data[:3])
    assert decoder.flush() == []
    decoder.reset()
    data = of.encode(Tagged("left", "c"))
    assert decoder.feed(data) == [Event('{"channel":"1","text":"c"}', None, "c-5")], "names are of one body"


def test_channels_are_named_again_to_who_comes_back() -> None:
    of, decoder = FramesFormat(), FrameEvents()
    data = of.encode(Tagged("b", "1")) + of.encode(Tagged("a", "2")) + of.encode(Tagged("b", "3"))
    found = [json.loads(event.data) for event in decoder.feed(data)]
    assert [(each["channel"], each["text"]) for each in found] == [("b", "1"), ("a", "2"), ("b", "3")]


@pytest.mark.parametrize("frame, event", [
    (b"\0\0\0\2\6\0[]", Event("[]", "custom")), (b"\0\0\0\4\7\0null", Event("null", "event")),
    (b"\0\0\0\1\1\3x", Event('{"channel":"3","text":"x"}')),
    (b"\0\0\0\x13\6\0" + b'{"name":"channels"}' + b"\0\0\0\1\1\1x", Event('{"channel":"1","text":"x"}')),
])
def test_frames_of_who_takes_liberties(frame: bytes, event: Event) -> None:
    assert FrameEvents().feed(frame) == [event]
