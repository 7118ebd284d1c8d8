"""The changes as JSON Patch, for a client that knows nothing else."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from typing import Any, Dict, Iterable, List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flask_llmstream import json_deltas
from flask_llmstream.sansio.events import JsonDelta, Usage
from flask_llmstream.sansio.jsondelta import JsonPatcher, to_json_patch


def patched(document: Any, operations: Iterable[Dict[str, Any]]) -> Any:
    """Return *document* after *operations*, by the letter of RFC 6902."""
    for operation in operations:
        assert sorted(operation) == ["op", "path", "value"]
        assert operation["op"] in ("add", "replace")
        value = deepcopy(operation["value"])
        if operation["path"] == "":
            document = value
            continue
        empty, *tokens = operation["path"].split("/")
        assert empty == ""
        *way, last = [token.replace("~1", "/").replace("~0", "~") for token in tokens]
        target = document
        for token in way:
            target = target[int(token)] if isinstance(target, list) else target[token]
        if isinstance(target, list):
            if operation["op"] == "add":
                assert int(last) <= len(target)
                target.insert(int(last), value)
            else:
                target[int(last)] = value
        else:
            assert operation["op"] == "add" or last in target, "the target must exist"
            target[last] = value
    return document


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text("ab/~\"\n", max_size=30)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text("a/~", max_size=3), inner, max_size=4)
    ),
    max_leaves=8,
)


def pieces(text: str, size: int) -> List[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


@settings(max_examples=200)
@given(VALUES, st.integers(1, 9), st.sampled_from([0, 0.125, 1, math.inf]))
def test_all_operations_make_what_json_loads_makes(value, size, growth):
    text = json.dumps(value)
    operations = list(to_json_patch(json_deltas(pieces(text, size), prose=False), growth))
    assert repr(patched({}, operations)) == repr(json.loads(text))
    json.dumps(operations)


def test_operations_of_a_text_that_grows():
    tokens = ['{"a": "', "one ", "two ", "three", '", "b": [1]}']
    assert list(to_json_patch([*json_deltas(tokens), Usage(1, 2)], growth=0, prefix="/form")) == [
        {"op": "add", "path": "/form", "value": {}},
        {"op": "add", "path": "/form/a", "value": ""},
        {"op": "replace", "path": "/form/a", "value": "one "},
        {"op": "replace", "path": "/form/a", "value": "one two "},
        {"op": "replace", "path": "/form/a", "value": "one two three"},
        {"op": "add", "path": "/form/b", "value": []},
        {"op": "add", "path": "/form/b/0", "value": 1},
    ]


def test_text_can_wait_until_it_is_complete():
    tokens = ['["', "one ", "two", '", 1]']
    assert [each["value"] for each in to_json_patch(json_deltas(tokens), growth=math.inf)] == [
        [], "", "one two", 1,
    ]


def test_text_that_was_cut_comes_at_the_end():
    deltas = [JsonDelta("", "add", "x" * 100), JsonDelta("", "append", "y"), JsonDelta("", "append", "z")]
    assert [each["value"][-3:] for each in to_json_patch(deltas)] == ["xxx", "xyz"]


def test_text_that_another_follows_is_sent_before_it():
    patcher = JsonPatcher()
    patcher.feed(JsonDelta("", "add", []))
    patcher.feed(JsonDelta("/0", "add", "x" * 100))
    assert patcher.feed(JsonDelta("/0", "append", "y")) == []
    assert [each["path"] for each in patcher.feed(JsonDelta("/1", "add", 1))] == ["/0", "/1"]
    assert patcher.flush() == []


def test_all_that_is_sent_of_a_long_text_is_a_few_times_its_length():
    size = 100000
    tokens = ['["'] + ["abcd"] * (size // 4) + ['"]']
    sent = sum(len(each["value"]) for each in to_json_patch(json_deltas(tokens)))
    assert size < sent <= 10 * size
    twice = sum(len(each["value"]) for each in to_json_patch(json_deltas(tokens), growth=1))
    assert size < twice <= 3 * size


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="did not come right before"):
        JsonPatcher().feed(JsonDelta("/a", "append", "x"))
    for growth in (-1, math.nan):
        with pytest.raises(ValueError, match="growth is"):
            JsonPatcher(growth)
