"""The native format: one way to say each kind of item, exactly one end."""

from __future__ import annotations

import enum
import json
from collections import OrderedDict

import pytest
from splitting import every_way

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.native import SSEFormat, usage_fields
from flask_llmstream.sansio.sse import HEARTBEAT, SSEDecoder, opening


class Loud(str):
    def __str__(self):
        return "LOUD"


class Colour(str, enum.Enum):
    RED = "red"


class MyDelta(e.TextDelta):
    __slots__ = ()


def encode(*items):
    wire = SSEFormat()
    return b"".join(wire.encode(item) for item in items)


@pytest.mark.parametrize(
    "item, wire",
    [
        pytest.param(e.TextDelta("hi"), 'data: {"text":"hi"}\n\n', id="text"),
        pytest.param("hi", 'data: {"text":"hi"}\n\n', id="str"),
        pytest.param("é😀", 'data: {"text":"é😀"}\n\n', id="utf8-not-escaped"),
        pytest.param(
            "é\u2028\u2029\x85", 'data: {"text":"é\\u2028\\u2029\\u0085"}\n\n', id="other-line-ends"
        ),
        pytest.param('"\\\r\n\0', 'data: {"text":"\\"\\\\\\r\\n\\u0000"}\n\n', id="controls-escaped"),
        pytest.param("\ud83d", 'data: {"text":"\\ud83d"}\n\n', id="lone-surrogate"),
        pytest.param("", "", id="empty-str"),
        pytest.param(e.TextDelta(""), "", id="empty-text"),
        pytest.param(b"", "", id="empty-bytes"),
        pytest.param("é".encode(), 'data: {"text":"é"}\n\n', id="bytes"),
        pytest.param(b"a\xffb", 'data: {"text":"a\ufffdb"}\n\n', id="bytes-invalid"),
        pytest.param(Loud("quiet"), 'data: {"text":"quiet"}\n\n', id="str-subclass"),
        pytest.param(Colour.RED, 'data: {"text":"red"}\n\n', id="str-enum"),
        pytest.param(MyDelta("hi"), 'data: {"text":"hi"}\n\n', id="delta-subclass"),
        pytest.param(MyDelta(""), "", id="empty-delta-subclass"),
        pytest.param(e.ReasoningDelta("hm"), 'event: reasoning\ndata: {"text":"hm"}\n\n', id="reasoning"),
        pytest.param(e.ReasoningDelta(""), "", id="empty-reasoning"),
        pytest.param(
            e.ToolCallDelta(0, "c1", "look_up", '{"q'),
            'event: tool\ndata: {"index":0,"id":"c1","name":"look_up","arguments":"{\\"q"}\n\n',
            id="tool-first-piece",
        ),
        pytest.param(
            e.ToolCallDelta(1, arguments='":1}'),
            'event: tool\ndata: {"index":1,"arguments":"\\":1}"}\n\n',
            id="tool-later-piece",
        ),
        pytest.param(
            e.JsonDelta("/a/0", "add", {"b": None}),
            'event: json\ndata: {"path":"/a/0","op":"add","value":{"b":null}}\n\n',
            id="json",
        ),
        pytest.param(
            {"text": "hi"},
            'event: json\ndata: {"path":"","op":"replace","value":{"text":"hi"}}\n\n',
            id="dict",
        ),
        pytest.param(
            OrderedDict(b=1, a=2),
            'event: json\ndata: {"path":"","op":"replace","value":{"b":1,"a":2}}\n\n',
            id="dict-subclass",
        ),
        pytest.param([1], 'event: json\ndata: {"path":"","op":"replace","value":[1]}\n\n', id="list"),
        pytest.param(
            e.Usage(1, 2), 'event: usage\ndata: {"input_tokens":1,"output_tokens":2}\n\n', id="usage"
        ),
        pytest.param(
            e.Custom("steps", [1, 2]), 'event: custom\ndata: {"name":"steps","data":[1,2]}\n\n', id="custom"
        ),
        pytest.param(e.Event("raw", event="own", id="1"), "event: own\nid: 1\ndata: raw\n\n", id="event"),
        pytest.param(e.Comment("hello"), ": hello\n", id="comment"),
        pytest.param(e.Finish("length"), "", id="finish-is-said-by-done"),
    ],
)
def test_encode_says_each_item(item, wire):
    assert encode(item) == wire.encode()


@pytest.mark.parametrize("item", [None, 5, ("a", "b"), object()])
def test_what_no_source_may_yield_is_refused(item):
    with pytest.raises(TypeError, match=f"a {type(item).__name__} cannot be sent; a source yields str"):
        encode(item)


def test_text_that_is_no_text_is_refused():
    with pytest.raises(TypeError):
        encode(e.TextDelta(5))


def test_bytes_may_be_cut_inside_a_character():
    """Whoever relays a body passes it on as it comes."""
    for way, pieces in every_way("aé€😀".encode()):
        wire = SSEFormat()
        frames = b"".join(map(wire.encode, pieces)) + wire.done("stop")
        texts = [json.loads(event.data)["text"] for event in SSEDecoder().feed(frames) if not event.event]
        assert "".join(texts) == "aé€😀", way


def test_half_a_character_waits_across_other_items():
    assert encode(b"\xc3", {"a": 1}, b"\xa9").endswith('data: {"text":"é"}\n\n'.encode())


def test_decode_text_holds_back_half_a_character():
    wire = SSEFormat()
    assert [wire.decode_text(piece) for piece in (b"a\xe2\x82", b"\xac", b"\xe2\x82")] == ["a", "€", ""]
    assert wire.done("stop").startswith('data: {"text":"\ufffd"}\n\nevent: done\n'.encode())


@pytest.mark.parametrize("end", [lambda w: w.done("stop"), lambda w: w.failed("m", "c", False)])
def test_half_a_character_at_the_end_is_said_once(end):
    wire = SSEFormat()
    wire.encode(b"\xf0\x9f\x98")
    first, second = end(wire), end(wire)
    assert first == 'data: {"text":"\ufffd"}\n\n'.encode() + second


@pytest.mark.parametrize(
    "usage, fields",
    [
        pytest.param(e.Usage(), {"input_tokens": None, "output_tokens": None}, id="unknown"),
        pytest.param(e.Usage(1, 2), {"input_tokens": 1, "output_tokens": 2}, id="totals"),
        pytest.param(
            e.Usage(9, 8, reasoning_tokens=7, cached_tokens=0),
            {"input_tokens": 9, "output_tokens": 8, "reasoning_tokens": 7, "cached_tokens": 0},
            id="parts",
        ),
    ],
)
def test_usage_fields(usage, fields):
    assert usage_fields(usage) == fields


def test_done():
    wire = SSEFormat()
    assert wire.done("stop") == b'event: done\ndata: {"reason":"stop","usage":null}\n\n'
    assert wire.done("length", e.Usage(1, 2)) == (
        b'event: done\ndata: {"reason":"length","usage":{"input_tokens":1,"output_tokens":2}}\n\n'
    )


def test_failed():
    assert SSEFormat().failed("Try “later”.\n", "upstream_timeout", True) == (
        'event: failed\ndata: {"message":"Try “later”.\\n","code":"upstream_timeout","retryable":true}\n\n'
    ).encode()


def test_format_describes_itself():
    wire = SSEFormat()
    assert (wire.name, wire.content_type) == ("sse", "text/event-stream; charset=utf-8")
    assert wire.heartbeat == HEARTBEAT
    assert wire.opening(2048) == opening(2048)


def test_streams_do_not_share_a_state():
    one, other = SSEFormat(), SSEFormat()
    one.encode(b"\xc3")
    assert b"\xef\xbf\xbd" in one.done("stop")
    assert b"\xef\xbf\xbd" not in other.done("stop")


def test_whole_stream_is_read_back():
    wire = SSEFormat()
    items = ["Good", e.TextDelta("bye"), e.ReasoningDelta("hm"), b"!", e.Usage(1, 2), e.Finish("stop")]
    stream = wire.opening(64) + b"".join(map(wire.encode, items)) + HEARTBEAT + wire.done("stop")
    assert [(event.event, json.loads(event.data)) for event in SSEDecoder().feed(stream)] == [
        (None, {"text": "Good"}),
        (None, {"text": "bye"}),
        ("reasoning", {"text": "hm"}),
        (None, {"text": "!"}),
        ("usage", {"input_tokens": 1, "output_tokens": 2}),
        ("done", {"reason": "stop", "usage": None}),
    ]


@pytest.mark.parametrize("reason", ["stop", 'a "b"\n', "é\u2028", Colour.RED, None])
def test_end_is_written_as_json_writes_it(reason):
    wire = SSEFormat()
    wire.encode("é".encode()[:1])
    fields = json.dumps({"reason": reason, "usage": None}, ensure_ascii=False, separators=(",", ":"))
    fields = fields.replace("\u2028", "\\u2028")
    assert wire.done(reason) == f'data: {{"text":"\ufffd"}}\n\nevent: done\ndata: {fields}\n\n'.encode()
