"""Appends to many streams of an SQLite log with few statements.

Decisions
    1. Each step of a statement lets go of the interpreter and has to get it back, from threads that
       are busy streaming: that costs more than the step. So all entries go in with a few statements
       of many rows, and one statement tells that all of their streams are still open.
    2. What a stream had when it was last appended to is remembered, and forgotten with any
       transaction that fails, as it may or may not have counted.
    3. That it is open is asked by its id: SQLite gives the key of a stream that was dropped to the next.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Dict, List, Optional, Sequence

from flask_llmstream.eventlog.base import OPEN, Batch
from flask_llmstream.eventlog.packing import pack

__all__ = ["Appender"]

#: Rows in one statement: SQLite takes 999 values.
_ROWS = (128, 32, 8, 1)
#: Streams in one query.
_AT_ONCE = (512, 128, 32, 8, 1)
#: Streams that are remembered at most.
_REMEMBERED = 10000

_FIND = """
    SELECT key, max_events, max_bytes, ifnull(max(number), 0), ifnull(sum(length(body)), 0)
    FROM streams LEFT JOIN entries ON entries.stream = key WHERE id = ? AND state = ? GROUP BY key
    """
_INSERT = {
    rows: f"INSERT OR IGNORE INTO entries VALUES {', '.join(['(?, ?, ?, ?)'] * rows)}" for rows in _ROWS
}
_COUNT_OPEN = {
    number: f"SELECT count(*) FROM streams WHERE state = 'open' AND id IN ({', '.join('?' * number)})"
    for number in _AT_ONCE
}


class _Stream:
    """What is known of an open stream."""

    __slots__ = ("key", "max_events", "max_bytes", "last", "size", "dropped")

    def __init__(self, key: int, max_events: int, max_bytes: int, last: int, size: int) -> None:
        self.key = key
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.last = last
        self.size = size
        #: The greatest number that is known to have been dropped.
        self.dropped = 0


class Appender:
    """Remembers, in one process, the streams that it appends to. One transaction at a time uses it."""

    def __init__(self) -> None:
        self._known: Dict[str, _Stream] = {}
        self._validity = 0
        #: How many rows the last call has written.
        self.rows = 0

    def append_many(
        self, db: sqlite3.Connection, batches: Sequence[Batch], validity: int
    ) -> List[Optional[int]]:
        """Append what is new of each batch, in a transaction.

        :param validity: of what was found in transactions before, see ``Database``.
        :returns: for each batch how many entries were new, ``None`` if there is no such open stream.
        """
        if validity != self._validity or len(self._known) > _REMEMBERED:
            self._known.clear()
            self._validity = validity
        streams = self._find(db, {batch[0] for batch in batches})
        rows: List[Any] = []
        added: List[Optional[int]] = []
        full: Dict[int, _Stream] = {}
        for name, first, entries in batches:
            stream = streams.get(name)
            if stream is None:
                added.append(None)
                continue
            if first <= stream.last:
                entries = entries[stream.last + 1 - first :]
                first = stream.last + 1
            added.append(len(entries))
            for item in pack(first, entries, stream.max_events, stream.max_bytes):
                rows += (stream.key, item.last, item.lengths, item.value)
                stream.size += item.size
                stream.last = item.last
            if stream.last - stream.dropped > stream.max_events or stream.size > stream.max_bytes:
                full[stream.key] = stream
        self.rows = len(rows) // 4
        _insert(db, rows)
        for stream in full.values():
            _cut(db, stream)
        return added

    def forget(self, stream: str) -> None:
        """Forget a stream, which has ended."""
        self._known.pop(stream, None)

    def _find(self, db: sqlite3.Connection, names: Any) -> Dict[str, _Stream]:
        """Return those of the streams called *names* that are open."""
        found = {name: self._known.get(name) for name in names}  # others may forget one meanwhile
        known = {name: stream for name, stream in found.items() if stream is not None}
        if not _are_open(db, list(known)):
            for name in known:
                self.forget(name)
            known = {}
        for name in names:
            if name not in known:
                row = db.execute(_FIND, (name, OPEN)).fetchone()
                if row is not None:
                    known[name] = self._known[name] = _Stream(*row)
        return known


def _are_open(db: sqlite3.Connection, names: List[str]) -> bool:
    start = 0
    while start < len(names):
        some = names[start : start + _AT_ONCE[0]]
        size = min(size for size in _AT_ONCE if size >= len(some))
        # The same name twice counts once: few statements for any number of names.
        values = some + some[:1] * (size - len(some))
        if db.execute(_COUNT_OPEN[size], values).fetchone()[0] != len(some):
            return False
        start += len(some)
    return True


def _insert(db: sqlite3.Connection, values: List[Any]) -> None:
    start = 0
    for rows in _ROWS:
        while len(values) - start >= rows * 4:
            db.execute(_INSERT[rows], values[start : start + rows * 4])
            start += rows * 4


def _cut(db: sqlite3.Connection, stream: _Stream) -> None:
    """Drop the oldest rows of a stream that has too many entries; the newest stays."""
    for number, lengths, size in db.execute(
        "SELECT number, lengths, length(body) FROM entries WHERE stream = ? AND number < ? ORDER BY number",
        (stream.key, stream.last),
    ):
        stream.dropped = max(stream.dropped, number - lengths.count(b",") - 1)
        if stream.last - stream.dropped <= stream.max_events and stream.size <= stream.max_bytes:
            break
        stream.dropped = number
        stream.size -= size
    db.execute("DELETE FROM entries WHERE stream = ? AND number <= ?", (stream.key, stream.dropped))
