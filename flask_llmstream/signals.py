"""Signals that tell what happens to streams; nothing is sent where nobody listens.

Each is sent with the Flask app (or ``None`` outside of one) as sender and the keyword ``stream``.
They need ``blinker``, which Flask 2.3 and newer bring; without it ``connect`` says what to install.
"""

from __future__ import annotations

from typing import Any, Dict

try:
    from blinker import Namespace
except ImportError:  # Flask < 2.3 runs without it

    class _Missing:
        """Stands in for a signal that nobody can connect to."""

        def __init__(self, name: str) -> None:
            self.name = name
            self.receivers: Dict[int, Any] = {}

        def send(self, *sender: Any, **details: Any) -> None:
            """Do nothing: there can be no receiver."""

        def connect(self, *receiver: Any, **options: Any) -> Any:
            """Say what to install."""
            raise RuntimeError(f"the signal {self.name!r} needs blinker: pip install blinker")

    class Namespace(dict):  # type: ignore[no-redef, type-arg]
        """Makes the stand-ins."""

        def signal(self, name: str, doc: str = "") -> _Missing:
            """Return the stand-in called *name*."""
            return _Missing(name)


__all__ = ["client_disconnected", "first_token", "stream_finished", "stream_started"]

_signals = Namespace()

#: The server has begun to iterate a stream.
stream_started = _signals.signal("stream-started")
#: The source has yielded for the first time; sent once a stream.
first_token = _signals.signal("first-token")
#: The client has left before the end. Receivers must not block: all streams wait for them.
client_disconnected = _signals.signal("client-disconnected")
#: The stream is over; the keyword ``end`` holds the :class:`~flask_llmstream.StreamEnd`.
stream_finished = _signals.signal("stream-finished")
