"""The tables of the log in SQLite, and what is done to them: each function runs in a transaction.

Nothing here needs more than SQLite 3.22.
"""

from __future__ import annotations

import sqlite3
import time
from typing import Any, Dict, Iterable, NamedTuple, Optional, Sequence

from flask_llmstream.eventlog.base import FIRST_LEASE, INTERRUPTED, OPEN, Page
from flask_llmstream.eventlog.packing import Collector
from flask_llmstream.runtime import per_process

__all__ = [
    "ADDED",
    "SCHEMA",
    "State",
    "VERSION",
    "attend",
    "attended",
    "bind",
    "claim",
    "claimed",
    "create",
    "find",
    "interrupt",
    "lapse",
    "leave",
    "page",
    "prune",
    "renew",
    "request_stop",
    "seal",
]

#: Number of the schema. A file with another one is left alone.
VERSION = 2

#: The statements that make it.
SCHEMA = (
    """
    CREATE TABLE streams (
        key INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, worker TEXT NOT NULL,
        keep REAL NOT NULL, max_events INTEGER NOT NULL, max_bytes INTEGER NOT NULL,
        state TEXT NOT NULL DEFAULT 'open', stop INTEGER NOT NULL DEFAULT 0, until REAL,
        attended REAL NOT NULL DEFAULT 0)
    """,
    "CREATE INDEX streams_ended ON streams (until) WHERE until IS NOT NULL",
    "CREATE INDEX streams_open ON streams (worker) WHERE state = 'open'",
    # The rows of a stream lie side by side, in the order in which they are read; each has some entries
    # (flask_llmstream.eventlog.packing) and the number of the last.
    """
    CREATE TABLE entries (
        stream INTEGER NOT NULL, number INTEGER NOT NULL, lengths BLOB NOT NULL, body BLOB NOT NULL,
        PRIMARY KEY (stream, number)) WITHOUT ROWID
    """,
    "CREATE TABLE claims (key TEXT PRIMARY KEY, stream TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
    "CREATE INDEX claims_until ON claims (until)",
    "CREATE TABLE leases (worker TEXT PRIMARY KEY, boot TEXT NOT NULL, until REAL NOT NULL) WITHOUT ROWID",
)

#: What a file may lack that an earlier version of the same schema has made, and does not mind.
ADDED = (
    # Which processes read a stream; streams.attended is the longest promise of all of them.
    """
    CREATE TABLE IF NOT EXISTS readers (
        stream INTEGER NOT NULL, process TEXT NOT NULL, until REAL NOT NULL,
        PRIMARY KEY (stream, process)) WITHOUT ROWID
    """,
)

#: Ids in one query: SQLite takes 999 values.
_AT_ONCE = 400

_IS_OVER = "(leases.boot <> :boot OR leases.until < :now)"
_LEASE_IS_OVER = f"EXISTS (SELECT 1 FROM leases WHERE leases.worker = streams.worker AND {_IS_OVER})"
_LAST = "(SELECT ifnull(max(number), 0) FROM entries WHERE entries.stream = streams.key)"
_SEAL = "UPDATE streams SET state = :state, until = :wall + keep WHERE state = 'open'"


class State(NamedTuple):
    """What the table has about one stream."""

    id: str
    key: int
    last: int
    state: str
    #: Whether it has been asked to stop.
    stop: int
    #: Whether somebody has said that they read it.
    is_read: int
    #: Whether it is open and its worker's lease is over.
    is_over: int


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


#: Return what the clock of leases counts from.
_boot = per_process(_boot_id)


def _values(**values: Any) -> Dict[str, Any]:
    """Return *values* and the times that statements compare to."""
    values.update(boot=_boot(), now=time.monotonic(), wall=time.time())
    return values


def create(
    db: sqlite3.Connection, stream: str, worker: str, keep: float, max_events: int, max_bytes: int
) -> None:
    """Begin a stream."""
    lapse(db)
    db.execute(
        "INSERT OR IGNORE INTO leases VALUES (?, ?, ?)", (worker, _boot(), time.monotonic() + FIRST_LEASE)
    )
    db.execute(
        "INSERT OR IGNORE INTO streams (id, worker, keep, max_events, max_bytes) VALUES (?, ?, ?, ?, ?)",
        (stream, worker, keep, max_events, max_bytes),
    )


def find(db: sqlite3.Connection, streams: Sequence[str]) -> Dict[str, State]:
    """Return those of *streams* that are readable."""
    found: Dict[str, State] = {}
    for start in range(0, len(streams), _AT_ONCE):
        ids = {f"id{n}": stream for n, stream in enumerate(streams[start : start + _AT_ONCE])}
        rows = db.execute(
            f"SELECT id, key, {_LAST}, state, stop, attended > :now, state = 'open' AND {_LEASE_IS_OVER}"
            f" FROM streams WHERE id IN (:{', :'.join(ids)}) AND (until IS NULL OR until > :wall)",
            _values(**ids),
        )
        found.update((row[0], State(*row)) for row in rows)
    return found


def page(db: sqlite3.Connection, stream: State, after: int, limit: int) -> Page:
    """Return the entries after *after*, up to a gap."""
    rows: Iterable[Any] = db.execute(
        "SELECT number, lengths, body FROM entries WHERE stream = ? AND number > ? ORDER BY number LIMIT ?",
        (stream.key, after, limit),
    )
    found = Collector(after, limit)
    for row in rows:
        found.add(*row)
        if found.full:
            break
    return Page(found.first, found.entries, stream.last, stream.state)


def seal(db: sqlite3.Connection, stream: str, state: str) -> bool:
    """End an open stream; return whether there was one."""
    interrupt(db, [stream])
    return bool(db.execute(f"{_SEAL} AND id = :id", _values(id=stream, state=state)).rowcount)


def interrupt(db: sqlite3.Connection, streams: Sequence[str]) -> None:
    """Seal those of *streams* whose worker's lease is over."""
    statement = f"{_SEAL} AND id = :id AND {_LEASE_IS_OVER}"
    db.executemany(statement, [_values(id=stream, state=INTERRUPTED) for stream in streams])


def request_stop(db: sqlite3.Connection, stream: str) -> bool:
    """Ask for an open stream to be stopped; return whether there is one."""
    interrupt(db, [stream])
    return bool(
        db.execute("UPDATE streams SET stop = 1 WHERE id = ? AND state = ?", (stream, OPEN)).rowcount
    )


def claimed(db: sqlite3.Connection, key: str) -> Optional[str]:
    """Return the stream that *key* is bound to, ``None`` if it is not bound."""
    found = db.execute(
        "SELECT stream FROM claims WHERE key = ? AND until > ?", (key, time.time())
    ).fetchone()
    return None if found is None else str(found[0])


def claim(db: sqlite3.Connection, key: str, stream: str, keep: float) -> str:
    """Bind *key* to *stream* unless it is bound; return what it is bound to."""
    found = claimed(db, key)
    if found is not None:
        return found
    bind(db, key, stream, keep)
    return stream


def bind(db: sqlite3.Connection, key: str, stream: str, keep: float) -> None:
    """Bind *key* to *stream*, whatever it was bound to."""
    db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (key, stream, time.time() + keep))


def attend(db: sqlite3.Connection, stream: str, process: str, seconds: float) -> None:
    """Note that the stream is read in *process* for so many seconds."""
    until = time.monotonic() + seconds
    db.execute("UPDATE streams SET attended = max(attended, ?) WHERE id = ?", (until, stream))
    db.execute(
        "INSERT OR REPLACE INTO readers SELECT key, ?, ? FROM streams WHERE id = ?", (process, until, stream)
    )


def leave(db: sqlite3.Connection, stream: str, process: str) -> None:
    """Note that the stream is read in *process* no longer."""
    db.execute(
        "DELETE FROM readers WHERE stream = (SELECT key FROM streams WHERE id = ?) AND process = ?",
        (stream, process),
    )
    db.execute(
        "UPDATE streams SET attended = (SELECT ifnull(max(until), 0) FROM readers WHERE stream = key)"
        " WHERE id = ?", (stream,)
    )


def attended(db: sqlite3.Connection, stream: str) -> bool:
    """Whether somebody reads the stream."""
    now = time.monotonic()
    found = db.execute("SELECT 1 FROM streams WHERE id = ? AND attended > ?", (stream, now)).fetchone()
    return found is not None


def renew(db: sqlite3.Connection, worker: str, lease: float) -> None:
    """Let the lease of *worker* end *lease* seconds from now."""
    db.execute("INSERT OR REPLACE INTO leases VALUES (?, ?, ?)", (worker, _boot(), time.monotonic() + lease))


def lapse(db: sqlite3.Connection) -> int:
    """End all leases that are over, and the streams of their workers; return how many leases."""
    values = _values(state=INTERRUPTED)
    if db.execute(f"SELECT 1 FROM leases WHERE {_IS_OVER} LIMIT 1", values).fetchone() is None:
        return 0
    db.execute(f"{_SEAL} AND worker IN (SELECT worker FROM leases WHERE {_IS_OVER})", values)
    return db.execute(f"DELETE FROM leases WHERE {_IS_OVER}", values).rowcount


def prune(db: sqlite3.Connection, limit: int) -> int:
    """Drop about *limit* of what is past its time; return how much was dropped."""
    now, dropped = time.time(), 0
    while dropped < limit:
        found = db.execute(
            "SELECT key FROM streams WHERE until <= ? ORDER BY until LIMIT 1", (now,)
        ).fetchone()
        if found is None:
            break
        # By a range of numbers: few builds of SQLite know DELETE ... LIMIT.
        rest = db.execute(
            "SELECT number FROM entries WHERE stream = ? ORDER BY number LIMIT 1 OFFSET ?",
            (found[0], limit - dropped),
        ).fetchone()
        if rest is not None:
            statement, values = " AND number < ?", (found[0], rest[0])
        else:
            statement, values = "", found
            dropped += db.execute("DELETE FROM streams WHERE key = ?", found).rowcount
            db.execute("DELETE FROM readers WHERE stream = ?", found)
        dropped += db.execute("DELETE FROM entries WHERE stream = ?" + statement, values).rowcount
    if dropped < limit:
        dropped += db.execute(
            "DELETE FROM claims WHERE key IN (SELECT key FROM claims WHERE until <= ? LIMIT ?)",
            (now, limit - dropped),
        ).rowcount
    return dropped
