"""Wire formats around the formats: one notes what a stream sends, one repeats what was noted.

Both give events the cursor with which a client comes back, where a format has a place for it: ``id:``
in an event stream, ``"id"`` in NDJSON. Others can be followed from their beginning.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, NamedTuple, Optional

from flask_llmstream.ending import StreamEnd
from flask_llmstream.failures import describe_failure, failure_of_code
from flask_llmstream.journal import Writer
from flask_llmstream.sansio.cursor import END, Cursors
from flask_llmstream.sansio.events import Comment, Event, Finish, Usage
from flask_llmstream.sansio.stored import Done, Failed, store

__all__ = ["Numbered", "Recorder", "Replayer"]


def _into_sse(frame: bytes, cursor: str) -> bytes:
    return b"id: %b\n%b" % (cursor.encode(), frame)


def _into_ndjson(frame: bytes, cursor: str) -> bytes:
    return b'%b,"id":"%b"}\n' % (frame[:-2], cursor.encode())


#: How a frame is given a cursor, by the name of its format.
_MARKS: Dict[str, Callable[[bytes, str], bytes]] = {"sse": _into_sse, "ndjson": _into_ndjson}
#: Milliseconds after which a reader comes back.
_RETRY = 1000
#: What is said to one reader and is nothing for another.
_PASSING = (Comment, Finish)


class _Wrapped:
    """What both have in common: everything that is not theirs is the format's."""

    def __init__(self, format: Any, cursors: Cursors, url: str) -> None:
        self._format = format
        self._cursors = cursors
        self._url = url
        self._mark = _MARKS.get(format.name)
        self._announced = False

    @property
    def resumes(self) -> bool:
        """Whether a reader can come back for the rest, and need not begin anew."""
        return self._mark is not None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._format, name)

    def _marked(self, frame: bytes, sequence: int) -> bytes:
        if not frame or self._mark is None:
            return frame
        return self._mark(frame, self._cursors.at(sequence))

    def _announcement(self) -> bytes:
        """Return the first event of who reads from the beginning: which stream this is."""
        if self._announced:
            return b""
        self._announced = True
        if self._mark is None:
            return b""
        said = Event({"url": self._url}, "stream", None, _RETRY)
        return self._marked(self._format.encode(said), 0)


class Recorder(_Wrapped):
    """Encodes the items of a stream, and has them written to the event log.

    :param format: the wire format.
    :param writer: writes to the log.
    :param cursors: of the stream.
    :param url: where the stream can be followed and stopped, for the first event.
    """

    def __init__(self, format: Any, writer: Writer, cursors: Cursors, url: str) -> None:
        super().__init__(format, cursors, url)
        self._writer = writer
        self._told = False
        self._ended = False

    def opening(self, padding: int) -> bytes:
        """Write what opens the stream, and which one it is."""
        return bytes(self._format.opening(padding)) + self._announcement()

    def encode(self, item: Any) -> bytes:
        """Write one item; see :meth:`~flask_llmstream.sansio.wire.WireFormat.encode`."""
        if item.__class__ is Event and item.id is not None:
            item = Event(item.data, item.event, None, item.retry)  # ids are ours in such a stream
        frame: bytes = self._format.encode(item)
        if isinstance(item, _PASSING):
            return frame
        return self._record(frame, item)

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write the end."""
        self._ended = True
        return self._record(self._format.done(reason, usage), Done(reason, usage))

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the end of a stream that has failed."""
        self._ended = True
        frame = self._format.failed(message, code, retryable)
        return self._record(frame, Failed(message, code, retryable))

    def close(self, end: StreamEnd, finish_reason: str) -> None:
        """Note how the stream has ended where its own client did not hear of it, and seal it.

        :param finish_reason: why the model has stopped, where it has.
        """
        if not self._ended:
            self._ended = True
            usage = None if end.estimated else end.usage
            if end.reason == "finish":
                self._writer.add(store(Done(finish_reason, usage)))
            elif end.reason in ("disconnect", "stop"):
                self._writer.add(store(Done("cancelled", usage)))
            else:
                error = end.error
                failure = failure_of_code(end.reason, True) if error is None else describe_failure(error)
                self._writer.add(store(Failed(failure.message, failure.code, failure.retryable)))
        self._writer.close()

    def _record(self, frame: bytes, item: Any) -> bytes:
        sequence = self._writer.add(store(item))
        if self._writer.lost:
            if not self._told and self._mark is not None:
                self._told = True
                frame = bytes(self._format.encode(Event({"url": None}, "stream"))) + frame
            return frame
        return self._announcement() + self._marked(frame, END if self._ended else sequence)


class Numbered(NamedTuple):
    """An item of the event log."""

    sequence: int
    item: Any


class Replayer(_Wrapped):
    """Encodes what is read from the event log.

    :param format: the wire format, which need not be the one that the stream began in.
    :param source: what reads the log; it knows how the stream ended.
    :param cursors: of the stream.
    :param url: where the stream can be followed and stopped.
    :param begins: whether its reader begins with the first entry.
    """

    def __init__(self, format: Any, source: Any, cursors: Cursors, url: str, begins: bool) -> None:
        super().__init__(format, cursors, url)
        self._source = source
        self._announced = not begins

    def opening(self, padding: int) -> bytes:
        """Write what opens the stream, and which one it is."""
        return bytes(self._format.opening(padding)) + self._announcement()

    def encode(self, item: Any) -> bytes:
        """Write one :class:`Numbered` item, or one that is not of the log."""
        if item.__class__ is Numbered:
            return self._marked(self._format.encode(item.item), item.sequence)
        frame: bytes = self._format.encode(item)
        return frame

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write the end as it was noted."""
        end = self._source.end
        return self._marked(self._format.done(end.reason, end.usage), END)

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the end of a stream that has failed, or cannot be read on."""
        frame = self._format.failed(message, code, retryable)
        return self._marked(frame, END) if self._source.over else bytes(frame)
