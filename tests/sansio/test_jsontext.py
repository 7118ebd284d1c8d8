"""JSON for the wire: one line, valid, and never a reason to crash."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from items import FINITE

from flask_llmstream.sansio.jsontext import dump, dump_bytes, quote


@pytest.mark.parametrize(
    "value, wire",
    [
        pytest.param({"a": 1, "b": [True, None]}, '{"a":1,"b":[true,null]}', id="compact"),
        pytest.param("é😀", '"é😀"', id="not-escaped"),
        pytest.param("\x00\x1f\"\\\n", '"\\u0000\\u001f\\"\\\\\\n"', id="escaped"),
    ],
)
def test_dump(value, wire):
    assert dump(value) == wire
    assert dump_bytes(value) == wire.encode()


def test_what_ends_a_line_in_other_languages_is_escaped():
    assert dump_bytes(["é\u2028", {"\u2029": "\x85"}]) == '["é\\u2028",{"\\u2029":"\\u0085"}]'.encode()


def test_halves_of_a_character_meet_at_the_reader():
    """Each delta holds a half as an escape; what a browser puts together is the character."""
    wire = dump_bytes(["\ud83d", "\ude00"])
    assert wire == b'["\\ud83d","\\ude00"]'
    assert json.loads(wire.replace(b'","', b"")) == ["😀"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {float("nan"): 1}])
def test_what_is_no_json_number_is_refused(value):
    with pytest.raises(ValueError, match="NaN and Infinity cannot be written.*send None or a string"):
        dump([value])


def test_value_that_contains_itself_is_refused():
    value = []
    value.append(value)
    with pytest.raises(ValueError, match="cannot be written as JSON: Circular reference"):
        dump(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_value_comes_back_from_one_line(value):
    wire = dump_bytes(value)
    assert not set(wire) & set(b"\r\n\0")
    assert json.loads(wire.decode()) == value


@given(st.text(st.characters()))
def test_any_text_can_be_sent(text):
    assert json.loads(dump_bytes(text).decode()) == json.loads(json.dumps(text))
    assert json.loads(quote(text)) == json.loads(json.dumps(text, ensure_ascii=False))
