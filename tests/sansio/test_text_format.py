"""Plain text: every character of the answer, and not a byte more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitting import every_way

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.text import TextFormat
from flask_llmstream.sansio.utf8 import HalvesJoined, plain_utf8

PIECES = st.lists(st.text(st.characters()), max_size=6)


def body(*items):
    wire = TextFormat()
    return b"".join(wire.encode(item) for item in items) + wire.done("stop", e.Usage(1, 2))


def test_text_alone_is_sent():
    assert body("a", e.TextDelta("é\u2028\r\n"), b"c", "", "\ufeff") == "aé\u2028\r\nc\ufeff".encode()


@pytest.mark.parametrize(
    "item", [
        {"a": 1}, [1], e.Event("data"), e.Comment("c"), e.ReasoningDelta("hm"),
        e.ToolCallDelta(0, "i", "n", "{}"), e.JsonDelta("/a", "add", 1), e.Usage(1, 2),
        e.Finish("length"), e.Custom("own"),
    ], ids=lambda item: type(item).__name__,
)
def test_all_else_is_silent(item):
    assert body("a", item, "b") == b"ab"


def test_nothing_is_said_that_is_not_of_the_answer():
    wire = TextFormat()
    assert wire.heartbeat is None
    assert wire.opening(0) == wire.opening(2048) == b""
    assert wire.content_type == "text/plain; charset=utf-8"
    wire.encode(b"a\xc3")
    wire.encode("\ud83d")
    assert wire.failed("message", "code", True) == b""


def test_characters_may_be_cut_anywhere():
    for way, pieces in every_way("aé€😀".encode()):
        assert body(*pieces) == "aé€😀".encode(), way
    for way, pieces in every_way("a\ud83d\ude00b"):
        assert body(*pieces) == "a😀b".encode(), way


def test_halves_that_find_no_other_are_replaced():
    assert body("a\ud83d", "\ud83d", "b\ude00") == "a\ufffd\ufffdb\ufffd".encode()
    assert body("\ud83d", e.Comment(), "", "\ude00") == "😀".encode()
    assert body("a\ud83d") == body(b"a\xf0\x9f") == "a\ufffd".encode()
    assert body("\ud83d", b"\xc3") == "\ufffd\ufffd".encode()


def test_flush_says_what_is_left_once():
    joined = HalvesJoined()
    assert joined.feed("\ud83d") == b""
    assert (joined.flush(), joined.flush()) == ("\ufffd".encode(), b"")


@given(PIECES)
def test_pieces_are_the_text_whatever_the_cuts(pieces):
    joined = HalvesJoined()
    assert b"".join(map(joined.feed, pieces)) + joined.flush() == plain_utf8("".join(pieces))


@given(st.text())
def test_whole_characters_are_never_held_back(text):
    assert HalvesJoined().feed(text) == text.encode()
