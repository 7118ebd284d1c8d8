"""Events and deltas are plain values."""

from __future__ import annotations

import pickle

import pytest

from flask_llmstream.sansio import events as e

VALUES = [
    e.Event("a", event="b", id="c", retry=1),
    e.Comment("a"),
    e.TextDelta("a"),
    e.ReasoningDelta("a"),
    e.ToolCallDelta(0, "a", "b", "c"),
    e.JsonDelta("/a", "add", {"b": [1], "c": 2}),
    e.Usage(1, 2, 3, 4),
    e.Finish("stop"),
    e.Custom("a", [1, {"b": 2}]),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_equals_its_copy_only(value):
    copy = pickle.loads(pickle.dumps(value))
    assert copy == value and copy is not value
    assert hash(copy) == hash(value)
    assert [other for other in VALUES if other == value] == [value]
    assert value != "a"


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_repr_is_how_to_make_it(value):
    assert eval(repr(value), vars(e)) == value


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_change_of_any_field_makes_another_value(value):
    for name in value.__slots__:
        other = pickle.loads(pickle.dumps(value))
        setattr(other, name, "changed")
        assert other != value


def test_values_of_one_kind_only_are_equal():
    assert e.TextDelta("a") != e.ReasoningDelta("a")


def test_equal_values_have_equal_hashes():
    """Whatever the order of the keys of a dict inside."""
    one, other = e.Custom("a", {"b": 1, "c": 2}), e.Custom("a", {"c": 2, "b": 1})
    assert one == other
    assert {one} == {other}


def test_values_take_no_other_attributes():
    for value in VALUES:
        with pytest.raises(AttributeError):
            value.extra = 1


def test_defaults():
    assert e.Event("a") == e.Event(data="a", event=None, id=None, retry=None)
    assert e.Comment() == e.Comment("")
    assert e.Finish() == e.Finish("stop")
    assert e.Usage() == e.Usage(None, None, None, None)
    assert e.ToolCallDelta(1) == e.ToolCallDelta(1, None, None, "")
