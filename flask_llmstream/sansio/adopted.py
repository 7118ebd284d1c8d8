"""Wire formats of responses that were written by somebody else: their bytes pass as they are.

What is added stands between two events and nowhere else, so these watch where the last event ends.
The interface is that of :mod:`flask_llmstream.sansio.native`, whose items they can write too.
"""

from __future__ import annotations

from typing import Any, Optional

from flask_llmstream.sansio.dialect import error_type, frame
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.headers import essence
from flask_llmstream.sansio.jsontext import to_utf8
from flask_llmstream.sansio.native import SSEFormat

__all__ = ["AdoptedSSE", "Opaque", "RelayedSSE", "adopted_format"]

#: After one of these an event is over. Mixed line ends are not looked for: not every client takes
#: them for an end.
_BOUNDARIES = (b"\n\n", b"\r\n\r\n", b"\r\r")
_LONGEST = 4


class Opaque:
    """Any format between whose items nothing may be added: NDJSON, plain text, what is compressed."""

    __slots__ = ()

    name = "opaque"
    heartbeat: Optional[bytes] = None
    #: Whether there may be a heartbeat later.
    has_heartbeats = False

    def pass_on(self, data: bytes) -> None:
        """Take note of what is sent."""

    def encode(self, item: Any) -> bytes:
        """Refuse what is not bytes: nobody knows how to say it here.

        :raises TypeError: always, except for ``bytes``.
        """
        if isinstance(item, bytes):
            return item
        raise TypeError(
            f"only bytes can be sent into a response of this content type, got {type(item).__name__}"
        )

    def opening(self, padding: int) -> bytes:
        """Return nothing: these formats have no comments."""
        return b""

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Return nothing: whoever wrote this stream has said its end in their own way."""
        return b""

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Return nothing: the client sees the connection break off."""
        return b""


class AdoptedSSE(SSEFormat):
    """An event stream whose events arrive here as bytes, cut anywhere.

    ``heartbeat`` is ``None`` while the last event is incomplete.
    """

    __slots__ = ("_tail",)

    name = "adopted-sse"
    has_heartbeats = True

    def __init__(self) -> None:
        super().__init__()
        self._tail = b""

    def pass_on(self, data: bytes) -> None:
        """Take note of what is sent."""
        tail = data[-_LONGEST:]
        self._tail = tail if len(tail) == _LONGEST else (self._tail + tail)[-_LONGEST:]

    @property
    def heartbeat(self) -> Optional[bytes]:  # type: ignore[override]
        """A comment, where one may stand now."""
        if not self._tail or self._tail.endswith(_BOUNDARIES):
            return SSEFormat.heartbeat
        return None

    def encode(self, item: Any) -> bytes:
        """Write one item; ``bytes`` as they are.

        :raises TypeError: for what is no item.
        :raises ValueError: for a value that the wire has no form for.
        """
        return item if isinstance(item, bytes) else super().encode(item)

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Return nothing: whoever wrote this stream has said its end in their own way."""
        return b""

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the failure, behind what ends an event that is incomplete."""
        end = b"" if self.heartbeat else b"\n\n"
        return end + super().failed(message, code, retryable)


class RelayedSSE(AdoptedSSE):
    """An event stream of an LLM's provider, for that provider's own clients.

    A failure looks to all of them like one of the provider's: those of OpenAI look for ``error`` in
    whatever event comes, those of Anthropic for an event of that name.
    """

    __slots__ = ()

    name = "relayed-sse"

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the failure as a provider does, behind what ends an event that is incomplete."""
        end = b"" if self.heartbeat else b"\n\n"
        error = {"type": error_type(code), "message": message, "code": code, "param": None}
        return end + to_utf8(frame({"type": "error", "error": error}, "error"))


def adopted_format(content_type: str, encoding: str = "") -> Any:
    """Return the format of a response.

    :param content_type: its ``Content-Type``.
    :param encoding: its ``Content-Encoding``; nothing can be added to what is compressed.
    """
    if essence(content_type) == "text/event-stream" and encoding.strip().lower() in ("", "identity"):
        return AdoptedSSE()
    return Opaque()
