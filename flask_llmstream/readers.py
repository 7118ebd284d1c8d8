"""Who follows streams in this process: the log is told of them, and at once when the last one leaves.

Decisions
    1. A reader that leaves has nobody who could wait for the log: the watcher or the hub is there, and on
       threads its own is asleep in the log for up to a second. So it is said in the background.
    2. Whoever comes while that is being said waits for it, and is announced after it.
    3. Garbage collection may close a reader inside of any block here, in the very thread that has the lock:
       so a thread may take it again.
    4. A reader that is sent elsewhere, or that goes with its worker, is expected back: nothing is said,
       and what it has promised runs out by itself.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Deque, Dict, Optional, Tuple

from flask_llmstream.eventlog import EventLog
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import current_runtime
from flask_llmstream.streamlog import stream_logger

__all__ = ["ATTENDANCE", "Presence", "Readers"]

_log = stream_logger(__name__)

#: Seconds for which a reader promises to be there.
ATTENDANCE = 3.0
#: Seconds for which who comes waits for those who leave to be reported.
_PATIENCE = 2.0


class _Stream:
    """The readers of one stream."""

    __slots__ = ("count", "expected_until", "leaving")

    def __init__(self) -> None:
        self.count = 0
        #: Until when one that was sent elsewhere may come back.
        self.expected_until = 0.0
        #: Flag, while the log is told that all have left; set when it knows.
        self.leaving: Any = None


class Presence:
    """One reader of one stream; see :meth:`Readers.enter`."""

    __slots__ = ("_readers", "_stream", "_entered", "_left")

    def __init__(self, readers: Readers, stream: str) -> None:
        self._readers = readers
        self._stream = stream
        self._entered: Optional[_Stream] = None
        self._left = False

    def attend(self) -> None:
        """Say that somebody reads; to be said again, more often than every :data:`ATTENDANCE` seconds.

        :raises LogUnavailable: the log cannot be told.
        """
        entered = self._entered or self._enter()
        if self._left or entered is None:
            return
        leaving = entered.leaving
        if leaving is not None:
            leaving.wait(_PATIENCE)
        self._readers._log.attend(self._stream, ATTENDANCE)

    def _enter(self) -> Optional[_Stream]:
        """Be counted, unless it has left already: who has noticed that may be another thread."""
        with self._readers._lock:
            if not self._left:
                self._entered = self._readers._count(self._stream)
            return self._entered

    def leave(self, expected: bool = True) -> None:
        """Be there no longer; never blocks, and only the first call counts.

        :param expected: whether it may come back, as it was sent elsewhere. Defaults to true.
        """
        with self._readers._lock:
            if self._left:
                return
            self._left = True
        if self._entered is not None:
            self._readers._take_leave(self._stream, self._entered, expected)


class Readers:
    """All who follow streams of one log in this process.

    :param log: the event log.
    """

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._runtime = current_runtime()
        self._lock = threading.RLock()
        self._streams: Dict[str, _Stream] = {}
        self._leaving: Deque[Tuple[str, _Stream, Any]] = deque()
        #: Who gets it says what there is to be said.
        self._saying = self._runtime.lock()

    def enter(self, stream: str) -> Presence:
        """Return one more reader of *stream*; the log is told of it when it attends."""
        return Presence(self, stream)

    def _count(self, stream: str) -> _Stream:
        with self._lock:
            found = self._streams.get(stream)
            if found is None:
                found = self._streams[stream] = _Stream()
            found.count += 1
            return found

    def _take_leave(self, stream: str, entered: _Stream, expected: bool) -> None:
        now = self._runtime.now()
        with self._lock:  # for moments only: the hub may be here
            entered.count -= 1
            if expected:
                entered.expected_until = now + ATTENDANCE
            if entered.count:
                return
            if entered.expected_until > now:
                if entered.leaving is None:
                    self._forget(stream, entered)
                return
            told = entered.leaving = self._runtime.flag()
        self._leaving.append((stream, entered, told))
        if not self._saying.locked():
            self._runtime.spawn(self._say, "llmstream-leaving")

    def _forget(self, stream: str, entered: _Stream) -> None:
        if self._streams.get(stream) is entered:
            del self._streams[stream]

    def _say(self) -> None:
        # Not given up before the last look: what comes behind that finds it free.
        while self._leaving and self._saying.acquire(False):
            try:
                while self._leaving:
                    self._tell(*self._leaving.popleft())
            finally:
                self._saying.release()

    def _tell(self, stream: str, left: _Stream, told: Any) -> None:
        """Tell the log that all have left, unless another has come since."""
        try:
            if not left.count:
                self._log.leave(stream)
        except Exception as error:
            known = isinstance(error, LogUnavailable)
            _log.debug("stream %s has lost its readers here: %s", stream, error, exc_info=not known)
        finally:
            with self._lock:
                if left.leaving is told:
                    left.leaving = None
                    if not left.count:
                        self._forget(stream, left)
            told.set()
