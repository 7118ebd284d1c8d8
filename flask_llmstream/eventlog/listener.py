"""What a log has in one process: its connection, its followers, and an ear for other processes."""

from __future__ import annotations

import logging
import os
import sqlite3
import uuid
from typing import Callable, Dict, Hashable, Iterable, Optional, Sequence, Set, TypeVar

from flask_llmstream.eventlog import tables
from flask_llmstream.eventlog.appending import Appender
from flask_llmstream.eventlog.attending import Attendance, Callbacks
from flask_llmstream.eventlog.base import OPEN
from flask_llmstream.eventlog.database import Database
from flask_llmstream.eventlog.peers import Ears, directory_for, tell
from flask_llmstream.eventlog.sharing import SharedReads
from flask_llmstream.eventlog.waiters import Waiters
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import current_runtime

__all__ = ["Here"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks of whoever waits, with and without a socket to be woken by.
_LOOK_INTERVAL, _LOOK_INTERVAL_WITHOUT_SOCKET = 1.0, 0.25

#: Seconds that the listener sleeps when nobody waits.
_IDLE = 3600.0

#: Ids in one message.
_AT_ONCE = 400


class Here:
    """What a log has in one process: connection, followers, and who listens to other processes."""

    def __init__(self, path: str, name: str, timeout: float, callbacks: Callbacks) -> None:
        self._pid = os.getpid()
        #: What this process is called where it is noted who reads.
        self.id = uuid.uuid4().hex
        self._runtime = runtime = current_runtime()
        self._callbacks = callbacks
        self._directory = directory_for(path)
        self._lock = runtime.lock()
        self._ears: Optional[Ears] = None
        self._idle = False
        #: Whether nobody is woken any more.
        self.closed = False
        self.database = Database(
            path, name, tables.VERSION, tables.SCHEMA, timeout, runtime, tables.ADDED
        )
        self.appender = Appender()
        self.waiters = Waiters(runtime)
        self._shared = SharedReads(runtime)
        self.attendance = Attendance(runtime)
        #: Open streams that were created here, and those of them that have been asked to stop.
        self.own: Set[str] = set()
        self._asked: Set[str] = set()

    def read(self, key: Hashable, job: Callable[[sqlite3.Connection], T]) -> T:
        """Return what *job* finds, once for all who ask for *key* at the same time."""

        def read(begin: Callable[[], None]) -> T:
            def begun(db: sqlite3.Connection) -> T:
                begin()
                return job(db)

            return self.database.read(begun)

        return self._shared(key, read)

    def changed(self, streams: Sequence[str]) -> None:
        """Wake whoever follows one of *streams*, here and elsewhere."""
        self.waiters.wake(streams)
        self.tell(b"look", streams)

    def tell(self, word: bytes, streams: Sequence[str]) -> None:
        """Send a word about *streams* to the other processes."""
        own = self._ears.path if self._ears is not None else None
        for start in range(0, len(streams), _AT_ONCE):
            some = streams[start : start + _AT_ONCE]
            tell(self._directory, b" ".join([word, *map(str.encode, some)]), own)

    def stopped(self, streams: Iterable[str]) -> None:
        """Call back for those of *streams* that were created here, once for each."""
        for stream in streams if self._callbacks.stop else ():
            with self._lock:
                if stream not in self.own or stream in self._asked:
                    continue
                self._asked.add(stream)
            self._callbacks.call(self._callbacks.stop, stream)

    def attended(self, streams: Iterable[str]) -> None:
        """Call back for those of *streams* that were created here: somebody reads them."""
        for stream in streams:
            if stream in self.own:
                self._callbacks.call(self._callbacks.attend, stream)

    def left(self, streams: Iterable[str]) -> None:
        """Call back for those of *streams* that were created here: somebody has left them."""
        for stream in streams:
            if stream in self.own:
                self._callbacks.call(self._callbacks.leave, stream)

    def ended(self, streams: Sequence[str]) -> None:
        """Forget *streams*."""
        with self._lock:
            self.own.difference_update(streams)
            self._asked.difference_update(streams)
        for stream in streams:
            self.appender.forget(stream)

    def interrupt(self, streams: Sequence[str]) -> None:
        """Seal those of *streams* whose worker's lease is over."""
        self.database.write(lambda db: tables.interrupt(db, streams))
        self.changed(streams)

    # -- listening -----------------------------------------------------------------------

    def listen(self) -> None:
        """Have words of other processes heard, from now on."""
        if self._ears is not None and not self._idle:
            return
        with self._lock:
            if self.closed:
                return
            if self._ears is None:
                ears = self._ears = Ears(self._directory, self._runtime)
                self._runtime.spawn(lambda: self._listen(ears), "llmstream-eventlog")
            elif self._idle:
                self._ears.kick()
            self._idle = False

    def _listen(self, ears: Ears) -> None:
        due = 0.0  # what has happened before the socket was there has told nobody
        while not self.closed and os.getpid() == self._pid:
            now = self._runtime.now()
            if due <= now:
                ears = self._bound(ears)
                due = now + (_LOOK_INTERVAL if ears.path is not None else _LOOK_INTERVAL_WITHOUT_SOCKET)
                self._look()
            with self._lock:
                # In this order: whoever begins to wait in between finds it true, or is counted.
                self._idle = True
                self._idle = not self.waiters and not (self.own and self._callbacks)
            try:
                for message in ears.receive(_IDLE if self._idle else max(0.001, due - now)):
                    self._hear(message)
            except Exception:
                _log.exception("what another process said could not be heard")
                self._runtime.flag().wait(_LOOK_INTERVAL)
        if os.getpid() == self._pid:
            ears.close()

    def _bound(self, ears: Ears) -> Ears:
        """Return *ears*, or new ones where they have no socket any more, or could not have one."""
        if ears.is_bound():
            return ears
        new = Ears(self._directory, self._runtime)
        with self._lock:
            if self.closed:  # has kicked the old ones, and would never hear of these
                ears, new = new, ears
            else:
                self._ears = new
        ears.close()
        return new

    def _hear(self, message: bytes) -> None:
        word, *streams = message.decode("ascii", "replace").split(" ")
        if word == "look":
            self.waiters.wake(streams)
        elif word == "stop":
            self.stopped(streams)
        elif word == "read":
            self.attended(streams)
        elif word == "left":
            self.left(streams)

    def _look(self) -> None:
        """See what words of other processes would have told, and whose lease is over."""
        seen: Dict[str, Optional[int]] = self.waiters.seen()
        own = list(self.own) if self._callbacks else []
        wanted = list(seen.keys() | set(own))
        if not wanted:
            return
        try:
            found = self.database.read(lambda db: tables.find(db, wanted))
            over = [stream for stream, state in found.items() if state.is_over]
            if over:
                self.interrupt(over)
        except LogUnavailable as error:
            _log.debug("%s", error)
            self.waiters.wake_all()  # they will find out what is wrong
            return
        ended = [stream for stream in wanted if stream not in found or found[stream].state != OPEN]
        self.ended(ended)
        self.stopped(stream for stream, state in found.items() if state.stop)
        self.attended(stream for stream, state in found.items() if state.is_read)
        self.waiters.wake(ended)
        self.waiters.wake(
            stream for stream, last in seen.items()
            if last is not None and stream in found and found[stream].last > last
        )

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self.closed = True
            if self._ears is not None:
                self._ears.kick()
                self._ears.hide()
        self.waiters.wake_all()
        self.database.close()
