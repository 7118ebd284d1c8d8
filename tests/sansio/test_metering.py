"""What an answer has cost is read from its bytes, wherever they are cut."""

from __future__ import annotations

import json
import re
from typing import Any, Dict, List, Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sansio import metering
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.metering import Meter
from flask_llmstream.sansio.providers.recognise import recognise


def sse(*chunks: Any, end: bytes = b"\n\n") -> bytes:
    return b"".join(b"data: " + json.dumps(each).encode() + end for each in chunks)


def chat(content: str = "", reason: Optional[str] = None, **more: Any) -> Dict[str, Any]:
    return dict(
        {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}], "usage": None},
        **more,
    )


USAGE = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
REPORT = {"choices": [], "usage": USAGE}
DONE = b"data: [DONE]\n\n"
CHAT = sse(chat("a"), chat("b"), chat(reason="stop"), REPORT) + DONE

STREAMS = {
    "openai": (CHAT, Usage(7, 2)),
    "openai, CRLF": (sse(chat("a"), chat(reason="stop"), REPORT, end=b"\r\n\r\n"), Usage(7, 2)),
    "openai, usage in each": (
        sse(chat("a", usage=USAGE), chat(reason="length", usage=dict(USAGE, completion_tokens=3))),
        Usage(7, 3),
    ),
    "openai-responses": (
        sse(
            {"type": "response.created", "response": {"id": "r", "status": "in_progress", "usage": None}},
            {"type": "response.output_text.delta", "delta": "a"},
            {"type": "response.completed", "response": {
                "id": "r", "status": "completed", "output": [],
                "usage": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9},
            }},
        ),
        Usage(7, 2),
    ),
    "anthropic": (
        sse(
            {"type": "message_start", "message": {"id": "m", "role": "assistant", "content": [],
             "usage": {"input_tokens": 7, "output_tokens": 1}}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
            {"type": "message_stop"},
        ),
        Usage(7, 2),
    ),
    "gemini": (
        sse(
            {"candidates": [{"content": {"parts": [{"text": "a"}]}}],
             "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 1}},
            {"candidates": [{"content": {"parts": [{"text": "b"}]}, "finishReason": "STOP"}],
             "usageMetadata": {"promptTokenCount": 7, "candidatesTokenCount": 2}},
        ),
        Usage(7, 2),
    ),
    "ollama": (
        b"".join(json.dumps(line).encode() + b"\n" for line in (
            {"message": {"role": "assistant", "content": "a"}, "done": False},
            {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop",
             "prompt_eval_count": 7, "eval_count": 2},
        )),
        Usage(7, 2),
    ),
}


def framing_of(name: str) -> str:
    return "ndjson" if name == "ollama" else "sse"


def totals(usage: Optional[Usage]) -> Any:
    return None if usage is None else (usage.input_tokens, usage.output_tokens)


def events_in(data: bytes, name: str) -> List[bytes]:
    return re.findall(b".*\n" if name == "ollama" else b"(?:.*\n)*?\r?\n", data)


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_usage_is_found(name: str) -> None:
    data, usage = STREAMS[name]
    for pieces in ([data], events_in(data, name)):
        meter = Meter(framing_of(name))
        assert b"".join(map(meter.feed, pieces)) == data
        meter.flush()
        assert totals(meter.usage) == totals(usage)
        assert meter.complete
        # [DONE] may count, too.
        events = data.count(b"}\n") + data.count(b"}\r\n")
        assert events <= meter.events <= events + 1


@pytest.mark.parametrize("name", sorted(STREAMS))
def test_what_was_cut_is_not_complete(name: str) -> None:
    data, _ = STREAMS[name]
    meter = Meter(framing_of(name))
    meter.feed(events_in(data, name)[0])
    assert not meter.complete
    assert meter.events == 1


def test_report_can_be_hidden_and_nothing_else() -> None:
    for pieces in ([CHAT], events_in(CHAT, "openai")):
        meter = Meter(hide=True)
        assert b"".join(map(meter.feed, pieces)) == sse(chat("a"), chat("b"), chat(reason="stop")) + DONE
        assert totals(meter.usage) == (7, 2)


def test_report_at_the_very_end_is_hidden_too() -> None:
    meter = Meter(hide=True)
    assert meter.feed(sse(chat("a")) + sse(REPORT).rstrip()) == sse(chat("a"))
    assert totals(meter.usage) == (7, 2)
    assert Meter(hide=True).feed(sse(REPORT, end=b"\n") + b"data: {}\n\n") == b"data: {}\n\n"


def test_answer_in_one_piece() -> None:
    answer = {
        "choices": [{"index": 0, "message": {"content": "a"}, "finish_reason": "stop"}], "usage": USAGE
    }
    data = json.dumps(answer, indent=1).encode()
    meter = Meter("json", hide=True)
    assert meter.feed(data[:20]) + meter.feed(data[20:]) == data
    meter.flush()
    assert totals(meter.usage) == (7, 2) and meter.complete
    meter.flush()


def test_answer_in_one_piece_that_is_too_long_passes_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metering, "_MAX_WHOLE", 10)
    meter = Meter("json")
    assert meter.feed(b'{"usage": {}') == b'{"usage": {}'
    assert meter.feed(b"}") == b"}"
    meter.flush()
    assert meter.usage is None and not meter.complete


@pytest.mark.parametrize("line", [
    b'data: {"usage":{', b'data: {"usage":{"prompt_tokens":1}}', b'{"usage":{}} x', b"\xff\"usage\":{",
    b'data: {"choices":[],"usage":{"prompt_tokens":"many"}}',
    b'data: {"choices":5,"usage":{"prompt_tokens":1}}',
    b'data: {"error":{"message":"no"},"choices":[],"usage":{}}',
    b'data: {"usage":{"a":' + b"[" * 100_000,
])
def test_what_cannot_be_read_disturbs_nobody(line: bytes) -> None:
    for hide in (False, True):
        meter = Meter(hide=hide)
        meter.feed(line + b"\n\n")
        meter.feed(CHAT)
        meter.flush()
        assert totals(meter.usage) == (7, 2)


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b'"usage":{', b"data: {", b"}\n\n", CHAT])))
def test_bytes_always_pass_unchanged(pieces: List[bytes]) -> None:
    meter = Meter()
    assert [meter.feed(piece) for piece in pieces] == pieces


@given(st.lists(st.binary(max_size=40) | st.sampled_from([b"\n", b"data: {", b"}\n\n", sse(chat("a"))])))
def test_nothing_else_is_hidden(pieces: List[bytes]) -> None:
    assert [Meter(hide=True).feed(piece) for piece in pieces] == pieces


@pytest.mark.parametrize("chunk, name", [
    ({"choices": []}, "openai"),
    ({"type": "of its own", "choices": []}, "openai"),
    ({"object": "response", "output": []}, "openai-responses"),
    ({"type": "message", "content": []}, "anthropic"),
    ({"type": "ping"}, "anthropic"),
    ([{"candidates": []}], "gemini"),
    ({"promptFeedback": {}}, "gemini"),
    ({"response": "a", "done": False}, "ollama"),
    ({"type": 5, "done": True}, None),
    ([], None),
    ("text", None),
    ({}, None),
])
def test_formats_are_told_apart(chunk: Any, name: Optional[str]) -> None:
    assert recognise(chunk) == name
