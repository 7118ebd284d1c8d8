"""What was seen of a stream through one hop, before anybody judges it; in seconds since the request."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

__all__ = ["Arrival", "Hop", "Observation"]


class Hop(NamedTuple):
    """A place on the way at which the stream can be read."""

    name: str
    url: str
    #: Whether it was found, and not given: it gets the token, and nothing else of what others are sent.
    found: bool = False


class Arrival(NamedTuple):
    """One event as it came in."""

    at: float
    #: Seconds after the first event at which the app says to have sent it; ``None`` where nobody says so.
    sent: Optional[float]
    #: Bytes of the body up to its end.
    end: int
    #: Length of its data, in characters.
    size: int


class Observation:
    """One answer, as it was read through one hop."""

    def __init__(self, hop: Hop) -> None:
        self.hop = hop
        #: Why there is nothing to see, ``None`` where there is.
        self.error: Optional[str] = None
        #: What to do about that.
        self.step = ""
        self.status = 0
        #: Of HTTP, as the status line says.
        self.version = ""
        #: As they came; names in lower case.
        self.headers: List[Tuple[str, str]] = []
        #: ``h2`` where the server offers it.
        self.alpn: Optional[str] = None
        self.connect_time = 0.0
        #: ``host:port`` of our end of the connection, and the other end's host.
        self.local = self.remote = ""
        self.head_at = 0.0
        #: (when, bytes of the body before decompression) of each read of the socket that had some.
        self.reads: List[Tuple[float, int]] = []
        self.events: List[Arrival] = []
        #: When comments came that were no padding.
        self.comments: List[float] = []
        #: What the probe's first event says; ``None`` where the stream is no probe.
        self.hello: Optional[Dict[str, Any]] = None
        #: Whether the probe's last event came.
        self.last = False
        #: ``complete``, ``cut``, ``reset``, ``silent`` (nothing for the time that was allowed), ``enough``
        #: (we stopped reading) or ``unreadable``.
        self.end = ""
        self.end_at = 0.0
        #: The encoding that we cannot undo.
        self.unread_encoding: Optional[str] = None

    def header(self, name: str) -> Optional[str]:
        """Return the value of a header, those of repeated ones joined; ``None`` where there is none."""
        values = [value for each, value in self.headers if each == name]
        return ", ".join(values) if values else None

    @property
    def is_probe(self) -> bool:
        """Whether the app says when it has sent what."""
        return self.hello is not None

    @property
    def first_byte(self) -> Optional[float]:
        """When the first byte of the body came."""
        return self.reads[0][0] if self.reads else None
