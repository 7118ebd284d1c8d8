"""What strangers send costs no more than its length: nothing backtracks, no limit can be passed."""

from __future__ import annotations

from typing import Any, Callable

import pytest
from costs import costs_at_most

from flask_llmstream.exceptions import UpstreamError, WireError
from flask_llmstream.sansio.adopted import AdoptedSSE, RelayedSSE
from flask_llmstream.sansio.clients import padding_for
from flask_llmstream.sansio.cursor import BadCursor, CursorKeys
from flask_llmstream.sansio.formats import negotiate
from flask_llmstream.sansio.frames import FrameDecoder
from flask_llmstream.sansio.gate import make_gate
from flask_llmstream.sansio.headers import may_pass, parse_retry_after
from flask_llmstream.sansio.metering import Meter
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder
from flask_llmstream.sansio.sse import SSEDecoder, encode_comment, encode_event
from flask_llmstream.upstream.errors import refused, scrub

#: Bytes of the longest header that servers take, and of the largest refusal that is read.
HEADER, REFUSAL = 8190, 65536
#: What backtracks, where anything does: quotes, escapes, nesting, separators, beginnings without an end.
UNITS = [
    '"', "\\", '"\\', '""', '"\\"', ",", ";", "a/b;", "a/b,", "*/*;q=", 'a/b;x="', 'a/b;x="\\', " ", "\t",
    "=", "(", "<", "<title", "<title>", "<title ", "</title", "[", "{", '{"a":', "0", "1.", "1:", "Mon, ",
    "-", "_", "Mozilla/5.0 (Macintosh; ", "Version/1.", "Android 4. ", "(iPhone OS 1_", "_1", "Chrome/1",
    "MSIE ", "q=0.", "CFNetwork", "v1.", "a", "a-", "sk-", "bearer ", "key_", "\r", "\n", "\r\n", "data:",
    "data: x\n", ":\n", "é", ".", "\ud83d", "`", "*", "**", "```", "![", "](", "|", "Dr. ", "... ", "?!",
    "\u200d", "🇩🇪", "e\u0301",
]


def check(look: Callable[[str], Any], size: int, limit: float = 0.7) -> None:
    """Give *look* each kind of harm; the slowest may take *limit* seconds of the processor."""
    worst, which = 0.0, ""
    for unit in UNITS:
        text = unit * (size // len(unit)) + "!"
        worst, which = max((worst, which), (costs_at_most(limit, lambda: look(text), what=repr(unit)), unit))
    print(f"the worst was {which!r}: {worst * 1000:.1f} ms for {size} characters")


def test_headers_of_a_request() -> None:
    check(negotiate, HEADER)
    check(lambda text: negotiate("a/b;q=0.5," + text), HEADER)
    check(lambda text: padding_for(text, "text/event-stream"), HEADER)
    keys = CursorKeys([b"key"])

    def resume(text: str) -> None:
        for look in (keys.read, keys.redeem):  # type: Callable[..., Any]
            with pytest.raises(BadCursor):
                look(text, text)

    check(resume, HEADER)


def test_answers_of_a_provider() -> None:
    check(lambda text: parse_retry_after(text, 0.0), HEADER)
    check(may_pass, REFUSAL)
    check(lambda text: refused(500, "the provider", text.encode("utf-8", "replace")), REFUSAL)
    check(lambda text: scrub(text, [text[:500]]), HEADER)


def test_refusal_that_is_nested_without_end_is_a_refusal() -> None:
    for body in (b"[" * REFUSAL, b'{"error":' * 7000):
        error = refused(429, "the provider", body)
        assert isinstance(error, UpstreamError) and error.code == "upstream_rate_limited"


@pytest.mark.parametrize("make", [SSEDecoder, NDJSONDecoder, FrameDecoder])
def test_bodies_that_are_read(make: Callable[[], Any]) -> None:
    """In small pieces."""

    def look(text: str) -> None:
        data, decoder = text.encode("utf-8", "replace"), make()
        try:
            for start in range(0, len(data), 16):
                decoder.feed(data[start : start + 16])
            decoder.flush()
        except WireError:
            pass

    check(look, 8000)


def test_bodies_that_pass() -> None:
    def look(text: str) -> None:
        data = text.encode("utf-8", "replace")
        pieces = [data[start : start + 64] for start in range(0, len(data), 64)]
        for kind in (AdoptedSSE, RelayedSSE):  # type: Any
            wire = kind()
            for piece in pieces:
                wire.pass_on(piece)
        for framing in ("sse", "ndjson", "json"):
            gate, meter = make_gate(framing), Meter(framing)
            for piece in pieces:
                if gate is not None:
                    gate.feed(piece)
                meter.feed(piece)

    check(look, 4000)


def test_text_that_is_written() -> None:
    from flask_llmstream.sansio.events import Event

    check(lambda text: (encode_event(Event(text)), encode_comment(text)), REFUSAL)
