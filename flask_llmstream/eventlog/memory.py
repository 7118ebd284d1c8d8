"""An event log in the memory of one process, for one worker and for tests.

Decisions
    1. A name makes it shared: every ``memory://name`` of a process is the same store, and it goes
       with the last of its logs.
    2. The child of a fork begins with an empty store: it serves other streams than its parent.
"""

from __future__ import annotations

import heapq
import logging
import os
import weakref
from collections import deque
from itertools import islice
from typing import Callable, Deque, Dict, List, MutableMapping, Optional, Sequence, Tuple

from flask_llmstream.eventlog.attending import Callbacks
from flask_llmstream.eventlog.base import (
    FIRST_LEASE,
    INTERRUPTED,
    OPEN,
    PAGE_BYTES,
    Batch,
    EventLog,
    Page,
    checked_id,
    checked_seal,
)
from flask_llmstream.eventlog.waiters import Waiters
from flask_llmstream.runtime import current_runtime, per_process

__all__ = ["MemoryEventLog"]

_log = logging.getLogger(__name__)

#: What :meth:`MemoryEventLog.create` drops at most of what is past its time.
_PRUNED_AT_ONCE = 100

#: Entries with their numbers.
_Numbered = Deque[Tuple[int, bytes]]


class _Stream:
    """One stream, as long as it is readable."""

    __slots__ = (
        "attended", "bytes", "entries", "keep", "last", "log", "max_bytes", "max_events", "state", "until",
        "worker",
    )

    def __init__(
        self, log: MemoryEventLog, worker: str, keep: float, max_events: int, max_bytes: int
    ) -> None:
        self.log = weakref.ref(log)
        self.worker = worker
        self.keep = keep
        self.max_events = max_events
        self.max_bytes = max_bytes
        self.entries: _Numbered = deque()
        #: Until when it is read, by the logs that have said so.
        self.attended: Dict[int, float] = {}
        self.bytes = 0
        self.last = 0
        self.state = OPEN
        self.until = float("inf")

    def add(self, first: int, entries: Sequence[bytes]) -> bool:
        """Take what is new of *entries*; return whether anything was."""
        before = self.last
        for number, entry in enumerate(entries, first):
            if number > self.last:
                self.entries.append((number, bytes(entry)))
                self.bytes += len(entry)
                self.last = number
        while len(self.entries) > 1 and (
            len(self.entries) > self.max_events or self.bytes > self.max_bytes
        ):
            self.bytes -= len(self.entries.popleft()[1])
        return self.last > before

    def page(self, after: int, limit: int) -> Page:
        """Return what comes after *after*."""
        # Where nothing is missing, which is nearly always, the place is known.
        oldest = self.entries[0][0] if self.entries else 0
        skip = max(0, after + 1 - oldest)
        if not self.entries or self.last - oldest + 1 != len(self.entries):
            skip = sum(1 for number, _ in self.entries if number <= after)
        first, size = after + 1, 0
        found: List[bytes] = []
        for number, entry in islice(self.entries, skip, skip + limit):
            if not found:
                first = number
            elif number != first + len(found) or size + len(entry) > PAGE_BYTES:
                break
            found.append(entry)
            size += len(entry)
        return Page(first, found, self.last, self.state)


class _Store:
    """What all logs of one name share."""

    def __init__(self) -> None:
        self.runtime = current_runtime()
        self.lock = self.runtime.lock()
        self.waiters = Waiters(self.runtime)
        self.streams: Dict[str, _Stream] = {}
        self.leases: Dict[str, float] = {}
        self.claims: Dict[str, Tuple[float, str]] = {}
        #: When to drop which stream or key.
        self.due: List[Tuple[float, bool, str]] = []

    def end(self, name: str, stream: _Stream, state: str) -> None:
        """Seal an open stream; the lock is held."""
        stream.state = state
        stream.until = self.runtime.now() + stream.keep
        heapq.heappush(self.due, (stream.until, True, name))

    def find(self, name: str) -> Optional[_Stream]:
        """Return the stream as it is now, ``None`` if it is unknown; the lock is held."""
        stream = self.streams.get(name)
        if stream is None:
            return None
        now = self.runtime.now()
        if stream.state == OPEN and self.leases.get(stream.worker, now) < now:
            self.end(name, stream, INTERRUPTED)
        return None if stream.until <= now else stream

    def prune(self, limit: int) -> int:
        """Drop up to *limit* of what is past its time; the lock is held."""
        now, dropped = self.runtime.now(), 0
        while dropped < limit and self.due and self.due[0][0] <= now:
            _, is_stream, name = heapq.heappop(self.due)
            if is_stream:
                dropped += self.streams.pop(name, None) is not None
            elif self.claims.get(name, (now + 1, ""))[0] <= now:
                del self.claims[name]
                dropped += 1
        self.lapse(now)
        return dropped

    def lapse(self, now: float) -> None:
        """End all leases that are over, and the streams of their workers; the lock is held."""
        gone = {worker for worker, until in self.leases.items() if until < now}
        if gone:
            for name, stream in self.streams.items():
                if stream.worker in gone and stream.state == OPEN:
                    self.end(name, stream, INTERRUPTED)
            for worker in gone:
                del self.leases[worker]


_stores: MutableMapping[Tuple[int, str], _Store] = weakref.WeakValueDictionary()

#: Held to look for a store: else the first threads of a process might get one each.
_looking = per_process(lambda: current_runtime().lock())


class MemoryEventLog(EventLog):
    """The log at ``memory://`` or ``memory://name``."""

    def __init__(self, url: str = "memory://") -> None:
        self.name = url
        self._pid = 0
        self._shared: Optional[_Store] = None
        self._callbacks = Callbacks()

    @property
    def _store(self) -> _Store:
        pid = os.getpid()
        store = self._shared
        if store is None or self._pid != pid:
            with _looking():
                store = self._shared = _stores.setdefault((pid, self.name), _Store())
            self._pid = pid
        return store

    def create(self, stream: str, worker: str, keep: float, max_events: int, max_bytes: int) -> None:
        checked_id(stream)
        store = self._store
        with store.lock:
            store.prune(_PRUNED_AT_ONCE)
            store.leases.setdefault(worker, store.runtime.now() + FIRST_LEASE)
            if stream not in store.streams:
                store.streams[stream] = _Stream(self, worker, keep, max_events, max_bytes)

    def append_many(self, batches: Sequence[Batch]) -> List[str]:
        store = self._store
        refused, changed = [], []
        with store.lock:
            for name, first, entries in batches:
                stream = store.find(name)
                if stream is None or stream.state != OPEN:
                    refused.append(name)
                elif stream.add(first, entries):
                    changed.append(name)
        store.waiters.wake(changed)
        return refused

    def seal(self, stream: str, state: str) -> bool:
        checked_seal(state)
        store = self._store
        with store.lock:
            found = store.find(stream)
            if found is None or found.state != OPEN:
                return False
            store.end(stream, found, state)
        store.waiters.wake([stream])
        return True

    def read(self, stream: str, after: int, limit: int = 256) -> Optional[Page]:
        store = self._store
        with store.lock:
            found = store.find(stream)
            return None if found is None else found.page(after, limit)

    def wait(self, stream: str, after: int, timeout: float) -> None:
        store = self._store
        deadline = store.runtime.now() + timeout
        while True:
            waiting = store.waiters.enter(stream)
            try:
                with store.lock:
                    found = store.find(stream)
                    if found is None or found.state != OPEN or found.last > after:
                        return
                    # Nobody else tells of a lease that runs out.
                    until = min(deadline, store.leases.get(found.worker, deadline) + 0.01)
                now = store.runtime.now()
                if deadline <= now or waiting.flag.wait(max(0.0, until - now)):
                    return
            finally:
                store.waiters.leave(stream, waiting)

    def request_stop(self, stream: str) -> bool:
        with self._store.lock:
            found = self._store.find(stream)
            if found is None or found.state != OPEN:
                return False
            owner = found.log()
        if owner is not None:
            Callbacks.call(owner._callbacks.stop, stream)
        return True

    def on_stop(self, callback: Callable[[str], None]) -> None:
        self._callbacks.stop.append(callback)

    def on_attend(self, callback: Callable[[str], None]) -> bool:
        self._callbacks.attend.append(callback)
        return True

    def on_leave(self, callback: Callable[[str], None]) -> bool:
        self._callbacks.leave.append(callback)
        return True

    def claim(self, key: str, stream: str, keep: float) -> str:
        store = self._store
        now = store.runtime.now()
        with store.lock:
            until, holder = store.claims.get(key, (now, stream))
            if until <= now:
                store.claims[key] = (now + keep, stream)
                heapq.heappush(store.due, (now + keep, False, key))
                return stream
            return holder

    def bind(self, key: str, stream: str, keep: float) -> None:
        checked_id(stream)
        store = self._store
        until = store.runtime.now() + keep
        with store.lock:
            store.claims[key] = (until, stream)
            heapq.heappush(store.due, (until, False, key))

    def bound(self, key: str) -> Optional[str]:
        store = self._store
        now = store.runtime.now()
        with store.lock:
            until, holder = store.claims.get(key, (now, ""))
        return holder if until > now else None

    def attend(self, stream: str, seconds: float) -> None:
        found = self._store.streams.get(stream)
        now = self._store.runtime.now()
        if found is not None and found.attended.get(id(self), now) - now <= seconds / 2:
            found.attended[id(self)] = now + seconds
            owner = found.log()
            if owner is not None:
                Callbacks.call(owner._callbacks.attend, stream)

    def attended(self, stream: str) -> bool:
        found = self._store.streams.get(stream)
        now = self._store.runtime.now()
        return found is not None and any(until > now for until in list(found.attended.values()))

    def leave(self, stream: str) -> None:
        found = self._store.streams.get(stream)
        if found is not None and found.attended.pop(id(self), None) is not None:
            owner = found.log()
            if owner is not None:
                Callbacks.call(owner._callbacks.leave, stream)

    def renew(self, worker: str, lease: float) -> None:
        store = self._store
        with store.lock:
            store.leases[worker] = store.runtime.now() + lease

    def prune(self) -> int:
        with self._store.lock:
            return self._store.prune(1000)

    def close(self) -> None:
        if self._shared is not None and self._pid == os.getpid():
            self._shared.waiters.wake_all()
        self._shared = None
