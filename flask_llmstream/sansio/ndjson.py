"""The wire format ``ndjson``: one JSON object a line, told apart by its ``type``.

The names and fields are those of the native format (:mod:`flask_llmstream.sansio.native`); every
stream ends in exactly one ``done`` or ``failed``. ::

    str, TextDelta   {"type":"text","text":"…"}
    ReasoningDelta   {"type":"reasoning","text":"…"}
    ToolCallDelta    {"type":"tool","index":0,"id":"…","name":"…","arguments":"…"}
    JsonDelta        {"type":"json","path":"/a","op":"add","value":…}
    dict, list       {"type":"json","path":"","op":"replace","value":…}
    Usage            {"type":"usage","input_tokens":1,"output_tokens":2}
    Custom           {"type":"custom","name":"…","data":…}
    Event            {"type":"event","data":…,"event":"…","id":"…","retry":1000}
    Comment          {"type":"comment","text":"…"}
    the end          {"type":"done","reason":"stop","usage":{…} or null}
    a failure        {"type":"failed","message":"…","code":"…","retryable":false}

Readers pass over types that they do not know, ``comment`` among them. What belongs to a channel of
:func:`~flask_llmstream.multiplex` has its name behind the type: ``{"type":"text","channel":"a",…}``.

Decisions: 1. Lines end in LF, and hold none of the characters at which any language's idea of a
line ends (:mod:`~flask_llmstream.sansio.jsontext`).
2. The heartbeat is an object, never a blank line: many readers give each line to a JSON parser.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.jsontext import dump, quote, to_utf8
from flask_llmstream.sansio.wire import WireFormat, event_fields, tagged_fields

__all__ = ["NDJSONFormat"]

_OPENING = b'{"type":"comment","text":"open"}'
#: Some readers give up on longer lines; 64 KiB is a common limit, this stays far below.
_PADDED_LINE = 1024


class NDJSONFormat(WireFormat):
    """Encodes the items of one stream. Make one per stream: ``bytes`` items leave a state."""

    __slots__ = ()

    name = "ndjson"
    content_type = "application/x-ndjson"
    heartbeat: Optional[bytes] = b'{"type":"comment","text":"hb"}\n'

    def opening(self, padding: int) -> bytes:
        """Write the comment that opens a stream, at least *padding* bytes of it.

        Spaces behind a JSON value mean nothing.
        """
        lines = -(-padding // _PADDED_LINE)
        if lines < 1:
            return _OPENING + b"\n"
        return (_OPENING.ljust(_PADDED_LINE - 1) + b"\n") * lines

    def _text(self, text: str) -> bytes:
        # Not by _named(): this runs once per token, and the JSON encoder takes ten times as long.
        return to_utf8(f'{{"type":"text","text":{quote(text)}}}\n') if text else b""

    def _reasoning(self, text: str) -> bytes:
        return to_utf8(f'{{"type":"reasoning","text":{quote(text)}}}\n') if text else b""

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        return to_utf8(dump({"type": name, **fields}) + "\n")

    def _event(self, event: Event) -> bytes:
        return self._named("event", event_fields(event))

    def _comment(self, text: str) -> bytes:
        return self._named("comment", {"text": text})

    def _make_channel(self, name: str, number: int) -> WireFormat:
        return _NDJSONChannel(name)


class _NDJSONChannel(NDJSONFormat):
    """Encodes the items of one channel."""

    __slots__ = ("_name", "_tag")

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name
        self._tag = f'"channel":{quote(name)},"text":'

    def _text(self, text: str) -> bytes:
        return to_utf8(f'{{"type":"text",{self._tag}{quote(text)}}}\n') if text else b""

    def _reasoning(self, text: str) -> bytes:
        return to_utf8(f'{{"type":"reasoning",{self._tag}{quote(text)}}}\n') if text else b""

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        return super()._named(name, tagged_fields(self._name, fields))
