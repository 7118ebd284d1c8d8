"""Streams that are seen: on the live page, in traces, and in a line of the log at their end.

Where none of the three is switched on nothing of this is ever run, or imported.

Decisions
    1. As with streams that are measured (:mod:`flask_llmstream.metered`): one that is seen becomes one of a
       class that takes notes, when it is tied to its request; others carry not even a question.
    2. What is noted per token are the bytes; all else the stream knows by itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional

from flask_llmstream.ending import StreamEnd
from flask_llmstream.livefiles import LiveTable
from flask_llmstream.liverows import is_resumable
from flask_llmstream.measuring import route_of
from flask_llmstream.mixins import with_mixin
from flask_llmstream.otel import Tracing, make_tracing
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream
from flask_llmstream.streamlog import log_end

__all__ = ["TRACE_KEY", "Notes", "ObservedStream", "Observer", "make_observer"]

#: Has, in a WSGI environ, the trace context in which the answer was made.
TRACE_KEY = "flask_llmstream.trace"

if TYPE_CHECKING:
    _Base = Stream
else:
    _Base = object


class Notes:
    """What is noted of one stream."""

    __slots__ = ("observer", "route", "sent", "padded", "left_at", "parent", "span", "seen")

    def __init__(self, observer: Observer, route: str, parent: Any) -> None:
        self.observer = observer
        #: The endpoint that has answered.
        self.route = route
        #: Bytes of the body that were given to the server.
        self.sent = 0
        self.padded = 0
        #: When its own client has left, on the runtime's clock.
        self.left_at: Optional[float] = None
        #: The trace context of its request.
        self.parent = parent
        #: Its span, where it is traced.
        self.span: Any = None
        #: Of the last look: when, and pieces of text by then.
        self.seen = (0.0, 0)


class ObservedStream(_Base):
    """What a stream does besides, when it is seen; a mixin in front of the stream's own class."""

    if not TYPE_CHECKING:
        __slots__ = ()

    _notes: Notes

    def __next__(self) -> bytes:
        data = super().__next__()
        self._notes.sent += len(data)
        return data

    def _padding(self) -> bytes:
        data = super()._padding()
        self._notes.padded = len(data)
        return data

    def _write(self, comment: bytes = b"") -> bool:
        notes, frames = self._notes, self._frames
        size = sum(map(len, frames)) if frames else len(comment)
        notes.padded = 0
        written = super()._write(comment)
        if written and not frames:  # or they are still to be sent
            notes.sent += size + notes.padded
        return written

    def _begin(self) -> None:
        observer = self._notes.observer
        observer.begin(self)
        super()._begin()
        observer.show()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._notes.observer.leave(self)

    def _note_departure(self) -> None:
        self._notes.left_at = self._runtime.now()
        super()._note_departure()

    def _is_awaited(self) -> bool:
        return True

    def _tell(self, end: StreamEnd) -> None:
        try:
            super()._tell(end)
        finally:
            self._notes.observer.end(self, end)


class Observer:
    """Sees the streams of one app.

    :param table: has the live page see them; ``None`` where there is none.
    :param tracing: traces them; ``None`` where nothing does.
    :param logs: whether each gets a line of the log.
    """

    def __init__(self, table: Optional[LiveTable], tracing: Optional[Tracing], logs: bool) -> None:
        #: For the live page.
        self.table = table
        self._tracing = tracing
        self._logs = logs

    def measure(self, stream: Stream, environ: Mapping[str, Any]) -> None:
        """Have *stream* seen, which has not begun.

        :param environ: of the request that it answers.
        """
        parent = environ.get(TRACE_KEY)
        if parent is None and self._tracing is not None:
            parent = self._tracing.here()
        stream._notes = Notes(self, route_of(environ), parent)
        stream.__class__ = with_mixin(ObservedStream, type(stream))

    def note_context(self, environ: Dict[str, Any]) -> None:
        """Keep the trace context of the running request for a stream that is found behind the app."""
        if self._tracing is not None:
            environ[TRACE_KEY] = self._tracing.here()

    def begin(self, stream: ObservedStream) -> None:
        """Take note that *stream* begins; called in its request."""
        notes = stream._notes
        if self._tracing is not None:
            name = str(getattr(stream._format, "name", ""))
            notes.span = self._tracing.begin_stream(stream.id, notes.route, name, notes.parent)
        notes.parent = None

    def show(self) -> None:
        """Have the live page show a stream that has begun: it looks whether there are any."""
        if self.table is not None:
            self.table.begin()

    def leave(self, stream: ObservedStream) -> None:
        """Take note that the request has done with *stream*; called in its request."""
        notes = stream._notes
        if notes.span is not None and self._tracing is not None:
            self._tracing.leave(notes.span)

    def end(self, stream: ObservedStream, end: StreamEnd) -> None:
        """Take note that *stream* is over."""
        notes = stream._notes
        if notes.span is not None:
            notes.span.end(end, notes.sent, stream._pieces())
        if self._logs:
            log_end(self._fields(stream, end))

    def _fields(self, stream: ObservedStream, end: StreamEnd) -> Dict[str, Any]:
        notes, usage = stream._notes, end.usage
        left = notes.left_at
        return {
            "stream": end.id,
            "route": notes.route,
            "format": str(getattr(stream._format, "name", "")),
            "status": _status_of(stream),
            "reason": end.reason,
            "error": None if end.error is None else type(end.error).__name__,
            "duration": end.duration,
            "ttft": end.time_to_first_token,
            "pieces": stream._pieces(),
            "bytes": notes.sent,
            "input_tokens": None if usage is None else usage.input_tokens,
            "output_tokens": None if usage is None else usage.output_tokens,
            "estimated": end.estimated if usage is not None else None,
            "left_after": None if left is None else left - stream._started_at,
            "resumable": is_resumable(stream),
            "pid": os.getpid(),
        }


def _status_of(stream: Stream) -> Optional[int]:
    """Return the status that was sent, ``None`` where none was."""
    return int(stream._status[:3]) if stream._opened else None


def make_observer(app: Any, settings: Settings) -> Observer:
    """Return what sees the streams of *app*.

    :raises RuntimeError: OpenTelemetry is not installed, or the shared folder is not ours.
    """
    table = LiveTable(app, settings.shared_dir) if settings.live else None
    return Observer(table, make_tracing() if settings.otel else None, settings.log_streams)
