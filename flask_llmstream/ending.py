"""How a stream ended."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional

from flask_llmstream.sansio.events import Usage

__all__ = ["ChannelEnd", "StreamEnd"]


class ChannelEnd(NamedTuple):
    """How one channel of a stream ended; see :func:`~flask_llmstream.multiplex`."""

    #: ``finish``, ``error``, or why its stream has ended before it.
    reason: str
    #: All text that its source has yielded.
    text: str
    #: What it has cost; ``None`` where nothing is known.
    usage: Optional[Usage]
    #: Whether ``usage`` was counted here because the provider did not get to say it.
    estimated: bool
    #: The exception behind the reason ``error``.
    error: Optional[BaseException] = None
    #: As in :class:`StreamEnd`.
    value: Any = None


class StreamEnd(NamedTuple):
    """How a stream ended; what ``on_end`` callbacks and ``stream_finished`` receive."""

    #: Name of the stream.
    id: str
    #: ``finish``, ``disconnect``, ``stop``, ``error``, ``timeout`` or ``shutdown``.
    reason: str
    #: All text that the source has yielded; that of channels one after the other, with an empty line
    #: between them.
    text: str
    #: What it has cost; ``None`` where nothing is known.
    usage: Optional[Usage]
    #: Whether ``usage`` was counted here because the provider did not get to say it.
    estimated: bool
    #: Seconds from the first turn of the server to the end.
    duration: float
    #: Seconds to the first item, ``None`` where there was none.
    time_to_first_token: Optional[float]
    #: The exception behind the reason ``error``.
    error: Optional[BaseException] = None
    #: With ``structured``: the JSON value that the text holds, once it is whole; with a pydantic
    #: model as ``schema``, an instance of it. ``None`` where there is none, or it is not valid.
    value: Any = None
    #: By name, in their order, how the channels of ``multiplex()`` have ended; empty without channels.
    channels: Dict[str, ChannelEnd] = {}
