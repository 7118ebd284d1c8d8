"""Frames as the events that an event stream would have sent."""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Sequence

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.frames import Frame, FrameDecoder
from flask_llmstream.sansio.native_events import NativeEvents

__all__ = ["FrameEvents"]


class FrameEvents(NativeEvents):
    """Decodes frames into events; driven like :class:`~flask_llmstream.sansio.sse.SSEDecoder`.

    :param max_buffer: most bytes that the payload of one frame may have. Defaults to 1 Mi.
    :param on_comment: called with the text of each comment, ``""`` for a heartbeat. Defaults to none.
    """

    def __init__(
        self,
        max_buffer: int = 1 << 20,
        on_comment: Optional[Callable[[str], None]] = None,
    ) -> None:
        super().__init__()
        self._frames = FrameDecoder(max_buffer, on_comment)
        self._names: Sequence[Any] = ()

    def reset(self) -> None:
        """Get ready for a new connection."""
        self._frames.reset()
        self._names = ()

    def feed(self, data: bytes) -> List[Event]:
        """Return the events that *data* completes.

        :raises BufferLimitExceeded: a frame says that it is longer than ``max_buffer``.
        :raises DecodeError: a payload is not what its kind asks for.
        """
        events = (self._event(frame) for frame in self._frames.feed(data))
        return [event for event in events if event is not None]

    def flush(self) -> List[Event]:
        """Say that the input has ended; a last frame that was cut is discarded.

        :returns: always an empty list.
        """
        try:
            self._frames.flush()
        except DecodeError:
            pass
        return []

    def _event(self, frame: Frame) -> Optional[Event]:
        kind, fields, cursor = frame.kind, frame.data, frame.cursor
        if kind in ("text", "reasoning"):
            fields = {"text": fields}
        elif not isinstance(fields, dict):
            kind, fields = "event", {"data": fields, "event": kind}  # of somebody who takes liberties
        if kind == "custom" and not frame.channel and fields.get("name") == "channels":
            names = fields.get("data")
            self._names = names if isinstance(names, list) else ()
            return None
        if frame.channel:
            number = frame.channel
            name = self._names[number - 1] if number <= len(self._names) else str(number)
            fields = {"channel": name, **fields}
        # An event's own id stands for itself where the server gives no cursors.
        if kind == "event" and cursor is None:
            cursor = fields.get("id")
        return self._event_of(kind, fields, cursor)
