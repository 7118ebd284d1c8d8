"""Strategies: any item whose wire form can be read back."""

from __future__ import annotations

from hypothesis import strategies as st

from flask_llmstream.sansio import events as e

#: No subnormal numbers: old builds of gevent switch them off in the processor.
FINITE = st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)
TEXT = st.text(st.characters())  # surrogates too
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FINITE | TEXT,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(TEXT, values, max_size=3), max_leaves=8,
)
COUNT = st.none() | st.integers(0, 10**9)
ITEMS = (
    st.builds(e.TextDelta, TEXT)
    | st.builds(e.ReasoningDelta, TEXT)
    | st.builds(e.ToolCallDelta, st.integers(0, 9), st.none() | TEXT, st.none() | TEXT, TEXT)
    | st.builds(e.JsonDelta, TEXT, st.sampled_from(["add", "append", "replace", "complete"]), JSON)
    | st.builds(e.Usage, COUNT, COUNT, COUNT, COUNT)
    | st.builds(e.Custom, TEXT, JSON)
    | st.builds(e.Event, JSON, st.none() | TEXT, st.none() | TEXT, st.none() | st.integers(0))
    | st.builds(e.Comment, TEXT)
)
