"""What the tests of the dialects share: an answer in a dialect, and what is read of it."""

from __future__ import annotations

import json
from typing import Any, Iterable, List, Tuple

from hypothesis import strategies as st

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.sse import SSEDecoder

#: An answer with all that every dialect can say.
ANSWER = [
    e.Usage(11, 1, None, 3),
    e.ReasoningDelta("Let me "),
    e.ReasoningDelta("see."),
    e.TextDelta("Grüße \U0001f600"),
    " \"quoted\"\n",
    e.ToolCallDelta(0, "call_a", "look_up"),
    e.ToolCallDelta(0, arguments='{"city": "Ber'),
    e.ToolCallDelta(0, arguments='lin"}'),
    e.ToolCallDelta(1, "call_b", "now", "{}"),
    e.Usage(11, 20, 5, 3),
]
TEXT = 'Grüße \U0001f600 "quoted"\n'

texts = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
#: Calls as a source may send them: without ids, without names, mixed, twice under one index.
pieces_of_calls = st.builds(
    e.ToolCallDelta,
    st.integers(0, 2),
    st.none() | st.sampled_from(["", "a", "b"]),
    st.none() | st.sampled_from(["", "f", "g"]),
    st.sampled_from(["", "{}", '{"a"', ":1}"]),
)
paths = st.sampled_from(["", "/a", "/a/0"])
items = st.lists(
    texts
    | st.builds(e.TextDelta, texts)
    | st.builds(str.encode, texts)
    | st.binary(max_size=3)
    | st.builds(e.ReasoningDelta, texts)
    | pieces_of_calls
    | json_values.filter(lambda value: isinstance(value, (dict, list)))
    | st.builds(e.JsonDelta, paths, st.sampled_from(["add", "replace"]), json_values)
    | st.builds(e.JsonDelta, paths, st.just("append"), texts)
    | st.builds(e.JsonDelta, paths, st.just("complete"), st.none())
    | st.builds(e.Custom, st.sampled_from(["mine", "source-url", "file", "reset-step"]), json_values)
    | st.builds(e.Event, json_values, st.none() | st.just("named"))
    | st.builds(e.Comment, st.just("one\ntwo"))
    | st.builds(e.Usage, st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)),
    max_size=12,
)
reasons = st.sampled_from(["stop", "length", "tool_calls", "content_filter", "other", "cancelled", "odd"])
#: An end: why the model stopped, or None for a failure.
ends = st.none() | reasons


def write(wire: Any, source: Iterable[Any], reason: Any = "stop", usage: Any = None) -> bytes:
    """Return *source* and its end in a format; *reason* ``None`` is a failure."""
    written = b"".join(wire.encode(item) for item in source)
    if reason is None:
        return written + wire.failed("it broke", "upstream_rate_limited", True)
    return written + wire.done(reason, usage)


def read(written: bytes) -> List[Tuple[Any, Any]]:
    """Return the names and the data of the events in *written*, ``[DONE]`` as it is."""
    decoder = SSEDecoder()
    events = decoder.feed(written) + decoder.flush()
    return [
        (event.event, event.data if event.data == "[DONE]" else json.loads(event.data))
        for event in events
    ]


def text_of(source: Iterable[Any]) -> str:
    """Return the text that *source* yields; bytes count as the native format reads them."""
    found = read(write(SSEFormat(), [item for item in source if not isinstance(item, e.Event)]))
    return "".join(data["text"] for name, data in found if name is None)
