"""Frames: what is written is read back, however it was cut, and nothing else is believed."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from items import ITEMS
from splitting import decode_every_way, every_way

from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError, WireError
from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.frames import KINDS, Frame, FrameDecoder, FramesFormat, with_cursor
from flask_llmstream.sansio.utf8 import plain_utf8

#: Those whose payload is JSON, and what makes the item of its fields.
MAKERS = {
    "tool": e.ToolCallDelta, "json": e.JsonDelta, "usage": e.Usage, "custom": e.Custom, "event": e.Event,
}


def encode(*items):
    wire = FramesFormat()
    return b"".join(wire.encode(item) for item in items)


def frame(kind, payload, channel=0):
    """Write a frame by hand."""
    return len(payload).to_bytes(4, "big") + bytes([kind, channel]) + payload


def read(*pieces, **options):
    decoder = FrameDecoder(**options)
    return [each for piece in pieces for each in decoder.feed(piece)] + decoder.flush()


# -- writing -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item, wire",
    [
        pytest.param(e.TextDelta("Hi"), b"\0\0\0\2\1\0Hi", id="text"),
        pytest.param("é\u2028\0", frame(1, "é\u2028\0".encode()), id="str"),
        pytest.param("a" * 70000, b"\0\1\x11\x70\1\0" + b"a" * 70000, id="long"),
        pytest.param("", b"", id="empty-str"),
        pytest.param("\ud83d", b"", id="half-a-pair-waits"),
        pytest.param(b"a\xffb", frame(1, "a\ufffdb".encode()), id="bytes-invalid"),
        pytest.param(e.ReasoningDelta("hm"), b"\0\0\0\2\2\0hm", id="reasoning"),
        pytest.param(e.ReasoningDelta(""), b"", id="empty-reasoning"),
        pytest.param(
            e.ToolCallDelta(0, "c1", "look_up", "{"),
            frame(3, b'{"index":0,"id":"c1","name":"look_up","arguments":"{"}'), id="tool",
        ),
        pytest.param(e.JsonDelta("/a", "add", "\ud83d"),
                     frame(4, b'{"path":"/a","op":"add","value":"\\ud83d"}'), id="json"),
        pytest.param([1], frame(4, b'{"path":"","op":"replace","value":[1]}'), id="list"),
        pytest.param(e.Usage(1, 2), frame(5, b'{"input_tokens":1,"output_tokens":2}'), id="usage"),
        pytest.param(e.Custom("own", 1), frame(6, b'{"name":"own","data":1}'), id="custom"),
        pytest.param(e.Event("a\nb", id="7"), frame(7, b'{"data":"a\\nb","id":"7"}'), id="event"),
        pytest.param(e.Comment("hi\ud83d"), frame(0, "hi\ufffd".encode()), id="comment"),
        pytest.param(e.Finish("length"), b"", id="finish-is-said-by-done"),
    ],
)
def test_encode_says_each_item(item, wire):
    assert encode(item) == wire


def test_ends():
    assert FramesFormat().done("stop", e.Usage(1, 2)) == frame(
        8, b'{"reason":"stop","usage":{"input_tokens":1,"output_tokens":2}}'
    )
    assert FramesFormat().failed("later", "upstream_timeout", True) == frame(
        9, b'{"message":"later","code":"upstream_timeout","retryable":true}'
    )


def test_heartbeat_and_opening_are_comments():
    wire = FramesFormat()
    assert wire.heartbeat == wire.opening(0) == wire.opening(6) == bytes(6)
    assert wire.opening(10) == frame(0, b"    ")


def test_channel_is_written_into_every_frame():
    wire = FramesFormat()
    wire.channel = 255
    body = wire.opening(0) + wire.encode("a") + wire.encode(e.Custom("b")) + wire.done("stop")
    assert [each.channel for each in read(body)] == [255, 255, 255]
    assert body[5] == 255


def test_halves_of_a_pair_find_each_other_in_text_and_in_reasoning():
    wire = FramesFormat()
    hm, rest = e.ReasoningDelta("\ud83c"), e.ReasoningDelta("\udf0d")
    items = ["a\ud83d", hm, e.Custom("x"), "\ude00", rest, b"\xc3"]
    body = b"".join(map(wire.encode, items))
    assert [each.data for each in read(body) if each.kind != "custom"] == ["a", "😀", "🌍"]


@pytest.mark.parametrize("end", [lambda w: w.done("stop"), lambda w: w.failed("m", "c", False)])
@pytest.mark.parametrize(
    "items, left", [
        ([e.ReasoningDelta("\ud83c")], [("reasoning", "\ufffd")]),
        (["\ud83c"], [("text", "\ufffd")]),
        ([b"\xc3"], [("text", "\ufffd")]),
        (
            [b"\xc3", "\ud83d", e.ReasoningDelta("\ud83d")],
            [("text", "\ufffd\ufffd"), ("reasoning", "\ufffd")],
        ),
    ],
)
def test_what_waits_for_its_other_half_is_said_before_the_end_and_once(items, left, end):
    wire = FramesFormat()
    assert b"".join(map(wire.encode, items)) == b""
    first, second = read(end(wire)), read(end(wire))
    assert [(each.kind, each.data) for each in first[:-1]] == left
    assert first[-1:] == second


def test_no_frame_ends_inside_a_character():
    for way, pieces in every_way("aé€😀".encode()):
        wire = FramesFormat()
        frames = read(b"".join(map(wire.encode, pieces)) + wire.done("stop"))
        assert "".join(each.data for each in frames[:-1]) == "aé€😀", way


# -- there and back ------------------------------------------------------------------------


def as_items(frames):
    """Return what a stream of *frames* has said: its items, with all text and all reasoning joined."""
    joined = {"text": "", "reasoning": ""}
    items = []
    for each in frames:
        if each.kind in joined:
            joined[each.kind] += each.data
        else:
            items.append(MAKERS[each.kind](**each.data))
    return joined, items


@given(st.lists(ITEMS, max_size=6), st.integers(0, 255), st.data())
def test_what_is_written_is_read_back_however_it_is_cut(items, channel, data):
    wire = FramesFormat()
    wire.channel = channel
    body = b"".join(map(wire.encode, items)) + wire.done("stop")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=5)))
    pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)])]
    comments = []
    frames = read(*pieces, on_comment=comments.append)
    assert frames.pop() == Frame("done", {"reason": "stop", "usage": None}, channel)
    assert {each.channel for each in frames} <= {channel}
    joined, others = as_items(frames)
    for kind, delta in (("text", e.TextDelta), ("reasoning", e.ReasoningDelta)):
        whole = "".join(item.text for item in items if isinstance(item, delta))
        assert joined[kind] == plain_utf8(whole).decode()
    assert others == [item for item in items if isinstance(item, tuple(MAKERS.values()))]
    said = [item.text for item in items if isinstance(item, e.Comment)]
    assert comments == [plain_utf8(text).decode() for text in said]


def test_every_split():
    wire = FramesFormat()
    wire.channel = 3
    body = wire.opening(9) + wire.encode("é") + wire.heartbeat + frame(77, b"later")
    body += wire.encode(e.Custom("x", [1]))
    decode_every_way(
        FrameDecoder, body + frame(2, b""),
        [Frame("text", "é", 3), Frame("custom", {"name": "x", "data": [1]}, 3), Frame("reasoning", "")],
    )


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_kind_of_bytes_is_taken(kind):
    body = encode("a")
    assert read(kind(body[:3]), kind(body[3:])) == [Frame("text", "a")]


def test_comments_are_told_and_passed_over():
    heard = []
    body = FramesFormat().heartbeat + frame(0, b"a\xff") + frame(0, "é".encode(), 9)
    assert read(body, on_comment=heard.append) == [] and heard == ["", "a\ufffd", "é"]
    assert read(body) == []


def test_cursor_is_of_the_next_frame():
    """Of the last one, where several were marked together; comments and later kinds have none."""
    marked = with_cursor(encode("a", "b", e.Custom("x")), "c-1")
    assert marked == encode("a", "b") + frame(10, b"c-1") + encode(e.Custom("x"))
    two = with_cursor(encode("c"), "c-2") + with_cursor(encode("d"), "c-3")
    between = frame(0, b"") + frame(77, b"")
    body = marked + FramesFormat().heartbeat + two[:9] + between + two[9:] + encode("e")
    decode_every_way(FrameDecoder, body, [
        Frame("text", "a"), Frame("text", "b"), Frame("custom", {"name": "x", "data": None}, 0, "c-1"),
        Frame("text", "c", 0, "c-2"), Frame("text", "d", 0, "c-3"), Frame("text", "e"),
    ])


def test_unknown_kinds_are_passed_over():
    body = b"".join(frame(kind, b"\xff") for kind in range(len(KINDS) + 1, 256))
    assert read(body + encode("a")) == [Frame("text", "a")]


# -- garbage and limits --------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, payload, wanted",
    [
        (1, b"\xff", "text frame is not UTF-8"),
        (1, b"a\xc3", "text frame is not UTF-8"),
        (1, b"\xed\xa0\x80", "text frame is not UTF-8"),
        (2, b"\x80", "reasoning frame is not UTF-8"),
        (3, b"", "tool frame is not JSON in UTF-8"),
        (4, b"{", "json frame is not JSON in UTF-8"),
        (5, b"\xff", "usage frame is not JSON in UTF-8"),
        (6, b"NaN", "custom frame is not JSON in UTF-8"),
        (7, b"{} {}", "event frame is not JSON in UTF-8"),
        (8, b"[-Infinity]", "done frame is not JSON in UTF-8"),
        (9, b"[" * 100000, "failed frame is not JSON in UTF-8"),
        (10, b"\xff", "cursor frame is not UTF-8"),
    ],
)
def test_payload_that_is_not_what_its_kind_asks_for_is_an_error(kind, payload, wanted):
    with pytest.raises(DecodeError, match=wanted) as caught:
        read(frame(kind, payload))
    assert caught.value.__context__ is None  # it would hold somebody's answer
    assert caught.value.line is None


@pytest.mark.parametrize(
    "fault, kind", [(frame(1, b"\xff"), DecodeError), (frame(1, b"a" * 11), BufferLimitExceeded)],
)
def test_what_was_complete_before_a_fault_comes_first(fault, kind):
    good = encode("a", "b")
    for way, pieces in every_way(good + fault + good):
        decoder = FrameDecoder(max_frame=10)
        frames = []
        with pytest.raises(kind):
            for piece in pieces:
                frames += decoder.feed(piece)
            decoder.flush()
        assert frames == [Frame("text", "a"), Frame("text", "b")], way
        for again in (lambda: decoder.feed(good), decoder.flush, lambda: decoder.feed(b"")):
            with pytest.raises(kind):
                again()
        decoder.reset()
        assert decoder.feed(good) == frames


def test_limit_is_of_the_payload_and_is_seen_before_it_comes():
    assert read(frame(1, b"a" * 10), max_frame=10) == [Frame("text", "a" * 10)]
    with pytest.raises(BufferLimitExceeded, match="has 11 bytes, more than max_frame=10; raise") as caught:
        FrameDecoder(max_frame=10).feed(frame(1, b"a" * 11)[:6])
    assert caught.value.limit == 10


def test_default_limit():
    FrameDecoder().feed((1 << 20).to_bytes(4, "big") + b"\1\0")
    with pytest.raises(BufferLimitExceeded):
        FrameDecoder().feed(((1 << 20) + 1).to_bytes(4, "big") + b"\1\0")


def test_an_http_error_page_is_no_frame():
    with pytest.raises(WireError):
        read(b"<!doctype html><title>502</title>")


@pytest.mark.parametrize("cut", range(1, 8))
def test_end_inside_a_frame_is_an_error(cut):
    body = encode("a", "bc")
    decoder = FrameDecoder()
    assert decoder.feed(body[: 7 + cut]) == [Frame("text", "a")]
    with pytest.raises(DecodeError, match=f"ended inside a frame, {cut} bytes after it began"):
        decoder.flush()


def test_feed_after_flush_is_a_mistake_until_reset():
    decoder = FrameDecoder()
    assert decoder.flush() == []
    with pytest.raises(RuntimeError, match="feed\\(\\) after flush\\(\\): call reset\\(\\)"):
        decoder.feed(b"")
    decoder.reset()
    assert decoder.feed(encode("a")) == [Frame("text", "a")]


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_garbage_raises_what_is_documented(pieces):
    decoder = FrameDecoder(max_frame=64)
    try:
        for piece in pieces:
            decoder.feed(piece)
        decoder.flush()
    except WireError:
        pass


@given(st.sampled_from(range(len(KINDS))), st.binary(max_size=30))
def test_garbage_in_a_payload_raises_what_is_documented(kind, payload):
    try:
        (found,) = read(frame(kind, payload)) or [None]
    except DecodeError:
        return
    assert found is None or (found.kind == KINDS[kind] and json.dumps(found.data) is not None)


def test_memory_is_bounded_by_the_limit():
    """A frame that does not end, and then any number of short ones."""
    decoder = FrameDecoder(max_frame=100_000)
    tracemalloc.start()
    try:
        body = frame(0, b"x" * 100_000)
        for _ in range(100):
            for at in range(0, len(body), 5000):
                decoder.feed(body[at : at + 5000])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000, peak


def test_fault_lets_go_of_the_memory():
    """Also while its error is kept: a traceback holds the variables of its functions."""
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError) as caught:
            for piece in [frame(1, b"\xff" * 500_000)[:6], *[b"\xff" * 1000] * 500]:
                decoder.feed(piece)
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 250_000, (held, caught)


def test_frame_is_a_value():
    assert Frame("text", "a") == Frame("text", "a", 0) != Frame("text", "a", 1)
    assert repr(Frame("text", "a")) == "Frame(kind='text', data='a', channel=0, cursor=None)"
