"""The wire format ``text``: the answer's text in UTF-8, and nothing else.

What is not text (reasoning, tool calls, JSON, usage, events, comments) is left out, and there is
nothing that could keep a silent connection alive. The end of the body is the end of the answer.

A failure has no form here. ``failed`` writes nothing, and whoever drives the stream breaks the
connection off instead, so that no client takes half an answer for a whole one: curl exits with 18,
``requests`` raises ``ChunkedEncodingError``, and ``fetch`` rejects.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from flask_llmstream.sansio.events import Event, Usage
from flask_llmstream.sansio.utf8 import HalvesJoined
from flask_llmstream.sansio.wire import WireFormat

__all__ = ["TextFormat"]


class TextFormat(WireFormat):
    """Encodes the items of one stream. Make one per stream: characters may come in pieces."""

    __slots__ = ("_utf8",)

    name = "text"
    content_type = "text/plain; charset=utf-8"
    heartbeat: Optional[bytes] = None
    sends_json = False

    def __init__(self) -> None:
        super().__init__()
        self._utf8 = HalvesJoined()

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write what is left of a character that was cut; the end itself is that of the body."""
        return self._rest() + self._utf8.flush()

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Return nothing: the connection has to be broken off."""
        return b""

    def _text(self, text: str) -> bytes:
        return self._utf8.feed(text)

    def _reasoning(self, text: str) -> bytes:
        return b""

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        return b""

    def _event(self, event: Event) -> bytes:
        return b""

    def _comment(self, text: str) -> bytes:
        return b""
