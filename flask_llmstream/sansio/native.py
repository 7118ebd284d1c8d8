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

from codecs import utf_8_decode
from typing import Any, Callable, Dict, Optional

from flask_llmstream.sansio import sse
from flask_llmstream.sansio.events import (
    Comment,
    Custom,
    Event,
    Finish,
    JsonDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.jsontext import dump, quote, to_utf8

__all__ = ["SSEFormat", "usage_fields"]


class SSEFormat:
    """Encodes the items of one stream. Make one per stream: ``bytes`` items leave a state."""

    __slots__ = ("_undecoded",)

    name = "sse"
    # Without a charset a browser shows the bare stream, opened in a tab, as windows-1252.
    content_type = "text/event-stream; charset=utf-8"
    heartbeat: Optional[bytes] = sse.HEARTBEAT

    def __init__(self) -> None:
        self._undecoded = b""  # the beginning of a character, from the last bytes item

    def encode(self, item: Any) -> bytes:
        """Write one item of a source; ``b""`` for what has nothing to say, such as ``Finish``.

        ``bytes`` are text in UTF-8, and may be cut inside a character.

        :raises TypeError: for what is no :data:`~flask_llmstream.sansio.events.Item`.
        :raises ValueError: for a value that the wire has no form for.
        """
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

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write the end of a stream that has been sent whole.

        :param reason: why the model stopped, see :class:`~flask_llmstream.Finish`.
        :param usage: what the answer has cost, where known.
        """
        fields = {"reason": reason, "usage": None if usage is None else usage_fields(usage)}
        return self._rest() + _named("done", fields)

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the end of a stream that has failed.

        :param message: for people; what clients may know.
        :param code: for programs.
        :param retryable: whether the same request may succeed later.
        """
        fields = {"message": message, "code": code, "retryable": retryable}
        return self._rest() + _named("failed", fields)

    def decode_text(self, data: bytes) -> str:
        """Return the text in *data*; a character that is cut at its end waits for the next."""
        if self._undecoded:
            data = self._undecoded + data
        text, used = utf_8_decode(data, "replace")
        self._undecoded = bytes(data[used:])
        return text

    def opening(self, padding: int) -> bytes:
        """Write the comment that opens a stream, at least *padding* bytes of it."""
        return sse.opening(padding)

    def _encode_other(self, item: Any) -> bytes:
        for kind in item.__class__.__mro__:
            encode = _ENCODERS.get(kind)
            if encode is not None:
                return encode(self, item)
        raise TypeError(
            f"a {type(item).__name__} cannot be sent; a source yields str, bytes, dict, list,"
            " Event, Comment or one of the deltas"
        )

    def _rest(self) -> bytes:
        if not self._undecoded:
            return b""
        self._undecoded = b""
        return _text("\ufffd")


def usage_fields(usage: Usage) -> Dict[str, Optional[int]]:
    """Return *usage* as it is written: both totals always, their parts where known."""
    fields: Dict[str, Optional[int]] = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
    }
    if usage.reasoning_tokens is not None:
        fields["reasoning_tokens"] = usage.reasoning_tokens
    if usage.cached_tokens is not None:
        fields["cached_tokens"] = usage.cached_tokens
    return fields


def _text(text: str) -> bytes:
    return to_utf8(f'data: {{"text":{quote(text)}}}\n\n') if text else b""


def _reasoning(text: str) -> bytes:
    # Not by _named(): this too runs once per token, and the JSON encoder takes ten times as long.
    return to_utf8(f'event: reasoning\ndata: {{"text":{quote(text)}}}\n\n') if text else b""


def _named(name: str, fields: Dict[str, Any]) -> bytes:
    return to_utf8(f"event: {name}\ndata: {dump(fields)}\n\n")


def _tool(call: ToolCallDelta) -> bytes:
    fields: Dict[str, Any] = {"index": call.index}
    if call.id is not None:
        fields["id"] = call.id
    if call.name is not None:
        fields["name"] = call.name
    fields["arguments"] = call.arguments
    return _named("tool", fields)


def _json(path: str, op: str, value: Any) -> bytes:
    return _named("json", {"path": path, "op": op, "value": value})


_ENCODERS: Dict[type, Callable[[SSEFormat, Any], bytes]] = {
    str: lambda wire, item: _text(item),
    TextDelta: lambda wire, item: _text(item.text),
    bytes: lambda wire, item: _text(wire.decode_text(item)),
    # A value that comes whole replaces the document, so that a reader of `json` events need not
    # know whether it was sent in pieces.
    dict: lambda wire, item: _json("", "replace", item),
    list: lambda wire, item: _json("", "replace", item),
    Event: lambda wire, item: sse.encode_event(item),
    Comment: lambda wire, item: sse.encode_comment(item.text),
    ReasoningDelta: lambda wire, item: _reasoning(item.text),
    ToolCallDelta: lambda wire, item: _tool(item),
    JsonDelta: lambda wire, item: _json(item.path, item.op, item.value),
    Usage: lambda wire, item: _named("usage", usage_fields(item)),
    Finish: lambda wire, item: b"",
    Custom: lambda wire, item: _named("custom", {"name": item.name, "data": item.data}),
}
