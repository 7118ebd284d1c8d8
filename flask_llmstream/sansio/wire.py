"""What the wire formats of this library's own have in common: which items there are, what they hold.

A subclass says how text, reasoning, named fields, an event and a comment are written. What a format
must have at least, for whoever writes one from nothing, stands in docs/formats.md.
"""

from __future__ import annotations

from codecs import utf_8_decode
from typing import Any, Callable, Dict, Optional, Tuple

from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, ChannelFlush, Channels, Tagged
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

__all__ = ["WireFormat", "event_fields", "tagged_fields", "usage_fields"]


class WireFormat:
    """Encodes the items of one stream. Make one per stream: ``bytes`` items leave a state."""

    __slots__ = ("_undecoded", "_channels")

    name = ""
    content_type = ""
    #: Further header fields, as pairs.
    headers: Tuple[Tuple[str, str], ...] = ()
    #: What keeps a silent connection alive, between any two items; ``None`` where a format has nothing.
    heartbeat: Optional[bytes] = None
    #: Whether changes of a JSON value (``JsonDelta``) are sent; without a word for them they are left out.
    sends_json = True

    def __init__(self) -> None:
        self._undecoded = b""  # the beginning of a character, from the last bytes item
        self._channels: Optional[Dict[str, WireFormat]] = None  # encoders by name, where there are some

    def encode(self, item: Any) -> bytes:
        """Write one item of a source; ``b""`` for what has nothing to say, such as ``Finish``.

        ``bytes`` are text in UTF-8, and may be cut inside a character.

        :raises TypeError: for what is no :data:`~flask_llmstream.sansio.events.Item`.
        :raises ValueError: for a value that the wire has no form for.
        """
        # Here and not in the table: this runs once per token.
        if item.__class__ is TextDelta:
            return self._text(item.text)
        if item.__class__ is str:
            return self._text(item)
        return self._encode_other(item)

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write the end of a stream that has been sent whole.

        :param reason: why the model stopped, see :class:`~flask_llmstream.Finish`.
        :param usage: what the answer has cost, where known.
        """
        fields = {"reason": reason, "usage": None if usage is None else usage_fields(usage)}
        return self._rest() + self._named("done", fields)

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the end of a stream that has failed.

        :param message: for people; what clients may know.
        :param code: for programs.
        :param retryable: whether the same request may succeed later.
        """
        fields = {"message": message, "code": code, "retryable": retryable}
        return self._rest() + self._named("failed", fields)

    def decode_text(self, data: bytes) -> str:
        """Return the text in *data*; a character that is cut at its end waits for the next."""
        if self._undecoded:
            data = self._undecoded + data
        text, used = utf_8_decode(data, "replace")
        self._undecoded = bytes(data[used:])
        return text

    def end_text(self) -> str:
        """Return what stands for a character whose end has not come, ``""`` where there is none."""
        text = "\ufffd" if self._undecoded else ""
        self._undecoded = b""
        return text

    def opening(self, padding: int) -> bytes:
        """Write what opens a stream, at least *padding* bytes of it; ``b""`` where a format has nothing."""
        return b""

    def encoder_of(self, name: str) -> WireFormat:
        """Return the encoder of one channel of this stream; the same one each time.

        Its :meth:`done` and :meth:`failed` write the end of the channel.

        :raises ValueError: where the format cannot keep channels apart.
        """
        channels = self._channels
        if channels is None:
            channels = self._channels = {}
        found = channels.get(name)
        if found is None:
            found = channels[name] = self._make_channel(name, len(channels) + 1)
        return found

    def _make_channel(self, name: str, number: int) -> WireFormat:
        """Return a new encoder for the channel *name*.

        :param number: which one it is, from 1.
        """
        raise ValueError(
            f"the wire format {self.name!r} cannot keep channels apart: name one that can, such as"
            " format='sse'; docs/multiplex.md has the list"
        )

    def _announce(self, names: Tuple[str, ...]) -> bytes:
        """Write which channels there will be besides those so far; ``b""`` where each item says its own."""
        for name in names:
            self.encoder_of(name)
        return b""

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
        """Write what was held back, at the end."""
        text = self.end_text()
        return self._text(text) if text else b""

    def _text(self, text: str) -> bytes:
        """Write a piece of the answer; ``b""`` for an empty one."""
        raise NotImplementedError

    def _reasoning(self, text: str) -> bytes:
        """Write a piece of reasoning; ``b""`` for an empty one."""
        raise NotImplementedError

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        """Write any other item: *name* says which it is."""
        raise NotImplementedError

    def _event(self, event: Event) -> bytes:
        raise NotImplementedError

    def _comment(self, text: str) -> bytes:
        raise NotImplementedError


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


def event_fields(event: Event) -> Dict[str, Any]:
    """Return *event* as JSON formats write it: its data as a value, and the fields that are set."""
    fields: Dict[str, Any] = {"data": event.data}
    for name in ("event", "id", "retry"):
        value = getattr(event, name)
        if value is not None:
            fields[name] = value
    return fields


def tagged_fields(channel: str, fields: Dict[str, Any]) -> Dict[str, Any]:
    """Return *fields* with the name of their channel in front."""
    tagged = {"channel": channel, **fields}
    tagged["channel"] = channel  # whatever an item of the application's own has under this name
    return tagged


def _tagged(wire: WireFormat, tagged: Tagged) -> bytes:
    channels = wire._channels
    encoder = None if channels is None else channels.get(tagged.channel)
    if encoder is not None:
        return _of_channel(encoder, tagged.item)
    # A reader who comes back for the rest does not get the announcement with it.
    said = wire._announce((tagged.channel,))
    return said + _of_channel(wire.encoder_of(tagged.channel), tagged.item)


def _of_channel(encoder: WireFormat, item: Any) -> bytes:
    if isinstance(item, ChannelDone):
        return encoder.done(item.reason, item.usage)
    if isinstance(item, ChannelFailed):
        return encoder.failed(item.message, item.code, item.retryable)
    if isinstance(item, (Tagged, Channels)):
        raise TypeError("a channel cannot have channels of its own")
    return encoder.encode(item)


def _tool_fields(call: ToolCallDelta) -> Dict[str, Any]:
    fields: Dict[str, Any] = {"index": call.index}
    if call.id is not None:
        fields["id"] = call.id
    if call.name is not None:
        fields["name"] = call.name
    fields["arguments"] = call.arguments
    return fields


def _json(wire: WireFormat, path: str, op: str, value: Any) -> bytes:
    return wire._named("json", {"path": path, "op": op, "value": value})


_ENCODERS: Dict[type, Callable[[WireFormat, Any], bytes]] = {
    str: lambda wire, item: wire._text(item),
    TextDelta: lambda wire, item: wire._text(item.text),
    bytes: lambda wire, item: wire._text(wire.decode_text(item)),
    # A value that comes whole replaces the document, so that a reader of `json` events need not
    # know whether it was sent in pieces.
    dict: lambda wire, item: _json(wire, "", "replace", item),
    list: lambda wire, item: _json(wire, "", "replace", item),
    Event: lambda wire, item: wire._event(item),
    Comment: lambda wire, item: wire._comment(item.text),
    ReasoningDelta: lambda wire, item: wire._reasoning(item.text),
    ToolCallDelta: lambda wire, item: wire._named("tool", _tool_fields(item)),
    JsonDelta: lambda wire, item: _json(wire, item.path, item.op, item.value),
    Usage: lambda wire, item: wire._named("usage", usage_fields(item)),
    Finish: lambda wire, item: b"",
    Tagged: _tagged,
    Channels: lambda wire, item: wire._announce(item.names),
    ChannelFlush: lambda wire, item: b"",
    Custom: lambda wire, item: wire._named("custom", {"name": item.name, "data": item.data}),
}
