"""Writes what resumable streams send to the event log: in the background, and in groups.

Decisions
    1. A token costs its stream one append to a list. What has gathered in a few milliseconds is written
       at once for all streams of the process, by one thread or greenlet of ours; in half a second where
       nobody reads it there, which is the rule: what is written in a few large pieces costs a fraction.
       Whoever begins to read it is told of at once.
    2. The log never holds a stream up and never ends one: where it cannot be written for too long the
       stream goes on and cannot be resumed any more.
    3. The end of a stream waits until it is written, so that a worker which stops has lost nothing.
    4. What was begun in the log is sealed there as soon as that can be done again: a stream that is
       open and that nobody writes would have its readers wait as long as this worker lives.
"""

from __future__ import annotations

import secrets
import weakref
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

from flask_llmstream.eventlog import EventLog, open_log
from flask_llmstream.eventlog.base import FINISHED, INTERRUPTED
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.readers import ATTENDANCE, Readers
from flask_llmstream.runtime import current_runtime, per_process
from flask_llmstream.streamlog import stream_logger

__all__ = ["LATEST_LOOK", "LEASE", "Journal", "Writer", "current_journals"]

_log = stream_logger(__name__)

#: Seconds in which entries gather before they are written: at least, at most, and for each stream that
#: had some the last time. What many streams write costs less for each, the more of it there is.
_LEAST, _MOST, _FOR_EACH = 0.01, 0.05, 0.0005
#: Seconds after which another worker may say that this one has gone.
LEASE = 10.0
#: Seconds between looks at who reads.
_LOOKS = 0.5
#: Entries of one stream that gather at most, where nobody reads it: a power of two.
_MANY = 256
#: Seconds that a stream gets on top of its grace, so that who comes at its end is seen.
LATEST_LOOK = _LOOKS + 0.25
#: Streams that are sealed in one go, and whose last readers are looked for.
_SEALED_TOGETHER, _LEFT_TOGETHER = 16, 16
#: Seconds after which a log that cannot be used is tried again.
_PAUSE = 1.0
#: Entries that wait for a log that cannot be written, before they are given up.
_MAX_WAITING = 2000
#: Seconds after the end of a stream in which that may still be written.
_LATEST = 60.0
#: Seconds that the end of a stream waits for its entries to be written.
_PATIENCE = 3.0


class Writer:
    """The way of one stream into the log."""

    __slots__ = (
        "stream", "sequence", "lost", "grace", "patience", "read_until", "stopping", "_running", "_journal",
        "_waiting", "_first", "_dirty", "_closing", "_closed", "_closed_at", "_sealed",
    )

    def __init__(self, journal: Journal, stream: str, grace: float, patience: float) -> None:
        self.stream = stream
        #: Number of the last entry.
        self.sequence = 0
        #: Whether the stream cannot be resumed any more.
        self.lost = False
        #: Until when somebody has said to read it in the log.
        self.read_until = 0.0
        #: Whether somebody has asked for it to be stopped.
        self.stopping = False
        self._running: Any = None
        #: Seconds for which it goes on when nobody reads it.
        self.grace = grace
        #: The same, where it is known that the last reader has left.
        self.patience = patience
        self._journal = journal
        self._waiting: Deque[bytes] = deque()
        self._first = 1
        self._dirty = False
        self._closing = False
        self._closed: Any = None
        self._closed_at = 0.0
        self._sealed = False

    @property
    def running(self) -> Any:
        """The stream: what is stopped, and what readers may want to go on. ``None`` once it is over."""
        reference = self._running  # looked at once: its end may come in between
        return None if reference is None else reference()

    @running.setter
    def running(self, stream: Any) -> None:
        # Held by its server alone: a response that nobody sends and nobody closes is garbage.
        self._running = None if stream is None else weakref.ref(stream)

    @property
    def forsaken(self) -> bool:
        """Whether its stream has gone without an end: an app has thrown the response away."""
        reference = self._running
        return reference is not None and reference() is None

    def add(self, entry: bytes) -> int:
        """Have *entry* written; return its number."""
        self.sequence += 1
        if not self.lost:
            self._waiting.append(entry)
            if not (self._dirty and self.sequence % _MANY):
                self._journal.wake(self)
        return self.sequence

    def close(self) -> None:
        """Seal the stream in the log, behind everything that was added; waits for that."""
        if self._closing:
            return
        self.running = None
        runtime = current_runtime()
        self._closed_at = runtime.now()
        self._closed = runtime.flag()
        self._closing = True
        self._journal.wake(self)
        self._journal.hurry()
        if not self.lost and not self._closed.wait(_PATIENCE):
            _log.warning("stream %s: its last words could not be written to the event log yet", self.stream)

    def take(self) -> Tuple[str, int, List[bytes]]:
        """Return what waits to be written; called by the journal alone."""
        self._dirty = False
        if self.lost:
            self._waiting.clear()  # added while it was given up: the number would be that of another
        return self.stream, self._first, list(self._waiting)


class Journal:
    """All writers of this process to one log.

    :param log: the event log.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log
        #: Id of this process in the log.
        self.worker = secrets.token_hex(8)
        runtime = current_runtime()
        self._runtime = runtime
        self._writers: Dict[str, Writer] = {}
        self._woken: Deque[Writer] = deque()
        self._unread: Deque[Writer] = deque()
        self._left: Deque[Writer] = deque()
        #: Those who follow streams in this process.
        self.readers = Readers(log)
        self._tells = False
        #: Held by who says that a reader has come, and by who ends a stream because the last has left.
        self._coming = runtime.lock()
        self._flag = runtime.flag()
        self._pause = runtime.flag()
        self._awake = False
        self._recent = 0
        self._started = False
        #: Whoever gets it starts what has to run; it is never given back.
        self._beginning = runtime.lock()
        self._renewed = -LEASE
        self._looked = 0.0
        #: Whether the log was told to be unusable, and when it may be asked again.
        self._failing = False
        self._away_until = 0.0

    def begin(
        self, stream: str, keep: float, max_events: int, max_bytes: int, grace: float,
        patience: Optional[float] = None,
    ) -> Optional[Writer]:
        """Begin a stream in the log; ``None`` where that cannot be written now.

        Parameters as for :meth:`~flask_llmstream.eventlog.EventLog.create`.

        :param grace: seconds for which it goes on when nobody reads it.
        :param patience: the same, from when the last of several readers has said that it leaves.
            Defaults to *grace*.
        """
        now = self._runtime.now()
        if now < self._away_until:
            _log.warning("stream %s cannot be resumed: %s cannot be used", stream, self.log.name)
            return None
        try:
            if LEASE / 2 < now - self._renewed < 2 * LEASE:
                # Nobody has renewed it while nothing ran. It may end between now and the next time, and the
                # new stream with it; had it ended for certain, the log would give another.
                self.log.renew(self.worker, LEASE)
                self._renewed = now
            if not self._started and self._beginning.acquire(False):
                self._started = True
                self.log.on_stop(self._stop)
                self._tells = self.log.on_attend(self._attend)
                self.log.on_leave(self._leave)
                self._runtime.spawn(self._run, "llmstream-journal")
            self.log.create(stream, self.worker, keep, max_events, max_bytes)
        except LogUnavailable as error:
            _log.warning("stream %s cannot be resumed: %s", stream, error)
            self._away_until = self._runtime.now() + _PAUSE
            return None
        writer = self._writers[stream] = Writer(self, stream, grace, grace if patience is None else patience)
        self._flag.set()  # there is a lease to be renewed from now on
        return writer

    def wake(self, writer: Writer) -> None:
        """Have what waits in *writer* written: soon where somebody waits for it, with the next look else."""
        writer._dirty = True
        if self._may_wait(writer):
            self._unread.append(writer)
            return
        self._woken.append(writer)
        if not self._awake:  # a flag costs more than a look at whether it was set
            self._awake = True
            self._flag.set()

    def _may_wait(self, writer: Writer) -> bool:
        if not self._tells or writer._closing or writer.lost:
            return False
        return len(writer._waiting) < _MANY and writer.read_until < self._runtime.now()

    def _attend(self, stream: str) -> None:
        writer = self._writers.get(stream)
        if writer is not None:
            with self._coming:
                writer.read_until = until = self._runtime.now() + ATTENDANCE
                running = writer.running
                if running is not None and running.departed:
                    # The next look would find that out, too; in a busy worker it may come too late.
                    running.go_on(until + writer.grace)
            if writer._dirty:
                self.wake(writer)

    def _leave(self, stream: str) -> None:
        writer = self._writers.get(stream)
        if writer is not None:
            # Whoever calls must not wait for the log, where others may be reading still.
            self._left.append(writer)
            self._flag.set()
            self.hurry()

    def hurry(self) -> None:
        """Write now: somebody waits for it."""
        self._pause.set()

    def _stop(self, stream: str) -> None:
        writer = self._writers.get(stream)
        if writer is not None:
            writer.stopping = True  # it may not have begun: then it is told with the next look
            running = writer.running
            if running is not None:
                running.cancel("stop")

    def _run(self) -> None:
        while True:
            self._flag.wait(self._idle())
            self._flag.clear()
            self._awake = False
            try:
                self._work()
            except Exception as error:
                if not self._failing:
                    unexpected = not isinstance(error, LogUnavailable)
                    _log.warning("%s; streams go on, and cannot be resumed", error, exc_info=unexpected)
                self._failing = True
                self._away_until = self._runtime.now() + _PAUSE
                self._give_up_late()
                self._pause.clear()  # whoever was in a hurry before this has to wait, too
                self._pause.wait(_PAUSE)
            else:
                if self._failing:
                    _log.info("%s can be used again", self.log.name)
                self._failing, self._away_until = False, 0.0

    def _idle(self) -> Optional[float]:
        """Return the seconds until there is something to do that nobody wakes us for."""
        if not self._writers:
            return None
        return max(0.001, self._looked + _LOOKS - self._runtime.now())

    def _work(self) -> None:
        if self._woken:
            self._pause.wait(min(_MOST, max(_LEAST, _FOR_EACH * self._recent)))
            self._pause.clear()
        now = self._runtime.now()
        if now - self._looked >= _LOOKS:
            while self._unread:
                self._woken.append(self._unread.popleft())
        self._renew()
        for _ in range(min(_LEFT_TOGETHER, len(self._left))):
            self._look_for_others(self._left.popleft())
        if self._left:
            self._flag.set()  # what waits to be written comes first
        self._write()
        if self._writers and now - self._looked >= _LOOKS:
            self._looked = now
            self._look_for_readers(now)

    def _renew(self) -> None:
        """Keep the lease of this worker, if it is time for that.

        Asked before each of a row of calls: in a worker that is busy every single one may take long, and
        who holds the lease must not be taken for dead because many streams end at once.
        """
        now = self._runtime.now()
        if self._writers and now - self._renewed > LEASE / 3:
            self.log.renew(self.worker, LEASE)
            self._renewed = now

    def _write(self) -> None:
        """Write what waits in all woken writers; what fails waits on."""
        found: Dict[Writer, None] = {}
        while self._woken:
            found[self._woken.popleft()] = None
        woken = list(found)
        self._recent = len(woken)
        if not woken:
            return
        batches = [writer.take() for writer in woken]
        try:
            refused = self.log.append_many([batch for batch in batches if batch[2]])
        except Exception:
            for writer in woken:
                self.wake(writer)
            raise
        over: List[Writer] = []
        for writer, (stream, _, entries) in zip(woken, batches):
            for _ in entries:
                writer._waiting.popleft()
            writer._first += len(entries)
            if stream in refused:
                self._give_up(writer)
                writer._sealed = True
            if not writer._waiting and (writer._closing or writer.lost):
                over.append(writer)
        for start in range(0, len(over), _SEALED_TOGETHER):
            try:
                self._renew()
                self._seal(over[start : start + _SEALED_TOGETHER])
            except Exception:
                for writer in over[start:]:
                    self.wake(writer)
                raise

    def _give_up_late(self) -> None:
        """Have what could not be written wait on, though not without end."""
        now = self._runtime.now()
        for writer in list(self._writers.values()):
            late = writer._closing and now - writer._closed_at > _LATEST
            if not writer.lost and (late or len(writer._waiting) > _MAX_WAITING):
                self._give_up(writer)
                self.wake(writer)

    def _seal(self, writers: List[Writer]) -> None:
        ends = [
            (writer.stream, INTERRUPTED if writer.lost else FINISHED)
            for writer in writers if not writer._sealed
        ]
        if ends:
            self.log.seal_many(ends)
        for writer in writers:
            writer._sealed = True
            if writer._closing:
                self._writers.pop(writer.stream, None)
                writer._closed.set()

    def _give_up(self, writer: Writer) -> None:
        if not writer.lost:
            _log.warning("stream %s goes on, and cannot be resumed any more", writer.stream)
        writer.lost = True
        writer._waiting.clear()

    def _look_for_readers(self, now: float) -> None:
        """Let streams whose client has left go on while others read them; end those that are no more."""
        for writer in list(self._writers.values()):
            self._renew()
            if writer.forsaken:
                self.log.seal(writer.stream, INTERRUPTED)
                self._writers.pop(writer.stream, None)
                continue
            running = writer.running
            if running is not None and writer.stopping:
                running.cancel("stop")
            if running is not None and running.departed and not writer.lost:
                if self.log.attended(writer.stream):
                    running.go_on(now + writer.grace)

    def _look_for_others(self, writer: Writer) -> None:
        """End a stream that readers have just left, if they were the last."""
        running, known = writer.running, writer.read_until
        if running is None or writer.lost or self.log.attended(writer.stream):
            return
        with self._coming:
            if writer.read_until != known:
                return  # another has come since
            writer.read_until = 0.0
            if running.departed:
                running.end_at(self._runtime.now() + writer.patience)


class _Journals(Dict[str, Journal]):
    """The journals of this process by the URLs of their logs."""

    def __missing__(self, url: str) -> Journal:
        # The first streams of a worker with threads come at the same time. Nothing is opened by this: all
        # but one of what they make is thrown away.
        return self.setdefault(url, Journal(open_log(url)))


#: Return the journals of this process.
current_journals = per_process(_Journals)
