"""Bytes pass in whole events or lines, all of them, and never more than a little is held back."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitting import every_way

from flask_llmstream.sansio import gate as module
from flask_llmstream.sansio.gate import Gate, make_gate


def opened(framing: str) -> Gate:
    gate = make_gate(framing)
    assert gate is not None
    return gate


@pytest.mark.parametrize("framing, data, held", [
    ("sse", b"data: a\n\ndata: b\n\n", b""),
    ("sse", b"data: a\r\n\r\ndata: b\r\n\r\n", b""),
    ("sse", b"data: a\n\ndata: b\n", b"data: b\n"),
    ("sse", b"data: a\n\n: c\r\n", b": c\r\n"),
    ("sse", b"event: x", b"event: x"),
    ("ndjson", b"{}\n[]\r\n", b""),
    ("ndjson", b"{}\n[", b"["),
])
def test_what_is_not_whole_is_held_back(framing: str, data: bytes, held: bytes) -> None:
    for way, pieces in every_way(data):
        gate = opened(framing)
        passed = [gate.feed(piece) for piece in pieces]
        assert b"".join(passed) + held == data, way
        assert gate.between
        assert gate.flush() == held


def test_a_whole_event_is_not_delayed_by_the_next() -> None:
    gate = opened("sse")
    assert gate.feed(b"data: a\n\ndata") == b"data: a\n\n"
    assert gate.feed(b": b\n") == b""
    assert gate.feed(b"\nid: 1") == b"data: b\n\n"


def test_what_is_too_long_passes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_HELD", 20)
    data = b"data: a\n\ndata: " + b"x" * 50 + b"\n\ndata: b\n\ndata: c"
    for way, pieces in every_way(data):
        gate = opened("sse")
        passed = b"".join(map(gate.feed, pieces))
        assert passed + b"data: c" == data, way
        assert gate.flush() == b"data: c"


def test_stream_of_carriage_returns_is_not_held_back() -> None:
    gate = opened("sse")
    assert gate.feed(b"data: a\r\r") == b"data: a\r\r"
    assert not gate.between
    assert gate.feed(b"data: b\r\r") == b"data: b\r\r"
    assert gate.feed(b"\n\ndata: c\n\nd") == b"\n\ndata: c\n\n"
    assert gate.between


def test_other_framings_have_no_gate() -> None:
    assert make_gate("json") is None


@given(
    st.lists(st.sampled_from([b"data: a", b"\n", b"\r\n", b"\n\n", b"\r", b"x" * 9])),
    st.sampled_from(["sse", "ndjson"]),
)
def test_everything_passes(pieces: List[bytes], framing: str) -> None:
    gate = opened(framing)
    assert b"".join(map(gate.feed, pieces)) + gate.flush() == b"".join(pieces)
