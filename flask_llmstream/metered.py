"""Streams that are counted. Where nothing is measured none of this is ever run, or imported.

Decisions
    1. A stream that is measured becomes one of a class that counts, when it is tied to its request:
       others carry not even a question whether they are.
    2. What is counted per token is one call around the server's turn: bytes, and the gap since the last
       turn. The moments are those that the stream has taken for itself.
    3. Measuring does not need signals: blinker may be missing.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from functools import partial
from typing import TYPE_CHECKING, Any, Mapping, Optional

from flask_llmstream.cancellation import Cancellation
from flask_llmstream.ending import StreamEnd
from flask_llmstream.folders import app_folder
from flask_llmstream.measuring import route_of
from flask_llmstream.metrics.files import layout_name
from flask_llmstream.metrics.library import multiprocess_folder, need_library
from flask_llmstream.metrics.meter import GAPS, Meter
from flask_llmstream.metrics.table import METRICS
from flask_llmstream.metrics.tally import Tallies, is_open
from flask_llmstream.mixins import with_mixin
from flask_llmstream.sansio.formats import is_format
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream

__all__ = ["Measures", "MeteredStream", "make_measures"]

#: Formats of streams that pass bytes on.
_PASSING = ("adopted-sse", "opaque", "relayed-sse")

if TYPE_CHECKING:
    _Base = Stream
else:
    _Base = object


class MeteredStream(_Base):
    """What a stream does besides, when it is counted; a mixin in front of the stream's own class."""

    if not TYPE_CHECKING:
        __slots__ = ()

    _meter: Meter

    @property
    def state(self) -> str:
        """What it does: ``new``, ``attached``, ``running``, ``ending`` or ``over``."""
        return self._state

    def __next__(self) -> bytes:
        data = Stream.__next__(self)
        if data:
            meter = self._meter
            meter.sent += len(data)
            at, last = self._touched, meter.at
            if last is not None:
                meter.gaps[bisect_left(GAPS, at - last)] += 1
                meter.at = at
            elif self._first_at is not None or self._state == "ending" and self._status[:1] == "2":
                meter.deliver(1, at)  # not the comment that opens the stream, nor an error in its place
        return data

    def _begin(self) -> None:
        super()._begin()
        meter = self._meter
        # Kept by the meter, which the tally keeps for as long as the stream has not ended.
        meter.watch = weakref.ref(self, partial(_collected, meter))
        meter.tally.begin(meter)

    def _first_item(self, at: float) -> None:
        meter = self._meter
        meter.tally.first(meter, at - self._started_at)
        super()._first_item(at)

    # -- what leaves --------------------------------------------------------------------------

    def _collect(self) -> bytes:
        frames = self._frames
        if len(frames) != 1:
            self._meter.join(len(frames) - frames.count(b""))
        return super()._collect()

    def _padding(self) -> bytes:
        data = super()._padding()
        self._meter.padded = len(data)
        return data

    def _write(self, comment: bytes = b"") -> bool:
        frames = self._frames
        if len(frames) != 1 or not self._opened:
            return self._write_rest(comment)
        # What a source on gevent yields that does not wait for long: as frequent as __next__().
        size = len(frames[0])
        written = Stream._write(self)
        if written and not frames:
            meter = self._meter
            meter.sent += size
            at, last = self._touched, meter.at
            if self._beaten > at:
                at = self._beaten  # text that was held, sent by the ticker
            if last is None:
                meter.deliver(1, at)
            else:
                meter.gaps[bisect_left(GAPS, at - last)] += 1
                meter.at = at
        return written

    def _write_rest(self, comment: bytes) -> bool:
        meter = self._meter
        frames = self._frames
        pieces = len(frames)
        size = sum(map(len, frames)) if frames else len(comment)
        meter.padded = 0
        written = super()._write(comment)
        if written and not frames:  # or they are still to be sent
            meter.sent += size + meter.padded
            if pieces:
                meter.deliver(pieces, self._quiet_since())
        return written

    # -- the end ------------------------------------------------------------------------------

    def _note_departure(self) -> None:
        self._meter.left_at = self._runtime.now()
        super()._note_departure()

    def _begin_cancellation(self, reason: str, code: Optional[str] = None) -> Cancellation:
        meter = self._meter
        calls = sum(getattr(each, "calls", 1) for each in self.bound)
        meter.called = calls > 0
        if reason == "disconnect":
            meter.calls = calls
        return super()._begin_cancellation(reason, code)

    def release(self, closable: Any) -> None:
        """Take back ``bind()``; a call that ends because the client has left is counted."""
        before = len(self.bound)
        super().release(closable)
        if len(self.bound) < before and not hasattr(closable, "calls"):
            self._call_closed()

    def _call_closed(self) -> None:
        meter = self._meter
        if meter.calls:
            meter.calls -= 1
            now = self._runtime.now()
            meter.tally.upstream_closed(meter, now - (now if meter.left_at is None else meter.left_at))

    def _over(self, reason: str) -> None:
        meter = self._meter
        bound = list(self.bound)
        super()._over(reason)
        while meter.calls:
            self._call_closed()
        for each in bound:
            if is_open(each):
                meter.tally.suspect("unclosed", each)

    def _is_awaited(self) -> bool:
        return True

    def _tell(self, end: StreamEnd) -> None:
        meter = self._meter
        meter.tally.end(meter, end, meter.called)
        super()._tell(end)

    def close(self) -> None:
        """End the stream; one that goes on all the same is a leak."""
        try:
            super().close()
        finally:
            if self._state != "over":
                self._meter.tally.suspect("lingering", self)


def _collected(meter: Meter, _: Any) -> None:
    meter.tally.abandon(meter)


class Measures(Tallies):
    """What measures the streams of an app; registered with a registry of the library it shows them there.

    Parameters as for :class:`~flask_llmstream.metrics.tally.Tallies`.
    """

    def measure(self, stream: Stream, environ: Mapping[str, Any]) -> None:
        """Have *stream* counted, which has not begun.

        :param environ: of the request that it answers.
        """
        tally = self.get()
        if tally is None:
            return
        route = tally.route(route_of(environ))
        name = str(getattr(stream._format, "name", ""))
        known = name in _PASSING or is_format(name)
        stream._meter = Meter(tally, route, name if known else "other")
        stream.__class__ = with_mixin(MeteredStream, type(stream))


def make_measures(app: Any, settings: Settings) -> Measures:
    """Return what measures the streams of *app*.

    :raises RuntimeError: ``prometheus_client`` is not installed, or the shared folder is not ours.
    """
    need_library()
    name = f"metrics-{layout_name(METRICS)}"
    return Measures("" if multiprocess_folder() else app_folder(app, settings.shared_dir, name))
