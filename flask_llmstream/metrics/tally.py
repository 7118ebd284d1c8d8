"""What one process has counted for one app, in values that the other workers see.

Decisions
    1. Streams count by themselves. What they have counted is taken over when they end, before the
       process answers a scrape, and about once a second while they run: a worker that is killed
       takes no more with it than its last second.
    2. All that a route needs is made at its first stream, and routes are endpoints of the app. After so
       many the others are one: a label that clients could choose would fill the memory of Prometheus.
    3. What a finalizer finds out is only noted: it may come while this thread holds the lock.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from bisect import bisect_left
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from flask_llmstream.ending import StreamEnd
from flask_llmstream.metrics.files import FolderValues
from flask_llmstream.metrics.library import LibraryValues, multiprocess_folder
from flask_llmstream.metrics.meter import Counted, Meter
from flask_llmstream.metrics.table import LEAKS, METRICS, REASONS, metric
from flask_llmstream.ticker import current_ticker

__all__ = ["Tallies", "Tally", "is_open"]

_log = logging.getLogger(__name__)

#: Seconds between two looks at what running streams have counted.
_PACE = 1.0
#: So many routes are told apart.
_MOST_ROUTES = 200
_NEVER = float("inf")


class Tally:
    """The sums of one process.

    :param values: where they are kept; see :mod:`flask_llmstream.metrics.files`.
    """

    def __init__(self, values: Any) -> None:
        self.values = values
        self._lock = threading.RLock()
        self._cells: Dict[Tuple[str, ...], Any] = {}
        self._running: Set[Meter] = set()
        self._routes: Set[str] = set()
        #: By route, how many streams have finished, and the tokens that they have put out.
        self._finished: Dict[str, Tuple[int, int]] = {}
        self._ticking = False
        #: Streams that were collected without having ended.
        self._abandoned: List[Meter] = []
        self._lost = 0
        #: References to what may be a leak.
        self._lingering: List[Any] = []
        self._unclosed: List[Any] = []
        for kind in LEAKS:
            self._cell("leaks", kind)  # so that there is something to read while all is well

    def route(self, name: str) -> str:
        """Return the label for the route called *name*."""
        if name not in self._routes:
            if len(self._routes) >= _MOST_ROUTES:
                return "other"
            self._routes.add(name)
        return name

    # -- from streams -------------------------------------------------------------------------

    def begin(self, meter: Meter) -> None:
        """Count a stream that begins."""
        with self._lock:
            self._running.add(meter)
            self._add("streams_started_total", 1, meter.route, meter.format)
            self._add("streams_active", 1, meter.route, meter.format)
            if not self._ticking:
                self._ticking = True
                current_ticker().schedule(self, current_ticker().now() + _PACE)

    def first(self, meter: Meter, seconds: float) -> None:
        """Count how long a stream has waited for its first item."""
        with self._lock:
            self._observe("time_to_first_token_seconds", seconds, meter.route)

    def upstream_closed(self, meter: Meter, seconds: float) -> None:
        """Count an upstream call that was closed so long after the client had left."""
        with self._lock:
            self._add("upstream_cancelled_total", 1, meter.route)
            self._observe("upstream_cancel_seconds", seconds, meter.route)

    def end(self, meter: Meter, end: StreamEnd, called: bool) -> None:
        """Count a stream that is over.

        :param called: whether it had called an upstream when it was cancelled.
        """
        reason = end.reason if end.reason in REASONS else "error"
        usage, estimated = end.usage, "true" if end.estimated else "false"
        with self._lock:
            if not self._leave(meter):
                return
            route = meter.route
            self._add("streams_ended_total", 1, route, meter.format, reason)
            self._observe("stream_duration_seconds", end.duration, route)
            got = 0
            if usage is not None:
                got = usage.output_tokens or 0
                self._add("output_tokens_total", got, route, estimated)
                self._add("input_tokens_total", usage.input_tokens or 0, route, estimated)
            number, tokens = self._finished.get(route, (0, 0))
            if reason == "finish" and got:
                self._finished[route] = number + 1, tokens + got
            elif called and number and reason in ("disconnect", "stop"):
                saved = max(0.0, tokens / number - got)
                self._add("saved_output_tokens_estimate_total", saved, route)

    def refuse(self, limit: str) -> None:
        """Count a stream that was refused because of *limit*."""
        with self._lock:
            self._add("streams_refused_total", 1, limit)

    # -- leaks --------------------------------------------------------------------------------

    def abandon(self, meter: Meter) -> None:
        """Note that a stream was collected; called by a finalizer, at any moment."""
        self._abandoned.append(meter)

    def suspect(self, kind: str, thing: Any) -> None:
        """Look at *thing* from now on: a stream that goes on, or what should be closed."""
        try:
            found = weakref.ref(thing)
        except TypeError:
            return
        (self._lingering if kind == "lingering" else self._unclosed).append(found)

    def _look_for_leaks(self) -> None:
        while self._abandoned:
            meter = self._abandoned.pop()
            if self._leave(meter):
                self._lost += 1
        self._lingering[:] = [ref for ref in self._lingering if getattr(ref(), "state", "over") != "over"]
        self._unclosed[:] = [ref for ref in self._unclosed if is_open(ref())]
        counts = self._lost, len(self._lingering), len(self._unclosed)
        for kind, count in zip(LEAKS, counts):
            self._cell("leaks", kind).set(count)

    # -- from time to time --------------------------------------------------------------------

    def tick(self, now: float) -> float:
        """Take over what was counted; called by the ticker."""
        self.take_over()
        with self._lock:
            if self._running:
                return now + _PACE
            self._ticking = False
        return _NEVER

    def take_over(self) -> None:
        """Take over what running streams have counted since the last time."""
        with self._lock:
            self._look_for_leaks()
            routes: Dict[str, List[Tuple[Counted, Counted]]] = {}
            for meter in list(self._running):
                if meter.sent != meter.handed.sent:
                    routes.setdefault(meter.route, []).append(_news_of(meter))
            for route, news in routes.items():
                self._add_counted(route, news)

    def _leave(self, meter: Meter) -> bool:
        """Take over the last of a stream; return whether it was still running."""
        if meter not in self._running:
            return False
        self._running.discard(meter)
        meter.watch = None
        self._add_counted(meter.route, [_news_of(meter)])
        self._add("streams_active", -1, meter.route, meter.format)
        return True

    def _add_counted(self, route: str, news: List[Tuple[Counted, Counted]]) -> None:
        sent = events = coalesced = 0
        gap_sum = 0.0
        gaps: Dict[int, int] = {}
        for now, before in news:
            sent += now.sent - before.sent
            events += now.events - before.events
            coalesced += now.coalesced - before.coalesced
            gap_sum += now.gap_sum - before.gap_sum
            if now.gaps != before.gaps:
                for place, (more, fewer) in enumerate(zip(now.gaps, before.gaps)):
                    if more != fewer:
                        gaps[place] = gaps.get(place, 0) + more - fewer
        self._add("sent_bytes_total", sent, route)
        self._add("sent_events_total", events, route)
        self._add("coalesced_events_total", coalesced, route)
        buckets, total = self._histogram("output_gap_seconds", route)
        if gap_sum:
            total.inc(gap_sum)
        for place, number in gaps.items():
            buckets[place].inc(number)

    # -- values -------------------------------------------------------------------------------

    def _cell(self, name: str, *labels: str) -> Any:
        found = self._cells.get((name, *labels))
        if found is None:
            row = metric(name)
            found = self._cells[(name, *labels)] = self.values.make(
                row.type, row.family, row.name, list(row.labels), list(labels), row.help
            )
            if row.type == "gauge":
                found.set(0)  # in the library's mode there may be one of a process that had the same pid
        return found

    def _add(self, name: str, amount: float, *labels: str) -> None:
        cell = self._cells.get((name, *labels))
        if cell is None:
            cell = self._cell(name, *labels)  # also where nothing is added: a counter begins with 0
        if amount:
            cell.inc(amount)

    def _histogram(self, name: str, route: str) -> Tuple[List[Any], Any]:
        found = self._cells.get((name, route))
        if found is None:
            from prometheus_client.utils import floatToGoString

            row = metric(name)
            make, family = self.values.make, row.family
            total = make(row.type, family, family + "_sum", list(row.labels), [route], row.help)
            names = [*row.labels, "le"]
            buckets = [
                make(row.type, family, family + "_bucket", names, [route, floatToGoString(bound)], row.help)
                for bound in (*row.bounds, _NEVER)
            ]
            found = self._cells[name, route] = buckets, total
        buckets, total = found
        return buckets, total

    def _observe(self, name: str, seconds: float, route: str) -> None:
        buckets, total = self._histogram(name, route)
        buckets[bisect_left(metric(name).bounds, seconds)].inc(1)
        total.inc(seconds)


def is_open(thing: Any) -> bool:
    """Whether *thing*, which somebody has closed, says that it is open."""
    if thing is None:
        return False
    # Files, sockets and our calls; httpx; requests, which says it of what is behind its response.
    said = (thing, "closed"), (thing, "is_closed"), (getattr(thing, "raw", None), "closed")
    return any(getattr(each, name, None) is False for each, name in said)


def _news_of(meter: Meter) -> Tuple[Counted, Counted]:
    before, meter.handed = meter.handed, meter.counted()
    return meter.handed, before


class Tallies:
    """The tally of each process that runs an app: servers fork.

    :param folder: a private folder that all workers know; not used in the library's multiprocess mode.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._pid = 0
        self._tally: Optional[Tally] = None

    def get(self) -> Optional[Tally]:
        """Return the tally of this process; ``None`` where it cannot be kept, which the log has said."""
        pid = os.getpid()
        if self._pid != pid:
            with self._lock:
                if self._pid != pid:
                    self._tally = self._make()
                    self._pid = pid
        return self._tally

    def _make(self) -> Optional[Tally]:
        try:
            shared = multiprocess_folder()
            return Tally(LibraryValues(shared) if shared else FolderValues(self._folder))
        except (OSError, RuntimeError, ValueError) as error:
            _log.error("nothing is measured in this process: %s", error)
            return None

    def refuse(self, limit: str) -> None:
        """Count a stream that was refused because of *limit*."""
        tally = self.get()
        if tally is not None:
            tally.refuse(limit)

    def describe(self) -> Iterable[Any]:
        """Yield the metrics without values, so that the library can find one by its name."""
        from prometheus_client.core import Metric

        for row in METRICS:
            yield Metric(row.family, row.help, row.type)

    def collect(self) -> Iterable[Any]:
        """Yield the metrics of all processes, in the order of the table."""
        tally = self.get()
        if tally is None:
            return
        tally.take_over()
        found = {each.name: each for each in tally.values.collect()}
        for row in METRICS:
            if row.family in found:
                yield found[row.family]
