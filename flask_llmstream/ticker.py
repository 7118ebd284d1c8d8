"""One clock per process for everything that must happen while a generator blocks.

The ticker knows when each stream wants to be looked at, and nothing else: what is due then
(heartbeat, opening, held text, a time limit) is the stream's own business.

Decisions
    1. A stream that sends a token does not touch the ticker. It is looked at when the *last*
       known moment has come and then says when it wants to be seen again; so a busy stream costs
       one heap operation per heartbeat interval, not one per token.
    2. An entry does not keep its stream: a finished stream takes itself out of the entry, which
       goes when its time has come.
"""

from __future__ import annotations

import heapq
import logging
import os
from typing import Any, Callable, List, Optional, Tuple

from flask_llmstream.runtime import Runtime, current_runtime, per_process

try:
    from typing import Protocol
except ImportError:  # Python 3.7
    Protocol = object  # type: ignore[assignment]

__all__ = ["Entry", "Ticked", "Ticker", "current_ticker"]

_log = logging.getLogger(__name__)

#: A sleep never lasts longer, so that a clock or a wake-up that went wrong heals.
_LONGEST_SLEEP = 60.0


class Ticked(Protocol):
    """What the ticker looks at."""

    def tick(self, now: float) -> float:
        """Do what is due; return when to come back, or infinity for never."""


class Entry:
    """One place in the queue: what to look at, and when."""

    __slots__ = ("due", "ticked")

    def __init__(self, due: float, ticked: Optional[Ticked]) -> None:
        self.due = due
        self.ticked = ticked


class Ticker:
    """Calls ``tick(now)`` of each stream when it is due, in one thread or greenlet.

    :param runtime: gives lock, flag and background task.
    :param now: the clock, in seconds; only tests give another.
    """

    def __init__(self, runtime: Runtime, now: Optional[Callable[[], float]] = None) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self.now: Callable[[], float] = now if now is not None else runtime.now
        self._lock = runtime.lock()
        self._wake = runtime.flag()
        #: When it is due, a number of its own, and the entry: compared without a call.
        self._queue: List[Tuple[float, int, Entry]] = []
        self._order = 0
        self._task: Any = None

    def __len__(self) -> int:
        """How many streams wait to be looked at."""
        with self._lock:
            return sum(1 for _, _, entry in self._queue if entry.ticked is not None)

    def schedule(self, ticked: Ticked, due: float) -> Entry:
        """Look at *ticked* when *due* has come; return the entry, to be cleared when it is over."""
        with self._lock:
            self._order += 1
            entry = Entry(due, ticked)
            first = not self._queue or due < self._queue[0][0]
            heapq.heappush(self._queue, (due, self._order, entry))
            if self._task is None:
                self._task = self._runtime.spawn(self._run, "llmstream-ticker")
        if first:
            self._wake.set()
        return entry

    def _run(self) -> None:
        # In the child of a fork the streams are not ours. gevent 24.10 on Python 3.13 runs the
        # greenlets there, too, before the child of a subprocess becomes another program.
        while os.getpid() == self._pid:
            wait = self.run_due(self.now())
            self._wake.wait(min(wait, _LONGEST_SLEEP))
            self._wake.clear()

    def run_due(self, now: float) -> float:
        """Look at all that is due at *now*; return the seconds until the next."""
        while True:
            with self._lock:
                while self._queue and self._queue[0][2].ticked is None:
                    heapq.heappop(self._queue)
                if not self._queue:
                    return _LONGEST_SLEEP
                if self._queue[0][0] > now:
                    return self._queue[0][0] - now
                entry = heapq.heappop(self._queue)[2]
                # Whoever wants an earlier look from now on must ask for one: this one may
                # already have passed the place where it would have noticed.
                entry.due = float("inf")
            ticked = entry.ticked
            if ticked is None:
                continue
            try:
                due = ticked.tick(now)
            except Exception:
                # One stream's fault must not stop the heartbeats of all others.
                _log.exception("a stream failed when its time had come; it gets no more heartbeats")
                continue
            if entry.ticked is not None and due < float("inf"):
                with self._lock:
                    # Later than *now*, or a stream that is always due would hold this loop.
                    entry.due = max(due, now + 0.001)
                    self._order += 1
                    heapq.heappush(self._queue, (entry.due, self._order, entry))


#: Return the :class:`Ticker` of this process.
current_ticker = per_process(lambda: Ticker(current_runtime()))
