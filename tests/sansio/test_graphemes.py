"""What one sees as one character is never cut, neither in a string nor between two tokens."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_llmstream.sansio.chunkers import make_chunker
from flask_llmstream.sansio.chunkers.graphemes import is_boundary, last_boundary, stays_open

#: Clusters that token holds together too.
LIKELY = {
    "family": "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "skin tone": "\U0001f44d\U0001f3fd",
    "heart on fire": "\u2764\ufe0f\u200d\U0001f525",
    "flag": "\U0001f1e9\U0001f1ea",
    "flag of tags": "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "jamo": "\u1112\u1161\u11ab",
    "conjunct": "\u0915\u094d\u0937\u093f",
    "conjunct with a nukta": "\u0915\u094d\u093c\u0937",
    "Tamil": "\u0ba8\u0bbf",
    "Khmer": "\u1780\u17d2\u1780",
    "number sign": "\u0600\u0661",
    "CRLF": "\r\n",
}
CLUSTERS = {
    "accent": "e\u0301\u0323",
    "keycap": "1\ufe0f\u20e3",
    "Thai": "\u0e01\u0e33",
    "kana": "\uff76\uff9e",
    "blank": " \u0308",
    "syllable and final": "\uac00\u11a8",
    "finals": "\uac01\u11a8",
    "syllable and vowel": "\uac00\u1161\u11a8",
    "jamo with a syllable": "\u1112\ud558\u11ab",
    "finals of an old syllable": "\u1112\u1161\u11ab\u11ab",
    **LIKELY,
}
#: Places where text may be cut although the characters look alike.
CUTTABLE = [
    "ab", "\r\r", "\n\u0301", "\u200b\u0301", "\U0001f600\U0001f600", "\uac00\uac00", "\u11a8\u1100",
    "\u0915\u0937", "\u4e00\u4e00", "\ud83da", "a\ude00", "\uac01\u1161", "\u094da", "\u1161\u1100",
]


def halves(text):
    """Return *text* as models that write JSON escapes send it: in surrogates."""
    units = text.encode("utf-16-be", "surrogatepass")
    return "".join(chr(high << 8 | low) for high, low in zip(units[::2], units[1::2]))


@pytest.mark.parametrize("write", [str, halves])
@pytest.mark.parametrize("cluster", list(CLUSTERS.values()), ids=list(CLUSTERS))
def test_cluster_has_no_boundary_inside(cluster, write):
    cluster = write(cluster)
    text = write("x") + cluster + cluster
    inside = [index for index in range(1, len(text)) if is_boundary(text, index)]
    assert inside == [1, 1 + len(cluster)]


@pytest.mark.parametrize("write", [str, halves])
@pytest.mark.parametrize("text", CUTTABLE, ids=ascii)
def test_boundary(text, write):
    text = write(text)
    assert is_boundary(text, len(text) // 2)


def test_end_of_what_has_come_is_a_boundary_where_nothing_can_join():
    assert [is_boundary(text, 1) for text in "\n\t\x00\u2028"] == [True] * 4
    assert [is_boundary(text, 1) for text in "\ra é\u200d\u0600"] == [None] * 6
    assert is_boundary("\U0001f44d\ud83c", 1) is None, "half of a skin tone, or of something else"


def test_flags_are_counted_from_the_last_boundary():
    flags = "\U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7"
    assert [is_boundary(flags, index) for index in (1, 2, 3)] == [False, True, False]
    assert [is_boundary(flags, index, 1) for index in (2, 3)] == [False, True]


def test_last_boundary():
    text = "ab\u0301\u0301c"
    assert [last_boundary(text, index) for index in range(6)] == [0, 1, 1, 1, 4, 4]
    assert last_boundary(text, 3, 2) == 2


@pytest.mark.parametrize("cluster", list(LIKELY.values()), ids=list(LIKELY))
def test_each_beginning_of_a_likely_cluster_stays_open(cluster):
    assert all(stays_open("x" + cluster[:end]) for end in range(1, len(cluster)))
    assert all(stays_open("x" + halves(cluster)[:end]) for end in range(1, len(halves(cluster))))


@pytest.mark.parametrize("text", ["a", "é", "1", " ", "\n", "字", "가", "я", "।", "५"])
def test_what_is_complete_as_a_rule_is_not_held(text):
    chunker = make_chunker("token")
    assert not stays_open(text)
    assert chunker.feed(text) == [text] and chunker.characters_held == 0


def cut_clusters(clusters, cuts, spec, write):
    """Feed *clusters* cut at *cuts*; return where segments ended, and where they may."""
    clusters = [write(cluster) for cluster in clusters]
    text = "".join(clusters)
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    chunker = make_chunker(spec)
    segments = []
    for start, end in zip(places, places[1:]):
        segments += chunker.feed(text[start:end])
    segments += chunker.flush()
    assert "".join(segments) == text
    return ends(segments), ends(clusters)


def ends(pieces):
    found, length = set(), 0
    for piece in pieces:
        length += len(piece)
        found.add(length)
    return found


def everywhere(text):
    return len(text)


ANY_CUTS = st.sets(st.integers(0, 60))
OTHERS = list(" .\na,\u3002|`\"]")


@settings(max_examples=60)
@pytest.mark.parametrize("write", [str, halves])
@pytest.mark.parametrize(
    "spec",
    ["word", "sentence", "line", "paragraph", "markdown", "json", re.compile("(?s)."), everywhere],
    ids=lambda spec: spec if isinstance(spec, str) else type(spec).__name__,
)
@given(st.lists(st.sampled_from(list(CLUSTERS.values()) + OTHERS)), ANY_CUTS)
def test_no_chunker_cuts_inside_of_a_cluster(spec, write, clusters, cuts):
    found, allowed = cut_clusters(clusters, cuts, spec, write)
    assert found <= allowed


@settings(max_examples=100)
@pytest.mark.parametrize("write", [str, halves])
@given(st.lists(st.sampled_from(list(LIKELY.values()) + OTHERS)), ANY_CUTS)
def test_token_holds_likely_clusters_together(write, clusters, cuts):
    found, allowed = cut_clusters(clusters, cuts, "token", write)
    assert found <= allowed


def test_token_holds_no_endless_cluster():
    chunker = make_chunker("token")
    text = "\u0915" + "\u094d" * 1000
    sent = "".join(segment for character in text for segment in chunker.feed(character))
    assert len(text) - len(sent) == chunker.characters_held < 300
