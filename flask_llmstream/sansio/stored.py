"""Items as bytes for an event log, and back: what was sent in one format may be read again in another.

One letter says what follows: the text itself for what comes by the thousand, JSON for all else. ::

    t…   text                 r…   reasoning
    v…   [class, fields…]     a value of :mod:`~flask_llmstream.sansio.events`
    j…   a dict or list       c…   [channel, item]: an item of one channel
    d…   [reason, usage]      the end
    f…   [message, code, retryable]    a failure, which is an end too
"""

from __future__ import annotations

import json
from typing import Any, Dict, NamedTuple, Optional, Tuple, Type

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio import channels, events
from flask_llmstream.sansio.channels import Tagged
from flask_llmstream.sansio.events import ReasoningDelta, TextDelta, Usage, Value

__all__ = ["Done", "Failed", "load", "store"]


class Done(NamedTuple):
    """The end of a stream that has been sent whole, or was cancelled."""

    reason: str
    usage: Optional[Usage]


class Failed(NamedTuple):
    """The end of a stream that has failed, as clients were told of it."""

    message: str
    code: str
    retryable: bool


#: Values with the classes of their fields, where those are values again.
_CLASSES: Dict[str, Type[Value]] = {
    each.__name__: each
    for each in (
        events.Event, events.Comment, events.ToolCallDelta, events.JsonDelta, events.Usage, events.Finish,
        events.Custom, channels.Channels, channels.ChannelDone, channels.ChannelFailed,
    )
}
#: What is of no use to a later reader.
_UNSTORED: Dict[str, Tuple[str, ...]] = {"ChannelFailed": ("error",)}


def store(item: Any) -> bytes:
    """Return *item* as bytes.

    :param item: an :data:`~flask_llmstream.sansio.events.Item` other than ``bytes``, a value of
        :mod:`~flask_llmstream.sansio.channels`, :class:`Done` or :class:`Failed`.
    :raises TypeError: it is nothing of the kind, or holds what JSON has no form for.
    """
    kind = item.__class__
    if kind is TextDelta:
        return _text(b"t", item.text)
    if isinstance(item, str):
        return _text(b"t", item)
    if kind is ReasoningDelta:
        return _text(b"r", item.text)
    if kind is Tagged:
        # A channel's name holds no line break.
        return _text(b"c", item.channel) + b"\n" + store(item.item)
    if kind is Done:
        usage = None if item.usage is None else [getattr(item.usage, name) for name in Usage.__slots__]
        return b"d" + _dump([item.reason, usage])
    if kind is Failed:
        return b"f" + _dump(list(item))
    for base in kind.__mro__:
        if base.__name__ in _CLASSES:
            left_out = _UNSTORED.get(base.__name__, ())
            return b"v" + _dump([base.__name__, *(
                _plain(getattr(item, name)) for name in base.__slots__ if name not in left_out
            )])
    if isinstance(item, (dict, list)):
        return b"j" + _dump(item)
    raise TypeError(f"a {kind.__name__} cannot be stored")


def load(data: bytes) -> Any:
    """Return the item in *data*, which :func:`store` has made.

    :raises DecodeError: it has not.
    """
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"t":
            return TextDelta(rest.decode("utf-8", "surrogatepass"))
        if kind == b"r":
            return ReasoningDelta(rest.decode("utf-8", "surrogatepass"))
        if kind == b"c":
            channel, _, item = rest.partition(b"\n")
            return Tagged(channel.decode(), load(item))
        value = json.loads(rest.decode("utf-8", "surrogatepass"))
        if kind == b"d":
            reason, usage = value
            return Done(reason, None if usage is None else Usage(*usage))
        if kind == b"f":
            return Failed(*value)
        if kind == b"j":
            return value
        if kind == b"v":
            return _make(*value)
    except (TypeError, ValueError, LookupError, RecursionError) as error:
        raise DecodeError(f"an entry of the event log cannot be read: {type(error).__name__}") from error
    raise DecodeError(f"an entry of the event log is of an unknown kind {kind!r}")


def _text(kind: bytes, text: str) -> bytes:
    return kind + text.encode("utf-8", "surrogatepass")


def _plain(value: Any) -> Any:
    if isinstance(value, Usage):
        return [getattr(value, name) for name in Usage.__slots__]
    return list(value) if isinstance(value, tuple) else value


def _make(name: str, *fields: Any) -> Value:
    if name == "ChannelDone" and fields[1] is not None:
        fields = (fields[0], Usage(*fields[1]))
    return _CLASSES[name](*fields)


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
