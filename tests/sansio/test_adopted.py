"""Formats of responses that somebody else writes: where something may be added, and what."""

from __future__ import annotations

import json
from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitting import every_way

from flask_llmstream.sansio.adopted import AdoptedSSE, Opaque, RelayedSSE, adopted_format
from flask_llmstream.sansio.events import TextDelta
from flask_llmstream.sansio.sse import SSEDecoder


@pytest.mark.parametrize(
    "sent, may_follow",
    [
        (b"", True),
        (b"data: a\n\n", True),
        (b"data: a\r\n\r\n", True),
        (b"data: a\r\r", True),
        (b": comment\n\n", True),
        (b"data: a\n\n\n", True),
        (b"data: a", False),
        (b"data: a\n", False),
        (b"data: a\r\n", False),
        (b"data: a\r", False),
        (b"data: a\n\ndata: b", False),
        (b"\n", False),
    ],
)
def test_heartbeat_stands_between_events_only(sent: bytes, may_follow: bool) -> None:
    for way, pieces in every_way(sent):
        wire = AdoptedSSE()
        for piece in pieces:
            wire.pass_on(piece)
        assert (wire.heartbeat is not None) is may_follow, way


@given(st.lists(st.sampled_from([b"data: a\n\n", b"event: x\ndata", b": b\n\n", b"\n", b"data: b\n"])))
def test_heartbeats_change_nothing_for_a_reader(pieces: List[bytes]) -> None:
    wire = AdoptedSSE()
    sent = b""
    for piece in pieces:
        wire.pass_on(piece)
        sent += piece + (wire.heartbeat or b"")
    assert SSEDecoder().feed(sent) == SSEDecoder().feed(b"".join(pieces))


@pytest.mark.parametrize("sent", [b"", b"data: a\n\n", b"data: a", b"data: a\n"])
def test_failure_is_an_event_of_its_own(sent: bytes) -> None:
    wire = AdoptedSSE()
    wire.pass_on(sent)
    events = SSEDecoder().feed(sent + wire.failed("sorry", "shutdown", True))
    assert [event.event for event in events][-1] == "failed"
    assert [event.data for event in events][:-1] == (["a"] if sent else [])


def test_nothing_is_said_at_a_regular_end() -> None:
    assert AdoptedSSE().done("stop") == Opaque().done("stop") == b""


def test_items_can_be_sent_into_an_event_stream() -> None:
    wire = AdoptedSSE()
    assert wire.encode(b"data: raw\n\n") == b"data: raw\n\n"
    assert wire.encode(TextDelta("a")) == b'data: {"text":"a"}\n\n'


def test_only_bytes_can_be_sent_elsewhere() -> None:
    assert Opaque().encode(b"raw") == b"raw"
    with pytest.raises(TypeError, match="only bytes.*got str"):
        Opaque().encode("text")


def test_nothing_is_added_elsewhere() -> None:
    wire = Opaque()
    wire.pass_on(b"line\n")
    assert wire.heartbeat is None
    assert wire.opening(1024) == wire.failed("sorry", "shutdown", True) == b""


@pytest.mark.parametrize(
    "content_type, encoding, expected",
    [
        ("text/event-stream", "", AdoptedSSE),
        ("Text/Event-Stream; charset=utf-8", "identity", AdoptedSSE),
        ("text/event-stream", "gzip", Opaque),
        ("application/x-ndjson", "", Opaque),
        ("text/plain", "", Opaque),
    ],
)
def test_format_of_a_response(content_type: str, encoding: str, expected: type) -> None:
    assert type(adopted_format(content_type, encoding)) is expected


@pytest.mark.parametrize("sent", [b"", b"data: a\n\n", b"data: a", b"data: a\n"])
def test_failure_of_a_relayed_stream_is_one_that_clients_of_providers_know(sent: bytes) -> None:
    wire = RelayedSSE()
    wire.pass_on(sent)
    said = SSEDecoder().feed(sent + wire.failed("sorry", "upstream_rate_limited", True))[-1]
    assert said.event == "error"
    assert json.loads(said.data) == {
        "type": "error",
        "error": {
            "type": "rate_limit_error", "message": "sorry", "code": "upstream_rate_limited", "param": None,
        },
    }
