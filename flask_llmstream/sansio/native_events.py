"""What other formats of our own say, as the events that an event stream would have sent.

So a client that follows events reads them all: each item gets the name and the data that
:mod:`flask_llmstream.sansio.native` gives it, and what keeps the connection alive is a comment.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.jsontext import dump

__all__ = ["NativeEvents"]


class NativeEvents:
    """What such decoders have in common: where they are in a stream, and how an item is an event."""

    def __init__(self) -> None:
        #: What to send as ``Last-Event-ID``. Outlives ``reset()``, and may be assigned.
        self.last_event_id: str = ""
        #: Milliseconds to wait before a reconnect, once the peer has said so. Outlives ``reset()``.
        self.retry: Optional[int] = None

    def _event_of(self, kind: str, fields: Dict[str, Any], cursor: Any) -> Event:
        """Return an item as an event.

        :param kind: its name in the native format, ``text`` where it has none there.
        :param fields: its own.
        :param cursor: its place in the stream; what is none leaves it where it was.
        """
        if isinstance(cursor, str):
            self.last_event_id = cursor
        id = self.last_event_id or None
        if kind != "event":
            return Event(dump(fields), None if kind == "text" else kind, id)
        # An event that the server has sent with fields of its own.
        retry = fields.get("retry")
        if isinstance(retry, int) and retry >= 0:
            self.retry = retry
        data, name = fields.get("data"), fields.get("event")
        if "channel" in fields:
            inside = data if isinstance(data, dict) else {"data": data}
            data = {"channel": fields["channel"], **inside}
        text = data if isinstance(data, str) else dump(data)
        return Event(text, name if isinstance(name, str) and name else None, id)
