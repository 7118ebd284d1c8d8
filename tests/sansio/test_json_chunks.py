"""JSON is cut behind fields, elements and documents; ``¦`` marks the cuts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitting import decode_every_way

from flask_llmstream.sansio.chunkers import JSONChunker

CASES = {
    "nothing": "",
    "fields": '{"name": "Ada, L",¦ "age": 36,¦ "ok": true}',
    "elements": "[1,¦2.5,¦ null]",
    "nested": '{"a": {"b": [1,¦ 2],¦ "c": {}},¦ "d": []}',
    "strings": '["a\\"]}",¦ "\\\\",¦ "[{"]',
    "several": '{"a":1}¦{"b":2}¦ [3]',
    "lines": '{"a":1}¦\n{"b":2}¦\n',
    "scalars on lines": '1\n¦true\n¦"two, 2"¦\n\nnull',
    "a string": '"a, \\"b\\""¦ "c"',
    "prose": "Here, it is: ¦[1,¦ 2]¦ and, done.\n¦```json\n¦{\"a\":1}¦\n```\n",
    "quotes in prose": 'He said "yes, no" to ¦[1,¦ 2]',
    "unbalanced": "]} a ¦[1]¦]",
    "blanks only": " \n ",
}


@pytest.mark.parametrize("text", list(CASES.values()), ids=list(CASES))
def test_json(text):
    decode_every_way(JSONChunker, text.replace("¦", ""), [part for part in text.split("¦") if part])


def test_field_leaves_with_its_comma_and_a_document_with_its_bracket():
    chunker = JSONChunker()
    assert [chunker.feed(piece) for piece in ('{"a', '": "b,', '"', ",", ' "c": 1', "}", "\n")] == [
        [], [], [], ['{"a": "b,",'], [], [' "c": 1}'], []
    ]


def test_what_was_flushed_is_still_the_context():
    chunker = JSONChunker()
    assert chunker.feed('["a\\') + chunker.flush() == ['["a\\']
    assert chunker.feed('", b", 1') == ['", b",']
    chunker.reset()
    assert chunker.feed("1, [") == ["1, "]


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.sampled_from('a,"\\[]{}\n'))),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(st.sampled_from('a,"}')), inner)),
)


@given(st.lists(values), st.one_of(st.none(), st.integers(1, 3)))
def test_no_scalar_is_cut(items, indent):
    """What stands between two commas or brackets is a whole number, literal or string."""
    text = json.dumps(items, indent=indent)
    chunker = JSONChunker()
    segments = [segment for character in text for segment in chunker.feed(character)]
    assert "".join(segments) == text and chunker.flush() == []
    assert all(segment.endswith(",") for segment in segments[:-1])
    for end in range(1, len(segments), 1 + len(segments) // 5):
        # Cut off there and closed, it is JSON.
        json.loads("".join(segments[:end])[:-1] + closers("".join(segments[:end])))


def closers(text):
    """Return the brackets that close *text*."""
    stack, place = [], 0
    while place < len(text):
        if text[place] == '"':
            place += json.decoder.scanstring(text, place + 1)[1] - place
            continue
        if text[place] in "[{":
            stack.append("]" if text[place] == "[" else "}")
        elif text[place] in "]}":
            stack.pop()
        place += 1
    return "".join(reversed(stack))
