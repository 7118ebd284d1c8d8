"""Writes what resumable streams send to the event log: in the background, and in groups.

Decisions
    1. A token costs its stream one append to a list. What has gathered in a few milliseconds is written
       at once for all streams of the process, by one thread or greenlet of ours.
    2. The log never holds a stream up and never ends one: where it cannot be written for too long the
       stream goes on and cannot be resumed any more.
    3. The end of a stream waits until it is written, so that a worker which stops has lost nothing.
    4. What was begun in the log is sealed there as soon as that can be done again: a stream that is
       open and that nobody writes would have its readers wait as long as this worker lives.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from typing import Any, Deque, Dict, List, Optional, Tuple

from flask_llmstream.eventlog import EventLog, open_log
from flask_llmstream.eventlog.base import FINISHED, INTERRUPTED
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import current_runtime, per_process

__all__ = ["ATTENDANCE", "LATEST_LOOK", "LEASE", "Journal", "Writer", "current_journals"]

_log = logging.getLogger(__name__)

#: Seconds in which entries gather before they are written: at least, at most, and for each stream that
#: had some the last time. What many streams write costs less for each, the more of it there is.
_LEAST, _MOST, _FOR_EACH = 0.01, 0.05, 0.0005
#: Seconds after which another worker may say that this one has gone.
LEASE = 10.0
#: Seconds for which a reader promises to be there, and between looks at who is.
ATTENDANCE = 3.0
_LOOKS = 0.5
#: Seconds that a stream gets on top of its grace, so that who comes at its end is seen.
LATEST_LOOK = _LOOKS + 0.25
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
        "stream", "sequence", "lost", "running", "grace", "_journal", "_waiting", "_first", "_dirty",
        "_closing", "_closed", "_closed_at", "_sealed",
    )

    def __init__(self, journal: Journal, stream: str, grace: float) -> None:
        self.stream = stream
        #: Number of the last entry.
        self.sequence = 0
        #: Whether the stream cannot be resumed any more.
        self.lost = False
        #: The stream itself, once it runs: what is stopped, and what readers may want to go on.
        self.running: Any = None
        #: Seconds for which it goes on when nobody reads it.
        self.grace = grace
        self._journal = journal
        self._waiting: Deque[bytes] = deque()
        self._first = 1
        self._dirty = False
        self._closing = False
        self._closed: Any = None
        self._closed_at = 0.0
        self._sealed = False

    def add(self, entry: bytes) -> int:
        """Have *entry* written; return its number."""
        self.sequence += 1
        if not self.lost:
            self._waiting.append(entry)
            if not self._dirty:
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
        self._flag = runtime.flag()
        self._pause = runtime.flag()
        self._awake = False
        self._recent = 0
        self._started = False
        self._renewed = -LEASE
        self._looked = 0.0
        #: Whether the log was told to be unusable, and when it may be asked again.
        self._failing = False
        self._away_until = 0.0

    def begin(
        self, stream: str, keep: float, max_events: int, max_bytes: int, grace: float
    ) -> Optional[Writer]:
        """Begin a stream in the log; ``None`` where that cannot be written now.

        Parameters as for :meth:`~flask_llmstream.eventlog.EventLog.create`.

        :param grace: seconds for which it goes on when nobody reads it.
        """
        if self._runtime.now() < self._away_until:
            _log.warning("stream %s cannot be resumed: %s cannot be used", stream, self.log.name)
            return None
        try:
            if not self._started:
                self._started = True
                self.log.on_stop(self._stop)
                self._runtime.spawn(self._run, "llmstream-journal")
            self.log.create(stream, self.worker, keep, max_events, max_bytes)
        except LogUnavailable as error:
            _log.warning("stream %s cannot be resumed: %s", stream, error)
            self._away_until = self._runtime.now() + _PAUSE
            return None
        writer = self._writers[stream] = Writer(self, stream, grace)
        self._flag.set()  # there is a lease to be renewed from now on
        return writer

    def wake(self, writer: Writer) -> None:
        """Have what waits in *writer* written soon."""
        writer._dirty = True
        self._woken.append(writer)
        if not self._awake:  # a flag costs more than a look at whether it was set
            self._awake = True
            self._flag.set()

    def hurry(self) -> None:
        """Write now: somebody waits for it."""
        self._pause.set()

    def _stop(self, stream: str) -> None:
        writer = self._writers.get(stream)
        running = None if writer is None else writer.running
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
                self._pause.wait(_PAUSE)
            else:
                if self._failing:
                    _log.info("%s can be used again", self.log.name)
                self._failing, self._away_until = False, 0.0

    def _idle(self) -> Optional[float]:
        """Return the seconds until there is something to do that nobody wakes us for."""
        return _LOOKS if self._writers else None

    def _work(self) -> None:
        if self._woken:
            self._pause.wait(min(_MOST, max(_LEAST, _FOR_EACH * self._recent)))
            self._pause.clear()
        self._write()
        now = self._runtime.now()
        if self._writers and now - self._renewed > LEASE / 3:
            self.log.renew(self.worker, LEASE)
            self._renewed = now
        if self._writers and now - self._looked > _LOOKS:
            self._looked = now
            self._look_for_readers(now)

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
                self._keep(writer)
            raise
        failed: Optional[Exception] = None
        for writer, (stream, _, entries) in zip(woken, batches):
            for _ in entries:
                writer._waiting.popleft()
            writer._first += len(entries)
            if stream in refused:
                self._give_up(writer)
                writer._sealed = True
            if not writer._waiting and (writer._closing or writer.lost):
                try:
                    self._seal(writer)
                except Exception as error:
                    self.wake(writer)
                    failed = error
        if failed is not None:
            raise failed

    def _keep(self, writer: Writer) -> None:
        """Have what could not be written wait on, though not without end."""
        late = writer._closing and self._runtime.now() - writer._closed_at > _LATEST
        if late or len(writer._waiting) > _MAX_WAITING:
            self._give_up(writer)
        self.wake(writer)

    def _seal(self, writer: Writer) -> None:
        if not writer._sealed:
            self.log.seal(writer.stream, INTERRUPTED if writer.lost else FINISHED)
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
        """Let streams whose client has left go on while others read them."""
        for writer in list(self._writers.values()):
            running = writer.running
            if running is not None and running.departed and not writer.lost:
                if self.log.attended(writer.stream):
                    running.go_on(now + writer.grace)


class _Journals(Dict[str, Journal]):
    """The journals of this process by the URLs of their logs."""

    def __missing__(self, url: str) -> Journal:
        found = self[url] = Journal(open_log(url))
        return found


#: Return the journals of this process.
current_journals = per_process(_Journals)
