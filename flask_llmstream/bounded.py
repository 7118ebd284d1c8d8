"""Streams that may not become longer than so many bytes. Without a limit none of this is ever run.

Decisions
    1. What counts is what items became on the wire, compressed by nobody: without the opening, heartbeats
       and the end. An answer that is over by then is whole.
    2. A stream is ended at the first item beyond its limit, which is not sent: what was sent is what the
       event log has, and what whoever comes back will read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask_llmstream.exceptions import StreamTooLong
from flask_llmstream.mixins import with_mixin

if TYPE_CHECKING:
    from flask_llmstream.stream import Stream

    _Base = Stream
else:
    _Base = object

__all__ = ["BoundedStream", "bound"]


class BoundedStream(_Base):
    """What a stream does besides, when it has a limit; a mixin in front of the stream's own class."""

    if not TYPE_CHECKING:
        __slots__ = ()

    def _take(self, item: Any) -> bytes:
        left = self._bytes_left
        if left <= 0:
            raise StreamTooLong(self._settings.max_bytes)
        data: bytes = super()._take(item)
        # Some items are taken by taking what is in them: what counts is the outermost.
        self._bytes_left = left - len(data)
        return data

    def _flush_quietly(self) -> bytes:
        data: bytes = super()._flush_quietly()
        self._bytes_left -= len(data)
        return data


def bound(stream: Stream, limit: int) -> None:
    """End *stream*, which has not begun, when it wants to send more than *limit* bytes."""
    stream._bytes_left = limit
    stream.__class__ = with_mixin(BoundedStream, type(stream))
