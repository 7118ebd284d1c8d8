"""Chunkers: whatever is fed comes out, cut at the same places however it was fed."""

from __future__ import annotations

import re

import pytest
from costs import costs_at_most_times
from hypothesis import example, given, settings
from hypothesis import strategies as st
from splitting import decode_every_way

from flask_llmstream.sansio.chunkers import (
    MAX_HELD,
    FunctionChunker,
    JSONChunker,
    LineChunker,
    MarkdownChunker,
    ParagraphChunker,
    PatternChunker,
    SentenceChunker,
    TokenChunker,
    WordChunker,
    make_chunker,
)

NAMES = {
    "token": TokenChunker, "word": WordChunker, "sentence": SentenceChunker, "line": LineChunker,
    "paragraph": ParagraphChunker, "markdown": MarkdownChunker, "json": JSONChunker,
}


def at_semicolons(text):
    return text.find(";") + 1


def pattern():
    return PatternChunker(re.compile(r"\n+|;"))


def function():
    return FunctionChunker(at_semicolons)


#: Those that cut at the same places however the text is fed; token does not cut.
CUTTING = [*list(NAMES.values())[1:], pattern, function]
ALL = [TokenChunker, *CUTTING]


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
        pytest.param(WordChunker, "a \u0301b c", ["a \u0301b ", "c"], id="word-blank-with-a-mark"),
        pytest.param(LineChunker, "", [], id="line-nothing"),
        pytest.param(LineChunker, "one", ["one"], id="line-without-an-end"),
        pytest.param(LineChunker, "a\n\nb\r\nc", ["a\n", "\n", "b\r\n", "c"], id="line-several"),
        pytest.param(LineChunker, "a\rb\u2028c\n", ["a\rb\u2028c\n"], id="line-lf-only"),
        pytest.param(ParagraphChunker, "", [], id="paragraph-nothing"),
        pytest.param(ParagraphChunker, "a\nb\n\n c\n\n", ["a\nb\n\n", " c\n\n"], id="paragraph-two"),
        pytest.param(ParagraphChunker, "\n\na\n \t\n\n  b", ["\n\na\n \t\n\n", "  b"], id="paragraph-blanks"),
        pytest.param(ParagraphChunker, "a\r\n\r\nb\r\nc", ["a\r\n\r\n", "b\r\nc"], id="paragraph-crlf"),
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


@pytest.mark.parametrize("make", ALL)
def test_reset_forgets_what_is_held(make):
    chunker = make()
    chunker.feed("old \U0001f44d")
    chunker.reset()
    assert chunker.characters_held == 0
    assert "".join(chunker.feed(" new\n") + chunker.flush()) == " new\n"
    assert chunker.flush() == [] == chunker.feed("")


TEXT = st.one_of(
    st.sampled_from([
        "Dr. A", "e.g. ", ". ", "? ", "3.", "\n\n", "\r\n", " *a", "b* ", "[c](", ") ", "| d", "```\n", "`",
        ';"', '{"', "},", "\\", "\ud83d", "\ude00", "\u200d", "\u0301", "\U0001f1e9", "\u3002", "1. ", "- ",
    ]),
    st.text(st.one_of(st.sampled_from(" \n\r\tab.;"), st.characters()), max_size=5),
)


@settings(max_examples=60)
@pytest.mark.parametrize("make", ALL)
@given(st.lists(TEXT), st.sets(st.integers(0, 9)))
def test_all_segments_put_together_are_the_text(make, pieces, flushes):
    chunker = make()
    segments = []
    for number, piece in enumerate(pieces):
        segments += chunker.feed(piece)
        if number in flushes:
            segments += chunker.flush()
            assert chunker.characters_held == 0
        assert sum(map(len, segments)) + chunker.characters_held == sum(map(len, pieces[: number + 1]))
    segments += chunker.flush()
    assert "".join(segments) == "".join(pieces)
    assert all(segments)


@settings(max_examples=60)
@pytest.mark.parametrize("make", CUTTING)
@example(["Dr. A", ";", "\ud83d"])
@example(["a\n", "\ud83d"])
@example(["a;", "\u0301"])
@given(st.lists(TEXT, max_size=12))
def test_cuts_do_not_depend_on_how_it_was_fed(make, pieces):
    text = "".join(pieces)
    whole = make()
    segments = whole.feed(text) + whole.flush()
    for feed in (pieces, text):
        chunker = make()
        assert [segment for piece in feed for segment in chunker.feed(piece)] + chunker.flush() == segments


@pytest.mark.parametrize(
    "text", ["a", "a;", "a ", "a\u0301", "Dr. ", "A b. ", "*", "*a [", "[1,", "\n", "`` ` "]
)
@pytest.mark.parametrize("make", ALL)
def test_time_is_linear_in_the_text(make, text):
    """Eight times the text; looking at all that is held for each character would cost 64 times as much."""
    if make is function and text != "a;":
        return  # a function is shown all that is held; that is its bargain
    few, many = text * (1500 // len(text)), text * (12000 // len(text))

    def cut(text):
        chunker = make()
        length = sum(len("".join(chunker.feed(character))) for character in text)
        length += len("".join(chunker.feed(text * 2)))
        length += sum(map(len, chunker.flush()))
        assert length == len(text) * 3

    print(f"{costs_at_most_times(20, lambda: cut(few), lambda: cut(many)):.1f} times")


@pytest.mark.slow
@pytest.mark.parametrize("make", ALL)
def test_a_token_costs_the_same_at_the_end_of_a_megabyte(make):
    """Compares a new chunker with one that has had a megabyte in pieces of a few characters."""
    part = "Some *words* of [a link](b), {\"and\": 1}; a sentence. Another.\n\n" * 160
    old = make()
    for _ in range(100):
        for begin in range(0, len(part), 7):
            old.feed(part[begin : begin + 7])

    def feed(chunker):
        for character in part:
            chunker.feed(character)

    times = costs_at_most_times(2, lambda: feed(make()), lambda: feed(old))
    print(f"a character costs {times:.2f} times as much after a megabyte")


@pytest.mark.parametrize("make", ALL)
def test_no_more_than_so_much_is_held(make):
    text = "\u4e00" * (3 * MAX_HELD + 1)
    whole, chunker = make(), make()
    starts = range(0, len(text), 1000)
    segments = [segment for start in starts for segment in chunker.feed(text[start : start + 1000])]
    assert chunker.characters_held <= MAX_HELD
    assert "".join(segments + chunker.flush()) == text
    assert max(map(len, whole.feed(text))) <= MAX_HELD or make is TokenChunker
    assert whole.characters_held <= MAX_HELD


@pytest.mark.parametrize("make", [WordChunker, MarkdownChunker])
def test_what_is_too_long_is_cut_between_clusters(make):
    flag = "\U0001f1e9\U0001f1ea"
    text = "a" + flag * MAX_HELD
    chunker = make()
    (first, *others) = chunker.feed(text)
    assert first == "a" + flag * (MAX_HELD // 2 - 1) and others[0] == flag * (MAX_HELD // 2)
    endless = make().feed("a" + "\u0301" * 2 * MAX_HELD)
    assert [len(segment) for segment in endless] == [MAX_HELD] * 2


# -- one's own --------------------------------------------------------------------------------


LONG = "b" * 200


def test_pattern_cuts_behind_each_match():
    decode_every_way(pattern, "a;b\n\n\nc;;d\n", ["a;", "b\n\n\n", "c;", ";", "d\n"])


@pytest.mark.parametrize(
    "expression, text, segments",
    [
        pytest.param(r"(?<=\.) ", "a b. c d. e", ["a b. ", "c d. ", "e"], id="looks-back"),
        pytest.param(r"\s(?=[A-Z])", "a B c D", ["a ", "B c ", "D"], id="looks-ahead"),
        pytest.param(r"(?=<)", "a<b<c", ["a", "<b", "<c"], id="empty-match"),
        pytest.param("^a|c", "aac" + LONG * 10 + "acb", ["a", "ac", LONG * 10 + "ac", "b"], id="beginning"),
        pytest.param(r"(?s)<(.{200})>", f"a<{LONG}>c", [f"a<{LONG}>", "c"], id="long-match"),
        pytest.param(r"x", "nothing", ["nothing"], id="no-match"),
    ],
)
def test_patterns(expression, text, segments):
    for size in (len(text), 1, 2, 3, 7):
        chunker = make_chunker(re.compile(expression))
        cut = [part for at in range(0, len(text), size) for part in chunker.feed(text[at : at + size])]
        assert cut + chunker.flush() == segments


def test_pattern_for_bytes_is_refused():
    with pytest.raises(ValueError, match="which matches bytes; text is str"):
        make_chunker(re.compile(b"x"))


def test_function_is_given_what_is_held():
    seen = []

    def find_cut(text):
        seen.append(text)
        return at_semicolons(text) or None

    chunker = make_chunker(find_cut)
    assert [chunker.feed(piece) for piece in ("a", "b;c;", "d")] == [[], ["ab;"], ["c;"]]
    assert seen == ["a", "ab;c;", "c;", "d"]
    assert chunker.flush() == ["d"]
    decode_every_way(function, "a;b;;c", ["a;", "b;", ";", "c"])


def test_function_that_cuts_inside_of_a_cluster_cuts_before_it():
    chunker = make_chunker(lambda text: 2 if len(text) > 2 else None)
    assert chunker.feed("ae\u0301\u0301") == ["a"]
    assert chunker.flush() == ["e\u0301\u0301"]


def test_cut_of_a_function_that_a_mark_is_added_to_moves_before_the_cluster():
    seen = []

    def find_cut(text):
        seen.append(text)
        return len(text) if text.endswith(".") else None

    chunker = make_chunker(find_cut)
    assert chunker.feed("a.") == [] and chunker.feed("\u0301") == ["a"] and chunker.feed("b") == []
    assert seen == ["a.", ".\u0301", ".\u0301b"]


@pytest.mark.parametrize("index", [-1, 3, 1.0, "1"])
def test_function_that_returns_no_place_is_told_so(index):
    chunker = make_chunker(lambda text: index)
    with pytest.raises(ValueError) as caught:
        chunker.feed("ab")
    assert str(caught.value) == (
        f"the function given as chunk returned {index!r}, expected None or an index from 0 to 2,"
        " the length of the text it was called with"
    )


# -- make_chunker -----------------------------------------------------------------------------


class Own:
    def feed(self, text):
        return [text]

    def flush(self):
        return []


def test_no_chunker_is_needed():
    assert make_chunker(None) is None


@pytest.mark.parametrize("spec, kind", [*NAMES.items(), (Own, Own)])
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


@pytest.mark.parametrize("spec", ["sentences", "Word", "", 5, b"word", ["word"], FeedOnly(), FeedOnly, str])
def test_unknown_chunker_is_refused(spec):
    with pytest.raises(ValueError) as caught:
        make_chunker(spec)
    assert str(caught.value) == (
        f"chunk is {spec!r}, expected None, one of 'token', 'word', 'sentence', 'line', 'paragraph',"
        " 'markdown', 'json', a compiled regular expression, a function of the text held so far, or"
        " an object with feed() and flush()"
    )
