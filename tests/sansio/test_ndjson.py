"""NDJSON: the native shapes, one a line, whatever a reader takes for a line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from items import ITEMS
from splitting import every_way

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.ndjson import NDJSONFormat

KINDS = {
    "text": e.TextDelta, "reasoning": e.ReasoningDelta, "tool": e.ToolCallDelta, "json": e.JsonDelta,
    "usage": e.Usage, "custom": e.Custom, "event": e.Event, "comment": e.Comment,
}


def encode(*items):
    wire = NDJSONFormat()
    return b"".join(wire.encode(item) for item in items)


@pytest.mark.parametrize(
    "item, wire",
    [
        pytest.param(e.TextDelta("hi"), '{"type":"text","text":"hi"}\n', id="text"),
        pytest.param("é😀", '{"type":"text","text":"é😀"}\n', id="str"),
        pytest.param('"\\\r\n\0\x1c\x7f', '{"type":"text","text":"\\"\\\\\\r\\n\\u0000\\u001c\x7f"}\n',
                     id="controls-escaped"),
        pytest.param("a\u2028b\u2029c\x85d", '{"type":"text","text":"a\\u2028b\\u2029c\\u0085d"}\n',
                     id="line-ends-of-unicode-escaped"),
        pytest.param("\ud83d", '{"type":"text","text":"\\ud83d"}\n', id="lone-surrogate"),
        pytest.param("", "", id="empty-str"),
        pytest.param(e.TextDelta(""), "", id="empty-text"),
        pytest.param(b"a\xffb", '{"type":"text","text":"a\ufffdb"}\n', id="bytes-invalid"),
        pytest.param(e.ReasoningDelta("a\u2028"), '{"type":"reasoning","text":"a\\u2028"}\n', id="reasoning"),
        pytest.param(e.ReasoningDelta(""), "", id="empty-reasoning"),
        pytest.param(
            e.ToolCallDelta(0, "c1", "look_up", '{"q'),
            '{"type":"tool","index":0,"id":"c1","name":"look_up","arguments":"{\\"q"}\n',
            id="tool-first-piece",
        ),
        pytest.param(e.ToolCallDelta(1, arguments="}"), '{"type":"tool","index":1,"arguments":"}"}\n',
                     id="tool-later-piece"),
        pytest.param(e.JsonDelta("/a/0", "add", {"b": None}),
                     '{"type":"json","path":"/a/0","op":"add","value":{"b":null}}\n', id="json"),
        pytest.param({"type": "hi"}, '{"type":"json","path":"","op":"replace","value":{"type":"hi"}}\n',
                     id="dict"),
        pytest.param([1], '{"type":"json","path":"","op":"replace","value":[1]}\n', id="list"),
        pytest.param(e.Usage(1, 2), '{"type":"usage","input_tokens":1,"output_tokens":2}\n', id="usage"),
        pytest.param(e.Custom("a\u2029", [1, "\x85"]),
                     '{"type":"custom","name":"a\\u2029","data":[1,"\\u0085"]}\n', id="custom"),
        pytest.param(e.Event({"a": "b"}), '{"type":"event","data":{"a":"b"}}\n', id="event"),
        pytest.param(e.Event("a\nb", "own", "7", 0),
                     '{"type":"event","data":"a\\nb","event":"own","id":"7","retry":0}\n', id="event-whole"),
        pytest.param(e.Comment("hello\nworld"), '{"type":"comment","text":"hello\\nworld"}\n', id="comment"),
        pytest.param(e.Finish("length"), "", id="finish-is-said-by-done"),
    ],
)
def test_encode_says_each_item(item, wire):
    assert encode(item) == wire.encode()


def test_ends():
    assert NDJSONFormat().done("length", e.Usage(1, 2)) == (
        b'{"type":"done","reason":"length","usage":{"input_tokens":1,"output_tokens":2}}\n'
    )
    assert NDJSONFormat().failed("later", "upstream_timeout", True) == (
        b'{"type":"failed","message":"later","code":"upstream_timeout","retryable":true}\n'
    )


def test_heartbeat_and_opening_are_objects_that_readers_pass_over():
    """Not every reader takes a blank line; these are lines as all others are."""
    wire = NDJSONFormat()
    for line in [wire.heartbeat, *(wire.opening(size) for size in (0, 1, 1024, 5000))]:
        assert line.endswith(b"\n")
        for each in line.split(b"\n")[:-1]:
            assert json.loads(each.decode())["type"] == "comment" and len(each) < 1024
    assert len(wire.opening(5000)) == 5120


def test_bytes_may_be_cut_inside_a_character():
    for way, pieces in every_way("aé€😀".encode()):
        wire = NDJSONFormat()
        body = b"".join(map(wire.encode, pieces)) + wire.done("stop")
        lines = [json.loads(line) for line in body.decode().splitlines()]
        assert "".join(line["text"] for line in lines[:-1]) == "aé€😀", way


def test_half_a_character_at_the_end_is_said_before_it():
    wire = NDJSONFormat()
    wire.encode(b"\xf0\x9f")
    assert wire.done("stop").startswith('{"type":"text","text":"\ufffd"}\n{"type":"done"'.encode())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_has_no_form_for_is_refused(value):
    with pytest.raises(ValueError, match="NaN and Infinity"):
        encode({"a": value})
    with pytest.raises(TypeError):
        encode(e.Event(object()))


@given(st.lists(ITEMS, max_size=5))
def test_what_is_written_is_read_back(items):
    """By any idea of a line: that of bytes, and the widest one, that of Python's str."""
    wire = NDJSONFormat()
    body = b"".join(map(wire.encode, items)) + wire.done("stop")
    lines = body.split(b"\n")
    assert lines.pop() == b"" and body.decode().splitlines() == [line.decode() for line in lines]
    values = [json.loads(line.decode()) for line in lines]
    assert values.pop() == {"type": "done", "reason": "stop", "usage": None}
    said = [item for item in items if wire.encode(item)]
    assert [KINDS[value.pop("type")](**value) for value in values] == said
