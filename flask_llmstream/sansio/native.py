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

What belongs to a channel of :func:`~flask_llmstream.multiplex` has its name in front of the other
fields, ``data: {"channel":"a","text":"…"}``, and so has the end of each channel. The data of an
``Event`` that is no JSON object becomes one: ``{"channel":"a","data":…}``.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from flask_llmstream.sansio import sse
from flask_llmstream.sansio.events import Event, TextDelta, Usage
from flask_llmstream.sansio.jsontext import dump, quote, to_utf8
from flask_llmstream.sansio.wire import WireFormat, tagged_fields, usage_fields

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
        event = f'data: {{"text":{quote(text)}}}\n\n'
        return event.encode() if event.isascii() else to_utf8(event)

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write the end of a stream that has been sent whole; see :meth:`WireFormat.done`."""
        if usage is not None or self.__class__ is not SSEFormat or reason.__class__ is not str:
            return super().done(reason, usage)
        # How short answers end, without what it takes to set up the JSON encoder.
        return self._rest() + to_utf8(f'event: done\ndata: {{"reason":{quote(reason)},"usage":null}}\n\n')

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

    def _make_channel(self, name: str, number: int) -> WireFormat:
        return _SSEChannel(name)


class _SSEChannel(SSEFormat):
    """Encodes the items of one channel."""

    __slots__ = ("_name", "_head")

    encode = WireFormat.encode

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._head = f'data: {{"channel":{quote(name)},"text":'

    def _text(self, text: str) -> bytes:
        return to_utf8(f"{self._head}{quote(text)}}}\n\n") if text else b""

    def _reasoning(self, text: str) -> bytes:
        return to_utf8(f"event: reasoning\n{self._head}{quote(text)}}}\n\n") if text else b""

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        return super()._named(name, tagged_fields(self._name, fields))

    def _event(self, event: Event) -> bytes:
        fields = event.data if isinstance(event.data, dict) else {"data": event.data}
        return super()._event(Event(tagged_fields(self._name, fields), event.event, event.id, event.retry))
