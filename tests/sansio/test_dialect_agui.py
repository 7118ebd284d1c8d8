"""The format ``ag-ui``, held against the protocol's own models and its rules of order."""

from __future__ import annotations

import json

import pytest
from dialects import ANSWER, TEXT, ends, items, json_values, read, text_of, texts, write
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.agui import AGUIFormat
from flask_llmstream.sansio.jsondelta import json_deltas

#: The fields that an event must have.
FIELDS = {
    "RUN_STARTED": ("threadId", "runId"),
    "RUN_FINISHED": ("threadId", "runId"),
    "RUN_ERROR": ("message",),
    "TEXT_MESSAGE_START": ("messageId",),
    "TEXT_MESSAGE_CONTENT": ("messageId", "delta"),
    "TEXT_MESSAGE_END": ("messageId",),
    "REASONING_START": ("messageId",),
    "REASONING_MESSAGE_START": ("messageId", "role"),
    "REASONING_MESSAGE_CONTENT": ("messageId", "delta"),
    "REASONING_MESSAGE_END": ("messageId",),
    "REASONING_END": ("messageId",),
    "TOOL_CALL_START": ("toolCallId", "toolCallName"),
    "TOOL_CALL_ARGS": ("toolCallId", "delta"),
    "TOOL_CALL_END": ("toolCallId",),
    "STATE_SNAPSHOT": ("snapshot",),
    "STATE_DELTA": ("delta",),
    "CUSTOM": ("name", "value"),
}


class Reader:
    """Reads events as a client does, and asserts what a client demands."""

    def __init__(self):
        self.open, self.texts, self.calls, self.messages = set(), {}, {}, {}
        self.types, self.custom, self.last, self.state = [], [], None, None

    def read(self, written):
        for name, event in read(written):
            assert name is None, "clients see the data alone"
            kind = event["type"]
            assert set(FIELDS[kind]) <= set(event)
            assert (kind == "RUN_STARTED") is (not self.types), "a run starts once, and first"
            self.types.append(kind)
            self.last = event
            self.read_event(kind, event)
        if self.types[-1] == "RUN_FINISHED":
            assert not self.open
        assert not {"RUN_FINISHED", "RUN_ERROR"} & set(self.types[:-1]), "nothing comes behind the end"
        return self

    def read_event(self, kind, event):
        id = event.get("toolCallId") or event.get("messageId")
        part, _, phase = kind.rpartition("_")
        if phase == "START":
            assert (part, id) not in self.open
            self.open.add((part, id))
            if kind == "TEXT_MESSAGE_START":
                assert id not in self.texts
                self.texts[id] = ""
            elif kind == "TOOL_CALL_START":
                self.calls[id] = [event["toolCallName"], ""]
                self.messages.setdefault(event["parentMessageId"], []).append(id)
        elif phase == "END":
            self.open.remove((part, id))
        elif phase in ("CONTENT", "ARGS"):
            assert (part, id) in self.open and event["delta"]
            if kind == "TEXT_MESSAGE_CONTENT":
                self.texts[id] += event["delta"]
            elif phase == "ARGS":
                self.calls[id][1] += event["delta"]
        elif kind == "STATE_SNAPSHOT":
            self.state = event["snapshot"]
        elif kind == "STATE_DELTA":
            (change,) = event["delta"]
            assert set(change) == {"op", "path", "value"} and change["op"] in ("add", "replace")
            assert change["path"].startswith("/")
            self.custom.append(change)
        elif kind == "CUSTOM":
            self.custom.append((event["name"], event["value"]))


def test_an_answer():
    found = Reader().read(write(AGUIFormat("thread-1", "run-1"), ANSWER, "tool_calls"))
    assert found.texts == {"run-1-2": TEXT}
    assert found.calls == {"call_a": ["look_up", '{"city": "Berlin"}'], "call_b": ["now", "{}"]}
    assert found.messages == {"run-1-2": ["call_a", "call_b"]}, "they are calls of that message"
    assert found.types[1:3] == ["REASONING_START", "REASONING_MESSAGE_START"]
    usage = {
        "inputTokens": 11,
        "outputTokens": 20,
        "totalTokens": 31,
        "reasoningTokens": 5,
        "cachedInputTokens": 3,
    }
    assert found.last == {"type": "RUN_FINISHED", "threadId": "thread-1", "runId": "run-1", "usage": [usage]}


def test_calls_without_a_text_get_a_message_of_their_own():
    source = ["a", e.ReasoningDelta("b"), e.ToolCallDelta(0, None, "f"), e.ToolCallDelta(1, None, "g")]
    found = Reader().read(write(AGUIFormat("t", "r"), source, "tool_calls"))
    assert found.messages == {"r-3": ["call-r_0", "call-r_1"]}


@pytest.mark.parametrize(
    "source, state",
    [
        pytest.param([{"a": 1}], {"a": 1}, id="dict"),
        pytest.param([[1]], [1], id="list"),
        pytest.param([e.JsonDelta("", "add", "x"), e.JsonDelta("", "append", "y")], "xy", id="root-text"),
        pytest.param(["x", {"a": 1}, e.Custom("b"), {"a": 2}], {"a": 2}, id="the-last"),
        pytest.param([e.JsonDelta("", "append", "y")], "y", id="text-from-nothing"),
    ],
)
def test_a_whole_value_is_a_snapshot(source, state):
    assert Reader().read(write(AGUIFormat(), source)).state == state


def test_a_text_that_grows_is_replaced():
    source = [
        {"a": "x", "b": ["y", {"c/~": "z"}], "n": 1},
        e.JsonDelta("/a", "append", "1"),
        e.JsonDelta("/b/0", "append", "2"),
        e.JsonDelta("/b/1/c~1~0", "append", "3"),
        e.JsonDelta("/d", "add", ""),
        e.JsonDelta("/d", "append", "4"),
        e.JsonDelta("/d", "complete"),
    ]
    changes = Reader().read(write(AGUIFormat(), source)).custom
    assert [(change["op"], change["path"], change["value"]) for change in changes] == [
        ("replace", "/a", "x1"), ("replace", "/b/0", "y2"), ("replace", "/b/1/c~1~0", "z3"),
        ("add", "/d", ""), ("replace", "/d", "4"),
    ]


def state_of(written):
    """Return the state that a client has, by the library of RFC 6902 that the protocol's SDK uses."""
    jsonpatch = pytest.importorskip("jsonpatch")
    state = None
    for _, event in read(written):
        if event["type"] == "STATE_SNAPSHOT":
            state = event["snapshot"]
        elif event["type"] == "STATE_DELTA":
            state = jsonpatch.apply_patch(state, event["delta"])
    return state


@given(
    st.dictionaries(texts, json_values, max_size=3) | st.lists(json_values, max_size=3) | texts,
    st.integers(1, 4),
    ends,
)
def test_state_is_the_value_at_the_end(value, size, reason):
    text = json.dumps(value)
    tokens = [text[at : at + size] for at in range(0, len(text), size)]
    written = write(AGUIFormat(), json_deltas(tokens, prose=False), reason)
    Reader().read(written)
    assert state_of(written) == value


@pytest.mark.parametrize("source", [
    pytest.param([e.JsonDelta("/a", "complete")], id="complete"),
    pytest.param([e.JsonDelta("/b", "add", 1)], id="another"),
    pytest.param([e.JsonDelta("/c", "append", "z")], id="another-text"),
    pytest.param([e.Custom("look", 1)], id="custom"),
    pytest.param([], id="end"),
])
def test_rest_of_a_text_comes_when_something_else_does(source):
    begun = [{"a": "", "c": "y"}] + [e.JsonDelta("/a", "append", "x")] * 99
    for reason in ("stop", None):
        written = write(AGUIFormat(), begun + source, reason)
        assert state_of(written)["a"] == "x" * 99
    grown = begun + source + [e.JsonDelta("/a", "append", "!")]
    assert state_of(write(AGUIFormat(), grown))["a"] == "x" * 99 + "!"


def test_bytes_do_not_grow_with_the_square_of_a_text():
    source = [{"a": ""}] + [e.JsonDelta("/a", "append", "0123456789")] * 2000
    assert len(write(AGUIFormat(), source)) < 12 * 20000


def test_a_new_document_has_nothing_of_a_text_that_grew():
    source = [{"a": ""}] + [e.JsonDelta("/a", "append", "x")] * 99
    assert state_of(write(AGUIFormat(), source + [{"b": 1}])) == {"b": 1}


def test_a_text_of_a_former_value_is_no_beginning():
    source = [{"a": "x"}, {}, e.JsonDelta("/a", "append", "y")]
    (change,) = Reader().read(write(AGUIFormat(), source)).custom
    assert change["value"] == "y"


def test_custom():
    source = [e.Custom("mine", None), e.Event([1], event="named"), e.Event("x")]
    found = Reader().read(write(AGUIFormat(), source))
    assert found.custom == [("mine", None), ("named", [1]), ("event", "x")]


def test_ends():
    assert Reader().read(write(AGUIFormat(), [], "cancelled")).last["outcome"] == {"type": "cancelled"}
    failed = Reader().read(write(AGUIFormat(), ["a", e.Usage(1, None)], None))
    error = {"type": "RUN_ERROR", "message": "it broke", "code": "upstream_rate_limited"}
    assert failed.last == dict(error, usage=[{"inputTokens": 1}])
    assert Reader().read(write(AGUIFormat(), [], None)).types == ["RUN_STARTED", "RUN_ERROR"]


@given(items, ends)
def test_whatever_comes_a_client_can_read_it(source, reason):
    found = Reader().read(write(AGUIFormat(), source, reason))
    assert "".join(found.texts.values()) == text_of(source)
    assert found.types[-1] == ("RUN_ERROR" if reason is None else "RUN_FINISHED")


@given(st.dictionaries(texts, json_values, max_size=3), st.lists(texts, min_size=1, max_size=3))
def test_texts_are_found_again_by_their_paths(document, pieces):
    key = next(iter(document), "new")
    document[key] = "begun "
    path = "/" + key.replace("~", "~0").replace("/", "~1")
    changes = Reader().read(
        write(AGUIFormat(), [document] + [e.JsonDelta(path, "append", piece) for piece in pieces])
    ).custom
    assert changes[-1] == {"op": "replace", "path": path, "value": "begun " + "".join(pieces)}


@pytest.fixture(scope="module")
def known():
    """Return what validates an event by the protocol's own models."""
    core = pytest.importorskip("ag_ui.core")
    return pytest.importorskip("pydantic").TypeAdapter(core.Event)


@given(source=items, reason=ends)
def test_every_event_is_one_of_the_protocols_models(known, source, reason):
    for _, event in read(write(AGUIFormat(), ANSWER + source, reason)):
        assert known.validate_python(event).type == event["type"]


def test_calls_of_one_id_are_kept_apart():
    source = [
        e.ToolCallDelta(0, "f", "f", "1"),
        e.ToolCallDelta(1, "f", "f", "2"),
        e.ToolCallDelta(1, "f", None, "3"),
    ]
    found = Reader().read(write(AGUIFormat("t", "r"), source, "tool_calls"))
    assert found.calls == {"f": ["f", "1"], "call-r_1": ["f", "23"]}
