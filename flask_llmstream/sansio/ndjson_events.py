"""The lines of an ``ndjson`` stream as the events that an event stream would have sent.

Decision: ``id`` is the cursor of a resumable stream, on every line. Only a tool call has an ``id`` of
its own, and only where the stream has no cursors.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.jsontext import dump
from flask_llmstream.sansio.native_events import NativeEvents
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder

__all__ = ["NDJSONEvents"]


class NDJSONEvents(NativeEvents):
    """Decodes lines of JSON into events; driven like :class:`~flask_llmstream.sansio.sse.SSEDecoder`.

    Lines that are none of ours (other servers', other values than objects) are unnamed events with
    the line's value as data.

    :param max_buffer: most bytes that one line may have. Defaults to 1 Mi.
    :param on_comment: called with the text of each comment. Defaults to none.
    """

    def __init__(
        self,
        max_buffer: int = 1 << 20,
        on_comment: Optional[Callable[[str], None]] = None,
    ) -> None:
        super().__init__()
        self._lines = NDJSONDecoder(max_buffer)
        self._on_comment = on_comment

    def reset(self) -> None:
        """Get ready for a new connection."""
        self._lines.reset()

    def feed(self, data: bytes) -> List[Event]:
        """Return the events that *data* completes.

        :raises BufferLimitExceeded: a line is longer than ``max_buffer``.
        :raises DecodeError: a line is not JSON in UTF-8.
        """
        return self._events(self._lines.feed(data))

    def flush(self) -> List[Event]:
        """Say that the input has ended; a last line that was cut is discarded.

        :returns: the event of a last line that had no line end.
        """
        try:
            return self._events(self._lines.flush())
        except DecodeError:
            return []

    def _events(self, values: List[Any]) -> List[Event]:
        events = (self._event(value) for value in values)
        return [event for event in events if event is not None]

    def _event(self, value: Any) -> Optional[Event]:
        kind = value.get("type") if isinstance(value, dict) else None
        if not isinstance(kind, str):
            return Event(dump(value), None, self.last_event_id or None)
        del value["type"]
        if kind == "comment":
            if self._on_comment is not None:
                self._on_comment(str(value.get("text", "")))
            return None
        # An event's own id stands for itself where the server gives no cursors.
        name = "id" if kind == "event" and "cursor" not in value else "cursor"
        return self._event_of(kind, value, value.pop(name, None))
