"""Signals that tell what happens to streams; nothing is sent where nobody listens.

A receiver that fails is logged: neither the stream nor the other receivers notice.
Each is sent with the Flask app (or ``None`` outside of one) as sender and the keyword ``stream``;
``stream_refused`` has none, since there is no stream.
They need ``blinker``, which Flask 2.3 and newer bring; without it ``connect`` says what to install.
"""

from __future__ import annotations

import logging
from typing import Any, Dict, List, Tuple

_log = logging.getLogger(__name__)

try:
    from blinker import NamedSignal

    class _Signal(NamedSignal):
        """A signal whose receivers cannot break what they are told of."""

        def send(self, *sender: Any, **details: Any) -> List[Tuple[Any, Any]]:
            """Call each receiver, whatever becomes of the one before it."""
            answers: List[Tuple[Any, Any]] = []
            if getattr(self, "is_muted", False):
                return answers
            of = sender[0] if sender else None
            for receiver in self.receivers_for(of):
                try:
                    answers.append((receiver, receiver(of, **details)))
                except Exception:
                    stream = details.get("stream")
                    whose = "" if stream is None else f"stream {stream.id}: "
                    _log.exception("%sa receiver of %s failed", whose, self.name.replace("-", "_"))
            return answers

except ImportError:  # Flask < 2.3 runs without it

    class _Signal:  # type: ignore[no-redef]
        """Stands in for a signal that nobody can connect to."""

        def __init__(self, name: str) -> None:
            self.name = name
            self.receivers: Dict[int, Any] = {}

        def send(self, *sender: Any, **details: Any) -> None:
            """Do nothing: there can be no receiver."""

        def connect(self, *receiver: Any, **options: Any) -> Any:
            """Say what to install."""
            raise RuntimeError(f"the signal {self.name!r} needs blinker: pip install blinker")


__all__ = ["client_disconnected", "first_token", "stream_finished", "stream_refused", "stream_started"]

#: The server has begun to iterate a stream.
stream_started = _Signal("stream-started")
#: The source has yielded for the first time; sent once a stream.
first_token = _Signal("first-token")
#: The client has left before the end. Receivers must not block: all streams wait for them.
client_disconnected = _Signal("client-disconnected")
#: The stream is over; the keyword ``end`` holds the :class:`~flask_llmstream.StreamEnd`.
stream_finished = _Signal("stream-finished")
#: A request gets no stream, because there are as many as may be. The keyword ``limit`` says which limit
#: it was, ``worker``, ``owner`` or ``route``; ``retry_after``, how many seconds the client is asked to wait.
stream_refused = _Signal("stream-refused")
