"""Items of several channels in one stream, byte by byte."""

from __future__ import annotations

import json

import pytest
from dialects import read
from hypothesis import given
from hypothesis import strategies as st
from items import ITEMS

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.aisdk import AISDKFormat
from flask_llmstream.sansio.channels import (
    ChannelDone,
    ChannelFailed,
    ChannelFlush,
    Channels,
    Tagged,
    check_names,
)
from flask_llmstream.sansio.formats import make_format
from flask_llmstream.sansio.frames import FrameDecoder
from flask_llmstream.sansio.openai_format import OpenAIFormat
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.testing.upstreams import raw

TWO = Channels(["a", "b"])
ENDS = [
    Tagged("a", ChannelDone("length", e.Usage(1, 2))), Tagged("b", ChannelFailed("sorry", "broken", True)),
]


def write(wire, *items):
    return b"".join(wire.encode(item) for item in items)


def fields_of(written):
    text = written.decode("utf-8")
    return json.loads(text.partition("data: ")[2] or text)


@pytest.mark.parametrize(
    "item, sse, ndjson",
    [
        pytest.param(TWO, "", "", id="announcement"),
        pytest.param(Tagged("a", "hi"), 'data: {"channel":"a","text":"hi"}\n\n',
                     '{"type":"text","channel":"a","text":"hi"}\n', id="text"),
        pytest.param(Tagged("a", e.TextDelta("hi")), 'data: {"channel":"a","text":"hi"}\n\n',
                     '{"type":"text","channel":"a","text":"hi"}\n', id="text-delta"),
        pytest.param(Tagged('"', e.ReasoningDelta("hm")),
                     'event: reasoning\ndata: {"channel":"\\"","text":"hm"}\n\n',
                     '{"type":"reasoning","channel":"\\"","text":"hm"}\n', id="reasoning"),
        pytest.param(Tagged("a", e.ReasoningDelta("")), "", "", id="no-reasoning"),
        pytest.param(Tagged("a", ""), "", "", id="no-text"),
        pytest.param(Tagged("a", ChannelFlush()), "", "", id="flush"),
        pytest.param(Tagged("a", {"k": 1}),
                     'event: json\ndata: {"channel":"a","path":"","op":"replace","value":{"k":1}}\n\n',
                     '{"type":"json","channel":"a","path":"","op":"replace","value":{"k":1}}\n', id="json"),
        pytest.param(Tagged("a", e.Event({"channel": "mine", "x": 1}, "note", "7")),
                     'event: note\nid: 7\ndata: {"channel":"a","x":1}\n\n',
                     '{"type":"event","channel":"a","data":{"channel":"mine","x":1},'
                     '"event":"note","id":"7"}\n',
                     id="event"),
        pytest.param(Tagged("a", e.Event("x")), 'data: {"channel":"a","data":"x"}\n\n',
                     '{"type":"event","channel":"a","data":"x"}\n', id="event-of-text"),
        pytest.param(Tagged("a", e.Comment("x")), ": x\n",
                     '{"type":"comment","channel":"a","text":"x"}\n', id="comment"),
        pytest.param(ENDS[0],
                     'event: done\ndata: {"channel":"a","reason":"length",'
                     '"usage":{"input_tokens":1,"output_tokens":2}}\n\n',
                     '{"type":"done","channel":"a","reason":"length",'
                     '"usage":{"input_tokens":1,"output_tokens":2}}\n', id="done"),
        pytest.param(ENDS[1],
                     'event: failed\n'
                     'data: {"channel":"b","message":"sorry","code":"broken","retryable":true}\n\n',
                     '{"type":"failed","channel":"b","message":"sorry","code":"broken","retryable":true}\n',
                     id="failed"),
    ],
)
def test_an_item_goes_out_with_the_name_of_its_channel(item, sse, ndjson):
    assert make_format("sse").encode(item).decode() == sse
    assert make_format("ndjson").encode(item).decode() == ndjson


@pytest.mark.parametrize("name", ["sse", "ndjson", "frames"])
@given(items=st.lists(st.tuples(st.sampled_from("ab"), ITEMS), max_size=8))
def test_what_a_channel_sends_is_what_it_would_send_alone(name, items):
    """But for the tag: whatever comes between, of the other channel."""
    wire = make_format(name)
    write(wire, TWO)
    for channel in "ab":
        alone = make_format(name)
        if name == "frames":
            alone.channel = 1 + "ab".index(channel)
        for tag, item in items:
            if tag != channel:
                continue
            try:
                expected = alone.encode(item)
            except ValueError:
                continue
            written = wire.encode(Tagged(channel, item))
            if name == "frames":
                assert written == expected
            elif expected and not isinstance(item, (e.Event, e.Comment)):
                fields, plain = fields_of(written), fields_of(expected)
                assert fields.pop("channel") == channel
                assert fields == plain


def test_halves_of_characters_are_joined_within_their_channel():
    for name in ("sse", "frames"):
        wire = make_format(name)
        written = write(wire, *[Tagged(*pair) for pair in [("a", b"\xc3"), ("b", b"\xc3"), ("a", b"\xa9")]])
        assert written.decode().count("é") == 1
        assert "\ufffd" in wire.encode(Tagged("b", ChannelDone())).decode()


def test_frames_count_the_channels_and_say_so_first():
    wire = make_format("frames")
    written = write(wire, TWO)
    assert written == b'\x00\x00\x00\x24\x06\x00{"name":"channels","data":["a","b"]}'
    assert wire.encode(Tagged("b", "Hi")) == b"\x00\x00\x00\x02\x01\x02Hi"
    frames = FrameDecoder().feed(write(wire, *ENDS) + wire.done("stop"))
    assert [(each.kind, each.channel) for each in frames] == [("done", 1), ("failed", 2), ("done", 0)]


def test_the_decoder_of_event_streams_reads_them():
    wire = make_format("sse")
    events = SSEDecoder().feed(write(wire, TWO, Tagged("a", "x"), *ENDS) + wire.done("stop"))
    assert [(each.event, json.loads(each.data).get("channel")) for each in events] == [
        (None, "a"), ("done", "a"), ("failed", "b"), ("done", None),
    ]


def test_ai_sdk_has_parts_open_at_the_same_time():
    wire = AISDKFormat("m1")
    call = e.ToolCallDelta(0, None, "f", "{}")
    written = write(
        wire, TWO, Tagged("a", "x"), Tagged("b", e.ReasoningDelta("y")), Tagged("a", "z"), Tagged("b", call),
        Tagged("a", {"k": 1}), Tagged("a", e.JsonDelta("/k", "add", 2)), Tagged("b", e.Custom("mine", 3)),
        Tagged("b", e.Custom("source-url", {"sourceId": "s", "url": "u"})), *ENDS
    )
    parts = [json.loads(event.data) for event in SSEDecoder().feed(written)]
    kinds = [part["type"] for part in parts]
    assert kinds[:2] == ["start", "start-step"] and kinds.count("start") == 1
    [first] = [part for part in parts if part["type"] == "text-start"]
    assert first["providerMetadata"] == {"llmstream": {"channel": "a"}}
    own = [part for part in parts if part.get("id") == first["id"]]
    assert [part["delta"] for part in own if "delta" in part] == ["x", "z"]
    assert kinds.index("reasoning-start") < kinds.index("text-end")
    assert {part["toolCallId"] for part in parts if "toolCallId" in part} == {"call_m1_2_0"}
    data = [part["data"] for part in parts if part["type"].startswith("data-")]
    assert data == [
        {"channel": "a", "data": {"k": 1}},
        {"channel": "a", "path": "/k", "op": "add", "value": 2},
        {"channel": "b", "data": 3},
        {"channel": "a", "state": "done", "reason": "length"},
        {"channel": "b", "state": "failed", "message": "sorry", "code": "broken"},
    ]
    assert "source-url" in kinds and "error" not in kinds
    assert read(wire.done("stop"))[-1]
    cancelled = write(AISDKFormat(), Tagged("a", call), Tagged("a", ChannelDone("cancelled")))
    assert b"tool-input-error" in cancelled


def test_openai_has_a_choice_for_each_channel():
    wire = OpenAIFormat("c1")
    call = e.ToolCallDelta(0, None, "f")
    written = write(wire, TWO, Tagged("a", "x"), Tagged("b", "y"), Tagged("b", call), *ENDS)
    events = SSEDecoder().feed(written + wire.done("stop", e.Usage(1, 2)))
    assert events[-1].data == "[DONE]"
    chunks = [json.loads(event.data) for event in events[:-1]]
    assert chunks[-1]["usage"]["total_tokens"] == 3 and chunks[-1]["choices"] == []
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    for index, text in enumerate("xy"):
        own = [choice for choice in choices if choice["index"] == index]
        assert [choice["delta"].get("role") for choice in own].count("assistant") == 1
        assert "".join(choice["delta"].get("content") or "" for choice in own) == text
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == ["length"][index:]


@pytest.mark.parametrize("name", ["text", "openai-responses", "anthropic", "ag-ui"])
def test_formats_without_a_place_for_channels_say_so(name):
    with pytest.raises(ValueError, match="cannot keep channels apart"):
        make_format(name).encode(TWO)


@pytest.mark.parametrize("inner", [Tagged("b", "x"), TWO])
def test_a_channel_has_no_channels(inner):
    with pytest.raises(TypeError, match="of its own"):
        make_format("sse").encode(Tagged("a", inner))


@pytest.mark.parametrize(
    "names, error",
    [
        pytest.param([], ValueError, id="none"),
        pytest.param([str(number) for number in range(256)], ValueError, id="too-many"),
        pytest.param([""], ValueError, id="empty"),
        pytest.param(["x" * 65], ValueError, id="long"),
        pytest.param(["a\nb"], ValueError, id="line-end"),
        pytest.param(["a\x85"], ValueError, id="c1"),
        pytest.param(["a\u2028"], ValueError, id="line-separator"),
        pytest.param(["\ud83d"], ValueError, id="half"),
        pytest.param([b"a"], TypeError, id="bytes"),
    ],
)
def test_names_that_cannot_be(names, error):
    with pytest.raises(error):
        check_names(names)


def test_names_that_can_be():
    assert check_names(["a", "Grüße \U0001f600", "x" * 64]) == ("a", "Grüße \U0001f600", "x" * 64)
    assert len(check_names(str(number) for number in range(255))) == 255


def test_the_openai_sdk_makes_a_message_of_each_channel(upstream, openai_client):
    if not hasattr(openai_client.chat.completions, "stream"):
        pytest.skip("this stack's openai SDK does not put completions together")
    wire = OpenAIFormat()
    items = [Tagged("a", "He"), Tagged("b", "Good"), Tagged("a", "llo"), Tagged("b", " day")]
    written = write(wire, TWO, *items, Tagged("a", ChannelDone()), ENDS[1])
    upstream.script = [raw(written + wire.done("stop", e.Usage(1, 2)))]
    messages = [{"role": "user", "content": "Hello"}]
    with openai_client.chat.completions.stream(model="any", messages=messages, n=2) as stream:
        choices = stream.get_final_completion().choices
    found = [(choice.message.role, choice.message.content, choice.finish_reason) for choice in choices]
    assert found == [("assistant", "Hello", "stop"), ("assistant", "Good day", None)]
