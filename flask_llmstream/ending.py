"""How a stream ended."""

from __future__ import annotations

from typing import NamedTuple, Optional

from flask_llmstream.sansio.events import Usage

__all__ = ["StreamEnd"]


class StreamEnd(NamedTuple):
    """How a stream ended; what ``on_end`` callbacks and ``stream_finished`` receive."""

    #: Name of the stream.
    id: str
    #: ``finish``, ``disconnect``, ``stop``, ``error``, ``timeout`` or ``shutdown``.
    reason: str
    #: All text that the source has yielded.
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
