"""An event log in an SQLite file, for all workers of one machine.

Decisions
    1. Processes wake each other by datagrams (:mod:`flask_llmstream.eventlog.peers`). Besides,
       whoever waits has a look once a second, or four times a second where there are no sockets:
       one query per process for all that is waited for.
    2. Leases are told by the clock that never goes back, and by the boot that it counts from: a
       wall clock that is set must not interrupt a stream. How long a stream stays readable is told
       by the wall clock, which goes on after a reboot.
    3. Each transaction that writes also drops some of what is past its time, at least twice as
       much as it adds, and SQLite uses the space again: the file grows to the largest amount that
       was alive at one time, and no further.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Callable, List, Optional, Sequence, Tuple
from urllib.parse import parse_qs, unquote, urlsplit

from flask_llmstream.eventlog import tables
from flask_llmstream.eventlog.attending import Callbacks
from flask_llmstream.eventlog.base import OPEN, Batch, EventLog, Page, checked_id, checked_seal
from flask_llmstream.eventlog.listener import Here
from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.runtime import per_process

__all__ = ["SQLiteEventLog"]

#: What each transaction drops at least, and :meth:`SQLiteEventLog.prune` at most.
_LEAST_PRUNED, _MOST_PRUNED = 100, 2000


class SQLiteEventLog(EventLog):
    """The log at ``sqlite:///relative/path`` or ``sqlite:////absolute/path``."""

    def __init__(self, url: str) -> None:
        self._path, self._timeout = _parse(url)
        self.name = f"sqlite:///{self._path}"
        self._callbacks = Callbacks()
        self._here = per_process(self._make)

    def _make(self) -> Here:
        return Here(self._path, self.name, self._timeout, self._callbacks)

    def create(self, stream: str, worker: str, keep: float, max_events: int, max_bytes: int) -> None:
        checked_id(stream)
        here = self._here()

        def job(db: sqlite3.Connection) -> None:
            tables.create(db, stream, worker, keep, max_events, max_bytes)
            tables.prune(db, _LEAST_PRUNED)

        here.database.write(job)
        here.own.add(stream)
        if self._callbacks:
            here.listen()

    def append_many(self, batches: Sequence[Batch]) -> List[str]:
        if not batches:
            return []
        here = self._here()

        def job(db: sqlite3.Connection) -> List[Optional[int]]:
            added = here.appender.append_many(db, batches, here.database.validity)
            tables.prune(db, max(_LEAST_PRUNED, 2 * here.appender.rows))
            return added

        added = here.database.write(job)
        here.changed([batch[0] for batch, number in zip(batches, added) if number])
        refused = [batch[0] for batch, number in zip(batches, added) if number is None]
        here.ended(refused)
        return refused

    def seal(self, stream: str, state: str) -> bool:
        return bool(self._seal([(stream, state)]))

    def seal_many(self, ends: Sequence[Tuple[str, str]]) -> None:
        self._seal(ends)

    def _seal(self, ends: Sequence[Tuple[str, str]]) -> List[str]:
        """Seal each stream in one transaction; return those that were open."""
        for _, state in ends:
            checked_seal(state)
        here = self._here()
        sealed = here.database.write(
            lambda db: [stream for stream, state in ends if tables.seal(db, stream, state)]
        )
        here.ended([stream for stream, _ in ends])
        if sealed:
            here.changed(sealed)
        return sealed

    def read(self, stream: str, after: int, limit: int = 256) -> Optional[Page]:
        here = self._here()

        def job(db: sqlite3.Connection) -> Tuple[Optional[Page], bool]:
            found = tables.find(db, [stream]).get(stream)
            if found is None:
                return None, False
            return tables.page(db, found, after, limit), bool(found.is_over)

        page, is_over = here.read((stream, after, limit), job)
        if is_over:
            here.interrupt([stream])
            page, _ = here.read((stream, after, limit), job)
        return page

    def wait(self, stream: str, after: int, timeout: float) -> None:
        here = self._here()
        waiting = here.waiters.enter(stream)
        try:
            # Whoever follows the same stream has looked since its last change: no need to look again.
            if waiting.seen is None or waiting.seen > after:
                found = here.read(stream, lambda db: tables.find(db, [stream])).get(stream)
                if found is None or found.state != OPEN or found.last > after:
                    return
                if found.is_over:
                    here.interrupt([stream])
                    return
                waiting.seen = found.last if waiting.seen is None else min(waiting.seen, found.last)
            here.listen()
            if not here.closed:  # else nobody would wake it
                waiting.flag.wait(max(0.0, timeout))
        finally:
            here.waiters.leave(stream, waiting)

    def request_stop(self, stream: str) -> bool:
        here = self._here()
        if not here.database.write(lambda db: tables.request_stop(db, stream)):
            return False
        here.stopped([stream])
        here.tell(b"stop", [stream])
        return True

    def on_stop(self, callback: Callable[[str], None]) -> None:
        self._callbacks.stop.append(callback)
        self._listen()

    def on_attend(self, callback: Callable[[str], None]) -> bool:
        self._callbacks.attend.append(callback)
        self._listen()
        return True

    def on_leave(self, callback: Callable[[str], None]) -> bool:
        self._callbacks.leave.append(callback)
        self._listen()
        return True

    def _listen(self) -> None:
        here = self._here()
        if here.own:
            here.listen()

    def claim(self, key: str, stream: str, keep: float) -> str:
        # A key that is bound, which is the rule where many ask, is only read.
        found = self.bound(key)
        if found is not None:
            return found
        return self._here().database.write(lambda db: tables.claim(db, key, stream, keep))

    def bind(self, key: str, stream: str, keep: float) -> None:
        checked_id(stream)
        self._here().database.write(lambda db: tables.bind(db, key, stream, keep))

    def bound(self, key: str) -> Optional[str]:
        return self._here().read(("claim", key), lambda db: tables.claimed(db, key))

    def attend(self, stream: str, seconds: float) -> None:
        here = self._here()
        if here.attendance.is_due(stream, seconds):
            with here.attendance.telling(stream):
                here.database.write(lambda db: tables.attend(db, stream, here.id, seconds))
            here.attended([stream])
            here.tell(b"read", [stream])

    def attended(self, stream: str) -> bool:
        return self._here().database.read(lambda db: tables.attended(db, stream))

    def leave(self, stream: str) -> None:
        here = self._here()
        if here.attendance.forget(stream):
            here.database.write(lambda db: tables.leave(db, stream, here.id))
            here.left([stream])
            here.tell(b"left", [stream])

    def renew(self, worker: str, lease: float) -> None:
        self._here().database.write(lambda db: tables.renew(db, worker, lease))

    def prune(self) -> int:
        return self._here().database.write(
            lambda db: tables.prune(db, _MOST_PRUNED) + tables.lapse(db)
        )

    def close(self) -> None:
        here = self._here()
        self._here = per_process(self._make)
        here.close()


def _parse(url: str) -> Tuple[str, float]:
    """Return the absolute path and the timeout that *url* names.

    :raises ConfigurationError: if it names none.
    """
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    expected = "sqlite:///path/to/log.db or sqlite:////absolute/path/to/log.db"
    if parts.netloc or not path or "\0" in path or path == ":memory:":
        raise ConfigurationError("LLMSTREAM_EVENT_LOG", url, f"{expected} (memory:// for a log in memory)")
    options = parse_qs(parts.query, keep_blank_values=True)
    try:
        timeout = float(options.pop("timeout", ["5"])[0])
    except ValueError:
        timeout = -1
    if options or parts.fragment or not 0 <= timeout <= 3600:
        raise ConfigurationError(
            "LLMSTREAM_EVENT_LOG", url, f"{expected}, with no option but timeout= (seconds, 0 to 3600)"
        )
    return os.path.abspath(path), timeout
