"""Chunkers: whatever is fed comes out, cut at the same places however it was fed."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from splitting import decode_every_way

from flask_llmstream.sansio.chunkers import LineChunker, WordChunker, make_chunker


@pytest.mark.parametrize(
    "make, text, segments",
    [
        pytest.param(WordChunker, "", [], id="word-nothing"),
        pytest.param(WordChunker, "one", ["one"], id="word-without-an-end"),
        pytest.param(WordChunker, "Hello, world! ", ["Hello, ", "world! "], id="word-two"),
        pytest.param(WordChunker, "  a  b\n\n c", ["  a ", " b\n", "\n c"], id="word-many-blanks"),
        pytest.param(WordChunker, " \t\n", [" \t\n"], id="word-blanks-only"),
        pytest.param(WordChunker, "a\u00a0b\u3000c", ["a\u00a0", "b\u3000", "c"], id="word-unicode-blanks"),
        pytest.param(WordChunker, "\x1ca\x1c\x1cb\x85", ["\x1ca\x1c", "\x1cb\x85"], id="word-odd-blanks"),
        pytest.param(WordChunker, "你好，世界", ["你好，世界"], id="word-no-blanks"),
        pytest.param(LineChunker, "", [], id="line-nothing"),
        pytest.param(LineChunker, "one", ["one"], id="line-without-an-end"),
        pytest.param(LineChunker, "a\n\nb\r\nc", ["a\n", "\n", "b\r\n", "c"], id="line-several"),
        pytest.param(LineChunker, "a\rb\u2028c\n", ["a\rb\u2028c\n"], id="line-lf-only"),
    ],
)
def test_segments(make, text, segments):
    decode_every_way(make, text, segments)


@pytest.mark.parametrize("make", [WordChunker, LineChunker])
def test_segments_leave_as_soon_as_they_are_complete(make):
    chunker = make()
    assert [chunker.feed(piece) for piece in ("on", "e", "\n", "t", "wo\nthree\nf")] == [
        [], [], ["one\n"], [], ["two\n", "three\n"],
    ]
    assert chunker.flush() == ["f"]
    assert chunker.flush() == []


@pytest.mark.parametrize("make", [WordChunker, LineChunker])
def test_text_may_follow_a_flush(make):
    """A flush is also what happens when text has been held for too long."""
    chunker = make()
    assert chunker.feed("you") + chunker.flush() == ["you"]
    assert chunker.feed("th\nare") + chunker.flush() == ["th\n", "are"]
    assert chunker.feed("\nthere\n") + chunker.flush() in (["\nthere\n"], ["\n", "there\n"])


@pytest.mark.parametrize("make", [WordChunker, LineChunker])
def test_reset_forgets_what_is_held(make):
    chunker = make()
    chunker.feed("old")
    chunker.reset()
    assert chunker.feed(" new\n") == [" new\n"]
    assert chunker.flush() == []


pieces_of_text = st.lists(st.text(st.one_of(st.sampled_from(" \n\r\tab"), st.characters())))


@settings(deadline=None)
@pytest.mark.parametrize("make", [WordChunker, LineChunker])
@given(pieces_of_text, st.sets(st.integers(0, 9)))
def test_all_segments_put_together_are_the_text(make, pieces, flushes):
    chunker = make()
    segments = []
    for number, piece in enumerate(pieces):
        segments += chunker.feed(piece)
        if number in flushes:
            segments += chunker.flush()
    segments += chunker.flush()
    assert "".join(segments) == "".join(pieces)
    assert all(segments)


@pytest.mark.parametrize("make", [WordChunker, LineChunker])
@pytest.mark.parametrize("text", ["a", " ", "a "])
def test_time_is_linear_in_the_text(make, text):
    """This takes 0.1 s of CPU at most; looking at held text again, or backtracking, takes minutes."""
    chunker = make()
    start = time.process_time()
    length = sum(len("".join(chunker.feed(text * 100))) for _ in range(2000))
    length += len("".join(chunker.feed(text * 200000)))
    length += sum(map(len, chunker.flush()))
    assert length == 400000 * len(text)
    assert time.process_time() - start < 5


# -- make_chunker -----------------------------------------------------------------------------


class Own:
    def feed(self, text):
        return [text]

    def flush(self):
        return []


@pytest.mark.parametrize("spec", [None, "token"])
def test_no_chunker_is_needed(spec):
    assert make_chunker(spec) is None


@pytest.mark.parametrize("spec, kind", [("word", WordChunker), ("line", LineChunker), (Own, Own)])
def test_each_stream_gets_a_chunker_of_its_own(spec, kind):
    one, other = make_chunker(spec), make_chunker(spec)
    assert type(one) is type(other) is kind
    assert one is not other


def test_own_chunker_is_taken_as_it_is():
    own = Own()
    assert make_chunker(own) is own


class FeedOnly:
    def feed(self, text):
        raise AssertionError("never called")


@pytest.mark.parametrize("spec", ["sentence", "Word", "", 5, b"word", ["word"], FeedOnly()])
def test_unknown_chunker_is_refused(spec):
    with pytest.raises(ValueError) as caught:
        make_chunker(spec)
    assert str(caught.value) == (
        f"chunk is {spec!r}, expected None, one of 'token', 'word', 'line', or an object with"
        " feed() and flush()"
    )
