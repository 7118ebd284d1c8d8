"""The native wire format, ``sse``: what this library's own clients read.

Text deltas are unnamed events ``data: {"text":"…"}``, all else is named; every stream ends in
exactly one ``done`` or ``failed``. ::

    str, TextDelta   data: {"text":"…"}
    ReasoningDelta   event: reasoning   data: {"text":"…"}
    ToolCallDelta    event: tool        data: {"index":0,"id":"…","name":"…","arguments":"…"}
    JsonDelta        event: json        data: {"path":"/a","op":"add","value":…}
    dict, list       event: json        data: {"path":"","op":"replace","value":…}
    Usage            event: usage       data: {"input_tokens":1,"output_tokens":2}
    Custom           event: custom      data: {"name":"…","data":…}
    the end          event: done        data: {"reason":"stop","usage":{…} or null}
    a failure        event: failed      data: {"message":"…","code":"…","retryable":false}
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from flask_llmstream.sansio import sse
from flask_llmstream.sansio.events import Event, TextDelta
from flask_llmstream.sansio.jsontext import dump, quote, to_utf8
from flask_llmstream.sansio.wire import WireFormat, usage_fields

__all__ = ["SSEFormat", "usage_fields"]


class SSEFormat(WireFormat):
    """Encodes the items of one stream. Make one per stream: ``bytes`` items leave a state."""

    __slots__ = ()

    name = "sse"
    # Without a charset a browser shows the bare stream, opened in a tab, as windows-1252.
    content_type = "text/event-stream; charset=utf-8"
    heartbeat: Optional[bytes] = sse.HEARTBEAT

    def encode(self, item: Any) -> bytes:
        """Write one item of a source; see :meth:`WireFormat.encode`."""
        # Here and not in a table: this runs once per token.
        if item.__class__ is TextDelta:
            text = item.text
        elif item.__class__ is str:
            text = item
        else:
            return self._encode_other(item)
        if not text:
            return b""
        # As _text(), without the call.
        return f'data: {{"text":{quote(text)}}}\n\n'.encode("utf-8", "backslashreplace")

    def opening(self, padding: int) -> bytes:
        """Write the comment that opens a stream, at least *padding* bytes of it."""
        return sse.opening(padding)

    def _text(self, text: str) -> bytes:
        return to_utf8(f'data: {{"text":{quote(text)}}}\n\n') if text else b""

    def _reasoning(self, text: str) -> bytes:
        # Not by _named(): this too runs once per token, and the JSON encoder takes ten times as long.
        return to_utf8(f'event: reasoning\ndata: {{"text":{quote(text)}}}\n\n') if text else b""

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        return to_utf8(f"event: {name}\ndata: {dump(fields)}\n\n")

    def _event(self, event: Event) -> bytes:
        return sse.encode_event(event)

    def _comment(self, text: str) -> bytes:
        return sse.encode_comment(text)
