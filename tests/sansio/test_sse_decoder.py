"""The event stream decoder against the specification, whole and in every split."""

from __future__ import annotations

import pytest
import reference
from costs import costs_at_most
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import decode_every_way, every_way

from flask_llmstream.exceptions import BufferLimitExceeded
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.sse import SSEDecoder

BOM = b"\xef\xbb\xbf"


def case(wire, events, id):
    return pytest.param(wire, events, id=id)


@pytest.mark.parametrize(
    "wire, events",
    [
        # the examples of the specification
        case(
            b"data: This is the first message.\n\n"
            b"data: This is the second message, it\ndata: has two lines.\n\n"
            b"data: This is the third message.\n\n",
            [
                Event("This is the first message."),
                Event("This is the second message, it\nhas two lines."),
                Event("This is the third message."),
            ],
            "spec-messages",
        ),
        case(
            b"event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\nevent: add\ndata: 113411\n\n",
            [Event("73857293", "add"), Event("2153", "remove"), Event("113411", "add")],
            "spec-named",
        ),
        case(b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event("YHOO\n+2\n10")], "spec-stocks"),
        case(
            b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
            [Event("first event", id="1"), Event("second event", id="")],
            "spec-four-blocks",
        ),
        case(b"data\n\ndata\ndata\n\ndata:\n", [Event(""), Event("\n")], "spec-empty-data"),
        case(b"data:test\n\ndata: test\n\n", [Event("test"), Event("test")], "spec-space-after-colon"),
        # the beginning
        case(b"", [], "nothing"),
        case(BOM, [], "bom-alone"),
        case(BOM + b"data: 1\n\n", [Event("1")], "bom"),
        case(BOM + BOM + b"data: 1\n\ndata: 2\n\n", [Event("2")], "bom-twice-is-part-of-a-field-name"),
        case(b"data: 1\n\n" + BOM + b"data: 2\n\n", [Event("1")], "bom-later-is-part-of-a-field-name"),
        case(b"data: " + BOM + b"1\n\n", [Event("\ufeff1")], "bom-in-data-stays"),
        case(b"\xef\xbbdata: 1\n\n", [], "half-a-bom-is-damage"),
        case(b"\n\n\r\r\ndata: 1\n\n", [Event("1")], "blank-lines-first"),
        # ends of lines
        case(b"data: 1\r\rdata: 2\r\n\r\ndata: 3\n\n", [Event("1"), Event("2"), Event("3")], "ends-each"),
        case(b"data: 1\n\rdata: 2\r\n\ndata: 3\r\r\n", [Event("1"), Event("2"), Event("3")], "ends-mixed"),
        case(b"data: 1\r\ndata: 2\rdata: 3\ndata: 4\r\n\r", [Event("1\n2\n3\n4")], "ends-inside"),
        case(b"data: 1\r\n\r\ndata: 2\r\n\r\n", [Event("1"), Event("2")], "ends-crlf"),
        case(b"data: 1\r\r\n\ndata: 2\n\n", [Event("1"), Event("2")], "ends-cr-crlf"),
        case(b"data: 1\n\n\n\n\ndata: 2\n\n\n", [Event("1"), Event("2")], "blank-lines-between"),
        case(
            "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\n\n".encode(),
            [Event("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg")],
            "other-line-separators-are-text",
        ),
        # fields
        case(b"data:1\ndata:  2\ndata:\t3\n\n", [Event("1\n 2\n\t3")], "one-space-is-removed"),
        case(b"data: 1: 2 :3\n\n", [Event("1: 2 :3")], "colons-in-data"),
        case(b" data: 1\ndata : 2\nDATA: 3\ndatax: 4\ndata: 5\n\n", [Event("5")], "field-names-are-exact"),
        case(b"data\0: 1\ndata: 2\n\n", [Event("2")], "nul-in-a-field-name"),
        case(b"data: 1\0\n\n", [Event("1\0")], "nul-in-data"),
        case(b"foo: bar\nlast: 1\n\n", [], "unknown-fields"),
        case(b":\n: hb\n:hb\ndata: 1\n: data: 2\ndata: 3\n:\n\n", [Event("1\n3")], "comments"),
        case(b": hb\n\n: hb\n\n", [], "comments-alone"),
        case(b"event: a\ndata: 1\n\ndata: 2\n\n", [Event("1", "a"), Event("2")], "name-holds-for-one-event"),
        case(b"event: a\n\ndata: 1\n\n", [Event("1")], "name-without-data-is-forgotten"),
        case(b"event: a\nevent: b\ndata: 1\n\n", [Event("1", "b")], "last-name-counts"),
        case(b"event: a\nevent:\ndata: 1\n\n", [Event("1")], "empty-name-is-none"),
        case(b"event:  a \ndata: 1\n\n", [Event("1", " a ")], "name-with-spaces"),
        # ids
        case(
            b"data: 0\n\nid: 1\ndata: 1\n\ndata: 2\n\n",
            [Event("0"), Event("1", id="1"), Event("2", id="1")],
            "id-holds-on",
        ),
        case(b"id: 1\n\ndata: 1\n\n", [Event("1", id="1")], "id-without-data-counts"),
        case(b"id: 1\ndata: 1\n\nid\ndata: 2\n\n", [Event("1", id="1"), Event("2", id="")], "id-is-reset"),
        case(
            b"id: 1\ndata: 1\n\nid: 2\0\ndata: 2\n\n",
            [Event("1", id="1"), Event("2", id="1")],
            "id-with-nul-is-ignored",
        ),
        case("id:  …é \ndata: 1\n\n".encode(), [Event("1", id=" …é ")], "id-is-any-text"),
        # the end
        case(b"data: 1\n\ndata: 2", [Event("1")], "end-inside-a-line"),
        case(b"data: 1\n\ndata: 2\n", [Event("1")], "end-before-the-blank-line"),
        case(b"data: 1\n\ndata: 2\r", [Event("1")], "end-after-cr"),
        # UTF-8
        case("data: é€😀\n\n".encode(), [Event("é€😀")], "utf8"),
        case(b"data: \xff1\n\n", [Event("\ufffd1")], "utf8-invalid-byte"),
        case(b"data: \xf0\x9f\x98\n\n", [Event("\ufffd")], "utf8-cut-by-a-line-end"),
        case(b"data: \xe2\x82\xe2\x82\xac\n\n", [Event("\ufffd€")], "utf8-cut-by-a-character"),
        case(b"data: \xc0\x80\xed\xa0\x80\n\n", [Event("\ufffd" * 5)], "utf8-overlong-and-surrogate"),
        case(b"da\xfeta: 1\n: \xfe\ndata: 2\n\n", [Event("2")], "utf8-invalid-elsewhere"),
    ],
)
def test_decode_follows_the_specification(wire, events):
    decode_every_way(SSEDecoder, wire, events)
    assert reference.parse(wire).events == events


@pytest.mark.parametrize(
    "wire, last_event_id",
    [
        case(b"id: 1\ndata: 1\n\n", "1", "with-data"),
        case(b"id: 1\n\n", "1", "without-data"),
        case(b"id: 1\ndata: 1\n", "", "not-before-the-blank-line"),
        case(b"id: 1\n\nid: 2\n", "1", "incomplete-block-keeps-the-one-before"),
        case(b"id: 1\n\nid:\n\n", "", "empty-resets"),
        case(b"id: 1\n\nid: 2\0\n\n", "1", "nul-is-ignored"),
        case(b"id: 1\n\ndata: 2\n\n", "1", "holds-on"),
        case(b"id: 1\n: hb\ndata: 1\n\n: hb\n", "1", "comments-between"),
    ],
)
def test_last_event_id_after(wire, last_event_id):
    for way, pieces in every_way(wire):
        decoder = SSEDecoder()
        for piece in pieces:
            decoder.feed(piece)
        assert decoder.last_event_id == last_event_id, way


@pytest.mark.parametrize(
    "line, retry",
    [
        case("retry: 3000", 3000, "digits"),
        case("retry:3", 3, "no-space"),
        case("retry: 0", 0, "zero"),
        case("retry: 000", 0, "zeros"),
        case("retry: 0000000000000000000000010", 10, "leading-zeros"),
        case("retry: 999999999999999999", 999999999999999999, "18-digits"),
        case("retry: 1000000000000000000", None, "19-digits"),
        case("retry: " + "9" * 5000, None, "5000-digits"),
        case("retry", None, "nothing"),
        case("retry:", None, "empty"),
        case("retry: 1000x", None, "digits-then-letters"),
        case("retry: 0x10", None, "hexadecimal"),
        case("retry: +5", None, "sign"),
        case("retry: -5", None, "negative"),
        case("retry: 1_0", None, "underscore"),
        case("retry: 1.5", None, "fraction"),
        case("retry:  5", None, "second-space"),
        case("retry: 5 ", None, "trailing-space"),
        case("retry: ٣", None, "arabic-digit"),
        case("retry: ²", None, "superscript"),
    ],
)
def test_retry_is_read_from_ascii_digits_only(line, retry):
    for _, pieces in every_way(line.encode()[:100] if len(line) > 100 else line.encode()):
        decoder = SSEDecoder()
        for piece in pieces:
            assert decoder.feed(piece) == []
        assert decoder.feed(b"\n") == []  # takes effect without a blank line
        assert decoder.retry == retry


def test_bad_retry_keeps_the_good_one():
    decoder = SSEDecoder()
    decoder.feed(b"retry: 10\nretry: x\n\n")
    assert decoder.retry == 10


def test_comments_are_heard_at_the_end_of_their_line():
    """A heartbeat has no blank line; whoever watches for silence must hear it at once."""
    for way, pieces in every_way(b": hb\n:\n:a\n:  b\ndata: 1\n: c \n\n: incomplete"):
        comments = []
        decoder = SSEDecoder(on_comment=comments.append)
        for piece in pieces:
            decoder.feed(piece)
        assert comments == ["hb", "", "a", " b", "c "], way


def test_other_kinds_of_bytes_are_taken():
    for kind in (bytes, bytearray, memoryview):
        decoder = SSEDecoder()
        wire = "data: é\n\n".encode()
        assert decoder.feed(kind(wire[:7])) + decoder.feed(kind(wire[7:])) == [Event("é")]


def test_text_is_not_taken():
    with pytest.raises(TypeError):
        SSEDecoder().feed("data: 1\n\n")


# -- flush and reset --------------------------------------------------------------------------


def test_feed_after_flush_is_refused():
    decoder = SSEDecoder()
    assert decoder.flush() == []
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        decoder.feed(b"data: 1\n\n")
    assert decoder.flush() == []


@pytest.mark.parametrize(
    "rest",
    [b"", b"data: old", b"data: old\n", b"event: old\n", b"id: old\n", b"data: \xf0\x9f", b"data: old\r"],
)
def test_reset_forgets_the_old_connection_but_not_its_id(rest):
    decoder = SSEDecoder()
    decoder.feed(b"retry: 7\nid: 1\ndata: 1\n\n" + rest)
    decoder.reset()
    # The LF would be swallowed as the second half of a CRLF, the BOM would be text.
    assert decoder.feed(BOM + b"\ndata: 2\n\n") == [Event("2")]
    assert (decoder.last_event_id, decoder.retry) == ("1", 7)


def test_last_event_id_may_be_assigned():
    decoder = SSEDecoder()
    decoder.last_event_id = "seen before"
    assert decoder.feed(b"data: 1\n\n") == [Event("1")]
    assert decoder.last_event_id == "seen before"


# -- limits -----------------------------------------------------------------------------------


def outcome(pieces, limit):
    """Return the events, and whether the limit was broken behind them."""
    decoder = SSEDecoder(max_buffer=limit)
    events = []
    try:
        for piece in pieces:
            events += decoder.feed(piece)
        events += decoder.flush()
    except BufferLimitExceeded as error:
        assert error.limit == limit
        return events, True
    return events, False


@pytest.mark.parametrize(
    "wire, events, broken",
    [
        pytest.param(b"data: 34\n\n", [Event("34")], False, id="line-fits"),
        pytest.param(b"data: 345\n\n", [], True, id="line-too-long"),
        pytest.param(b"data: 345", [], True, id="line-too-long-before-its-end"),
        pytest.param(
            b"data: 1\n\ndata: 2\n\ndata: 345\n\ndata: 4\n\n", [Event("1"), Event("2")], True,
            id="events-before-it-are-kept",
        ),
        pytest.param(b"\n\r\n\n" * 9 + b"data: 34\n\n", [Event("34")], False, id="blank-lines-are-free"),
        pytest.param(b":345678\n" * 9 + b"data: 34\n\n", [Event("34")], False, id="comments-are-free"),
        pytest.param(b":23456789\n", [], True, id="comment-too-long"),
        pytest.param(b"data:1\ndata:2\n\n", [Event("1\n2")], False, id="two-lines-fit"),
        pytest.param(b"data: \ndata: 2\n\n", [Event("\n2")], False, id="spaces-are-free"),
        pytest.param(b"data: 1\ndata: 2\n\n", [], True, id="two-lines-do-not-fit"),
        pytest.param(b"data:1\ndata:23", [], True, id="second-line-too-long-before-its-end"),
        pytest.param(b"data:1\ndata:2\ndata:3\n\n", [], True, id="too-many-lines"),
        pytest.param(b"data\n" * 5 + b"\n", [Event("\n" * 4)], False, id="empty-lines-fit"),
        pytest.param(b"data\n" * 9 + b"\n", [], True, id="too-many-empty-lines"),
        pytest.param(b"event: x\ndata: 1\n\n", [Event("1", "x")], False, id="name-fits"),
        pytest.param(b"event: xy\ndata: 1\n\n", [], True, id="name-too-long"),
        pytest.param("data: é€\n\n".encode(), [Event("é€")], False, id="characters-are-counted"),
    ],
)
def test_limit_holds_in_every_split(wire, events, broken):
    for way, pieces in every_way(wire):
        assert outcome(pieces, 8) == (events, broken), way


def test_decoder_past_its_limit_stays_broken_until_reset():
    decoder = SSEDecoder(max_buffer=8)
    assert decoder.feed(b"data: 1\n\ndata: 345") == [Event("1")]
    for _ in range(2):
        with pytest.raises(BufferLimitExceeded):
            decoder.feed(b"\n\n")
        with pytest.raises(BufferLimitExceeded, match="max_buffer=8 characters"):
            decoder.flush()
    decoder.reset()
    assert decoder.feed(b"data: 2\n\n") == [Event("2")]


@pytest.mark.parametrize(
    "wire, count",
    [
        pytest.param(b"data: " + b"x" * (4 << 20) + b"\n\n", 1, id="one-line-of-4-MiB"),
        pytest.param(b"data: x\n" * 200000 + b"\n", 1, id="200000-lines"),
        pytest.param(b": hb\n" * 200000, 0, id="200000-comments"),
        pytest.param(b"\r\n" * 100000, 0, id="100000-blank-lines"),
    ],
)
def test_time_is_linear_in_the_input(wire, count):
    """This takes 0.5 s of CPU at most; with a join for each piece it takes more than ten."""
    def read():
        decoder = SSEDecoder(max_buffer=8 << 20)
        assert sum(len(decoder.feed(wire[i : i + 16])) for i in range(0, len(wire), 16)) == count

    print(f"{costs_at_most(5, read):.2f} s")


# -- properties -------------------------------------------------------------------------------

TOKENS = (
    "data|event|id|retry|data: x\n\n|data: {}\r\n\r\n|event: e\ndata: 1\n\n|id: 7\n|: hb\n|:| |\n|\r|\r\n"
    "|\n\n|x|12|\0|é|😀|\ufeff|\u2028"
).split("|")
BROKEN = (b"\xef\xbb", b"\xbf", b"\xf0\x9f", b"\x98", b"\xff", b"\xed\xa0")
wires = st.lists(
    st.sampled_from([token.encode() for token in TOKENS] + list(BROKEN)), max_size=25
).map(b"".join)


def cut(wire, places):
    bounds = sorted(place % (len(wire) + 1) for place in places)
    return [wire[a:b] for a, b in zip([0, *bounds], [*bounds, len(wire)])]


@settings(max_examples=400)
@given(wires, st.lists(st.integers(0, 300), max_size=8))
def test_any_input_in_any_pieces_is_read_as_the_specification_says(wire, places):
    expected = reference.parse(wire)
    comments = []
    decoder = SSEDecoder(on_comment=comments.append)
    events = [event for piece in cut(wire, places) for event in decoder.feed(piece)]
    assert events == expected.events
    assert comments == expected.comments
    assert decoder.last_event_id == expected.last_event_id
    assert decoder.retry == expected.retry


@settings(max_examples=200)
@given(wires, st.lists(st.integers(0, 300), max_size=8), st.integers(0, 20))
def test_limit_does_not_depend_on_the_pieces(wire, places, limit):
    assert outcome(cut(wire, places), limit) == outcome([wire], limit)
