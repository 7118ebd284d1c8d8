"""The format ``ai-sdk``, held against the rules by which the AI SDK's clients read it.

Those clients refuse a part whose type they do not know or whose required fields are missing, and
throw at a delta or an end without its start.
"""

from __future__ import annotations

import pytest
from dialects import ANSWER, TEXT, ends, items, read, text_of, write
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.aisdk import AISDKFormat
from flask_llmstream.sansio.sse import HEARTBEAT

#: The fields that a part must have, and those that it may have.
FIELDS = {
    "start": ((), ("messageId",)),
    "start-step": ((), ()),
    "finish-step": ((), ()),
    "text-start": (("id",), ()),
    "text-delta": (("id", "delta"), ()),
    "text-end": (("id",), ()),
    "reasoning-start": (("id",), ()),
    "reasoning-delta": (("id", "delta"), ()),
    "reasoning-end": (("id",), ()),
    "tool-input-start": (("toolCallId", "toolName"), ()),
    "tool-input-delta": (("toolCallId", "inputTextDelta"), ()),
    "tool-input-available": (("toolCallId", "toolName", "input"), ()),
    "tool-input-error": (("toolCallId", "toolName", "input", "errorText"), ()),
    "message-metadata": (("messageMetadata",), ()),
    "error": (("errorText",), ()),
    "abort": ((), ("reason",)),
    "finish": (("finishReason",), ("messageMetadata",)),
}
#: Those that an application sends: it may add to them what it likes.
OF_APPLICATIONS = {
    "tool-output-available": ("toolCallId", "output"),
    "tool-output-error": ("toolCallId", "errorText"),
    "tool-output-denied": ("toolCallId",),
    "tool-approval-request": ("approvalId", "toolCallId"),
    "source-url": ("sourceId", "url"),
    "source-document": ("sourceId", "mediaType", "title"),
    "file": ("url", "mediaType"),
}
OF_7 = {
    "reasoning-file": ("url", "mediaType"),
    "custom": ("kind",),
    "tool-approval-response": ("approvalId", "approved"),
    "reset-step": (),
}
REASONS = ("stop", "length", "content-filter", "tool-calls", "error", "other")


class Reader:
    """Reads parts as a client does, and asserts what a client demands."""

    def __init__(self, version=6):
        self.loose = OF_APPLICATIONS if version < 7 else dict(OF_APPLICATIONS, **OF_7)
        self.open, self.calls, self.inputs = {}, {}, {}
        self.texts, self.reasoning, self.parts, self.types = [], [], [], []
        self.errors = []

    def read(self, written):
        *parts, done = read(written)
        assert done[1] == "[DONE]"
        for name, part in parts:
            assert name is None, "clients see the data alone"
            self.types.append(part["type"])
            self.read_part(part)
        assert not self.open
        return self

    def read_part(self, part):
        kind = part["type"]
        if kind.startswith("data-"):
            assert "data" in part and set(part) <= {"type", "data", "id", "transient"}
            self.parts.append(part)
            return
        if kind in self.loose:
            assert set(self.loose[kind]) <= set(part), f"{kind} lacks a field"
            self.parts.append(part)
            return
        required, optional = FIELDS[kind]
        assert {"type", *required} <= set(part) <= {"type", *required, *optional}
        if kind in ("text-start", "reasoning-start"):
            assert part["id"] not in self.open
            self.open[part["id"]] = self.texts if kind == "text-start" else self.reasoning
        elif kind in ("text-delta", "reasoning-delta"):
            assert part["delta"]
            self.open[part["id"]].append(part["delta"])
        elif kind in ("text-end", "reasoning-end"):
            del self.open[part["id"]]
        elif kind == "tool-input-start":
            self.calls[part["toolCallId"]] = ""
        elif kind == "tool-input-delta":
            self.calls[part["toolCallId"]] += part["inputTextDelta"]
        elif kind in ("tool-input-available", "tool-input-error"):
            self.inputs[part["toolCallId"]] = (part["toolName"], part["input"])
            self.errors += [part["errorText"]] if kind == "tool-input-error" else []
        elif kind == "finish":
            assert part["finishReason"] in REASONS
            self.parts.append(part)
        elif kind not in ("start", "start-step", "finish-step"):
            self.parts.append(part)


def test_an_answer():
    wire = AISDKFormat("message-7")
    assert wire.headers == (("x-vercel-ai-ui-message-stream", "v1"),)
    assert wire.heartbeat == HEARTBEAT
    assert wire.content_type.startswith("text/event-stream")
    written = write(wire, ANSWER, "tool_calls")
    assert written.startswith(b'data: {"type":"start","messageId":"message-7"}\n\n')
    found = Reader().read(written)
    assert "".join(found.texts) == TEXT
    assert "".join(found.reasoning) == "Let me see."
    assert found.inputs == {"call_a": ("look_up", {"city": "Berlin"}), "call_b": ("now", {})}
    assert found.calls == {"call_a": '{"city": "Berlin"}', "call_b": "{}"}
    usage = {
        "inputTokens": 11,
        "outputTokens": 20,
        "totalTokens": 31,
        "reasoningTokens": 5,
        "cachedInputTokens": 3,
    }
    assert found.parts == [
        {"type": "finish", "finishReason": "tool-calls", "messageMetadata": {"usage": usage}}
    ]
    assert found.types[:2] == ["start", "start-step"]
    assert found.types[-2:] == ["finish-step", "finish"]


@pytest.mark.parametrize(
    "item, part",
    [
        pytest.param({"a": 1}, {"type": "data-json", "id": "json", "data": {"a": 1}}, id="dict"),
        pytest.param([], {"type": "data-json", "id": "json", "data": []}, id="list"),
        pytest.param(
            e.JsonDelta("/a", "append", "b"),
            {
                "type": "data-json-delta",
                "data": {"path": "/a", "op": "append", "value": "b"},
                "transient": True,
            },
            id="json",
        ),
        pytest.param(e.Custom("mine", None), {"type": "data-mine", "data": None}, id="custom"),
        pytest.param(e.Event("x", id="7"), {"type": "data-event", "data": "x"}, id="event"),
        pytest.param(e.Event([1], event="mine"), {"type": "data-mine", "data": [1]}, id="named-event"),
        pytest.param(
            e.Custom("source-url", {"sourceId": "1", "url": "u", "title": "t"}),
            {"type": "source-url", "sourceId": "1", "url": "u", "title": "t"},
            id="source",
        ),
        pytest.param(
            e.Custom("source-url", {"url": "u"}),
            {"type": "data-source-url", "data": {"url": "u"}},
            id="no-source",
        ),
        pytest.param(
            e.Custom("source-url", {"sourceId": 1, "url": "u"}),
            {"type": "data-source-url", "data": {"sourceId": 1, "url": "u"}},
            id="no-text",
        ),
        pytest.param(e.Custom("file", "x"), {"type": "data-file", "data": "x"}, id="no-file"),
        pytest.param(
            e.Custom("custom", {"kind": "a.b"}),
            {"type": "data-custom", "data": {"kind": "a.b"}},
            id="only-in-7",
        ),
        pytest.param(
            e.Custom("text-start", {"id": "1"}), {"type": "data-text-start", "data": {"id": "1"}}, id="ours"
        ),
    ],
)
def test_other_items(item, part):
    assert Reader().read(write(AISDKFormat(), ["text", item])).parts[0] == part
    assert AISDKFormat().encode(item).startswith(b'data: {"type":"start"}\n\n')


def test_parts_of_version_7_where_asked_for():
    source = [
        e.ToolCallDelta(0, None, "f"),
        "first",
        e.Custom("custom", {"kind": "a.b"}),
        e.Custom("reset-step", {}),
        "again",
        e.ToolCallDelta(0, None, "f", "[]"),
    ]
    found = Reader(7).read(write(AISDKFormat(version=7), source))
    assert [part["type"] for part in found.parts] == ["custom", "reset-step", "finish"]
    assert found.types[found.types.index("reset-step") - 1] == "text-end"
    assert found.inputs == {"call_0": ("f", [])}, "the client has dropped the first"
    assert found.types.count("tool-input-start") == 2


def test_the_input_of_a_call_is_declared_before_its_result():
    result = e.Custom("tool-output-available", {"toolCallId": "a", "output": 1})
    source = [e.ToolCallDelta(0, "a", "f", '{"x":1}'), result, e.ToolCallDelta(0, arguments="late")]
    types = Reader().read(write(AISDKFormat(), source)).types
    assert types[2:6] == [
        "tool-input-start",
        "tool-input-delta",
        "tool-input-available",
        "tool-output-available",
    ]
    assert "tool-input-delta" not in types[6:]


@pytest.mark.parametrize("arguments", ['{"a":', "[1e999]", "NaN", "[" * 100000])
def test_arguments_that_are_not_json(arguments):
    found = Reader().read(write(AISDKFormat("m"), [e.ToolCallDelta(0, None, "f", arguments)], "length"))
    assert found.inputs == {"call_m_0": ("f", arguments)}
    assert found.errors == ["the arguments of the call are not JSON"]
    assert found.parts == [{"type": "finish", "finishReason": "length"}]


def test_cancelled():
    source = ["some", e.ToolCallDelta(0, "a", "f", "{}")]
    found = Reader().read(write(AISDKFormat(), source, "cancelled", e.Usage(1, None)))
    assert found.errors == ["the answer was cancelled"], "nobody is to run it"
    assert found.parts == [
        {"type": "message-metadata", "messageMetadata": {"usage": {"inputTokens": 1}}},
        {"type": "abort", "reason": "cancelled"},
    ]
    assert Reader().read(write(AISDKFormat(), [], "cancelled")).types == ["start", "start-step", "abort"]


def test_a_failure():
    source = ["some", e.ToolCallDelta(0, "a", "f", "{}"), b"\xc3"]
    found = Reader().read(write(AISDKFormat(), source, None))
    assert found.texts == ["some", "\ufffd"]
    assert found.errors == ["it broke"]
    assert found.parts == [{"type": "error", "errorText": "it broke"}]
    assert Reader().read(AISDKFormat().failed("it broke", "x", True)).types == ["error"]


@pytest.mark.parametrize(
    "reason, sent",
    [
        ("stop", "stop"),
        ("length", "length"),
        ("tool_calls", "tool-calls"),
        ("content_filter", "content-filter"),
        ("other", "other"),
        ("odd", "other"),
    ],
)
def test_reasons(reason, sent):
    (finish,) = Reader().read(write(AISDKFormat(), [], reason)).parts
    assert finish == {"type": "finish", "finishReason": sent}


def test_comments_open_nothing():
    assert AISDKFormat().encode(e.Comment("a\nb")) == b": a\n: b\n"
    assert AISDKFormat().opening(0) == b": open\n"


@given(items, ends, st.sampled_from([6, 7]))
def test_whatever_comes_a_client_can_read_it(source, reason, version):
    found = Reader(version).read(write(AISDKFormat(version=version), source, reason))
    assert "".join(found.texts) == text_of(source)
    thoughts = [item.text for item in source if isinstance(item, e.ReasoningDelta)]
    assert "".join(found.reasoning) == "".join(thoughts)
    if "reset-step" not in found.types:
        assert set(found.inputs) == set(found.calls)
    if reason is None:
        assert found.types[-1] == "error"
    else:
        assert found.types[-1] == ("abort" if reason == "cancelled" else "finish")
        assert found.types[0] == "start"
