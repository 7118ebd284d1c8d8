"""Wire formats around the formats: one notes what a stream sends, one repeats what was noted.

Both give events the cursor with which a client comes back, where a format has a place for it: ``id:``
in an event stream, ``"cursor"`` in NDJSON, a frame of its own in ``frames``. Others can be followed
from their beginning.
"""

from __future__ import annotations

import random
from typing import Any, Callable, Dict, NamedTuple, Optional

from flask_llmstream.ending import StreamEnd
from flask_llmstream.failures import Failure, describe_failure, failure_of_code
from flask_llmstream.journal import Writer
from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, Tagged
from flask_llmstream.sansio.cursor import END, Cursors
from flask_llmstream.sansio.events import Comment, Event, Finish, TextDelta, Usage
from flask_llmstream.sansio.frames import with_cursor
from flask_llmstream.sansio.stored import Done, Failed, store

__all__ = ["Numbered", "Recorder", "Replayer"]


def _into_sse(frame: bytes, cursor: str) -> bytes:
    return f"id: {cursor}\n".encode() + frame


def _into_ndjson(frame: bytes, cursor: str) -> bytes:
    return b'%b,"cursor":"%b"}\n' % (frame[:-2], cursor.encode())


#: How a frame is given a cursor, by the name of its format.
_MARKS: Dict[str, Callable[[bytes, str], bytes]] = {
    "sse": _into_sse, "ndjson": _into_ndjson, "frames": with_cursor,
}
#: Milliseconds after which a reader comes back: at least, at most. By chance, since an EventSource knows
#: none, and after a deploy all readers of a worker come back.
_SOONEST, _LATEST = 500, 1500
#: What is said to one reader and is nothing for another.
_PASSING = (Comment, Finish)


class _Wrapped:
    """What both have in common: everything that is not theirs is the format's."""

    def __init__(self, format: Any, cursors: Cursors, url: str) -> None:
        self._format = format
        self._encode = format.encode
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
        said = Event({"url": self._url}, "stream", None, random.randint(_SOONEST, _LATEST))
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
        if item.__class__ is TextDelta:  # which comes by the thousand
            writer = self._writer
            frame: bytes = self._encode(item)
            sequence = writer.add(store(item))
            if frame and self._announced and not writer.lost and self._mark is not None:
                return self._mark(frame, self._cursors.at(sequence))
            return self._recorded(frame, sequence)
        if item.__class__ is Event and item.id is not None:
            item = Event(item.data, item.event, None, item.retry)  # ids are ours in such a stream
        if isinstance(item, _PASSING):
            return bytes(self._encode(item))
        rest = b""
        if item.__class__ is Tagged and isinstance(item.item, (ChannelDone, ChannelFailed)):
            rest = self._cut_character(item.channel)
        return rest + self._record(self._encode(item), item)

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write the end."""
        rest = self._cut_character()
        self._ended = True
        return rest + self._record(self._format.done(reason, usage), Done(reason, usage))

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the end of a stream that has failed."""
        rest = self._cut_character()
        self._ended = True
        frame = self._format.failed(message, code, retryable)
        return rest + self._record(frame, Failed(message, code, retryable))

    def close(
        self, end: StreamEnd, finish_reason: str, code: Optional[str] = None,
        describe: Callable[[BaseException], Failure] = describe_failure,
    ) -> None:
        """Note how the stream has ended where its own client did not hear of it, and seal it.

        :param finish_reason: why the model has stopped, where it has.
        :param code: of the failure that it was cancelled with, where that says more than ``end.reason``.
        :param describe: says what clients are told about an exception.
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
                code = code or end.reason
                failure = failure_of_code(code, True) if error is None else describe(error)
                self._writer.add(store(Failed(failure.message, failure.code, failure.retryable)))
        self._writer.close()

    def abandon(self, error: BaseException) -> None:
        """Note that *error* has ended the stream before it began, and seal it."""
        if not self._ended:
            self._ended = True
            failure = describe_failure(error)
            self._writer.add(store(Failed(failure.message, failure.code, failure.retryable)))
        self._writer.close()

    def _cut_character(self, channel: Optional[str] = None) -> bytes:
        """Write what stands for a character whose end has not come, as an entry of its own.

        :param channel: the one that ends, ``None`` for the stream.
        """
        format = self._format if channel is None else self._format.encoder_of(channel)
        end_text = getattr(format, "end_text", None)
        text = "" if end_text is None else end_text()
        if not text:
            return b""
        return self.encode(text if channel is None else Tagged(channel, text))

    def _record(self, frame: bytes, item: Any) -> bytes:
        return self._recorded(frame, self._writer.add(store(item)))

    def _recorded(self, frame: bytes, sequence: int) -> bytes:
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
