"""Ending streams with a word before their worker is killed.

gunicorn tells a worker to go (SIGTERM, SIGHUP, ``max_requests``) and kills what is left when
``graceful_timeout`` is over, without running a single ``finally``. So open streams get most of that
time to finish by themselves, and are ended with the failure ``shutdown`` shortly before it is up. Readers
of resumable streams are sent away at once, to follow from another worker.

Decisions
    1. No hook is needed: the worker is found among the callers of the first stream, and its
       ``alive`` is looked at a few times a second while streams are open, and only then.
    2. A worker whose master was killed goes too. gunicorn's gevent workers leave within a second, without
       waiting for anybody, so their streams are ended at once; the others get their time.
    3. Servers that say nothing before they stop are told about by hand: :func:`drain`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Optional

from flask_llmstream import current
from flask_llmstream.runtime import current_runtime, per_process
from flask_llmstream.ticker import current_ticker

__all__ = ["current_drainage", "drain"]

_log = logging.getLogger(__name__)

#: Seconds between looks at the worker.
_PAUSE = 0.25
#: Seconds before the end of ``graceful_timeout`` at which streams are ended, at least and at most
#: (a tenth of it in between); never more than half of it.
_LEAST, _MOST = 1.0, 5.0


def margin(graceful_timeout: float) -> float:
    """Return how long before the end of *graceful_timeout* streams are ended, in seconds."""
    return min(max(_LEAST, min(_MOST, graceful_timeout / 10)), graceful_timeout / 2)


def find_worker() -> Optional[Any]:
    """Return the gunicorn worker that has called the running code, or ``None``."""
    # With gevent_pywsgi it is no caller of the request, but runs in the main greenlet.
    return _worker_in(sys._getframe(1)) or _worker_in(_main_frame())


def _main_frame() -> Optional[FrameType]:
    task = current_runtime().task()
    while getattr(task, "parent", None) is not None:
        task = task.parent
    return getattr(task, "gr_frame", None)


def _worker_in(frame: Optional[FrameType]) -> Optional[Any]:
    while frame is not None:
        owner = frame.f_locals.get("self")
        if owner is not None and hasattr(owner, "alive"):
            if hasattr(getattr(owner, "cfg", None), "graceful_timeout"):
                return owner
        frame = frame.f_back
    return None


class Drainage:
    """Looks after the streams of one worker process when that is told to go."""

    def __init__(self) -> None:
        self._worker: Optional[Any] = None
        self._searched = False
        self._waiting = False
        self._ends_at: Optional[float] = None

    @property
    def going(self) -> bool:
        """Whether the worker was told to go, or has lost its master."""
        return self._worker is not None and (not self._worker.alive or _is_orphan(self._worker))

    def begin(self) -> None:
        """Take note that a stream begins; called in its request."""
        if self._waiting:
            return
        if not self._searched:
            self._searched = True
            self._worker = find_worker()
        if self._worker is not None:
            self._waiting = True
            ticker = current_ticker()
            ticker.schedule(self, ticker.now() + _PAUSE)

    def tick(self, now: float) -> float:
        """Look at the worker; called by the ticker."""
        if not current.streams():
            self._waiting = False
            if current.streams():  # on threads one may have begun since
                self._waiting = True
                return now + _PAUSE
            return float("inf")
        if self._ends_at is None:
            self._let_signals_in()
        if self._ends_at is None and self.going:
            timeout = float(self._worker.cfg.graceful_timeout)  # type: ignore[union-attr]
            if _leaves_at_once(self._worker):
                timeout = 0.0
            self._ends_at = now + max(0.0, timeout - margin(timeout) - _PAUSE)
        if self._ends_at is None:
            return now + _PAUSE
        if not _is_orphan(self._worker) and _others_come(self._worker):
            _hand_over_all()
        if now >= self._ends_at:
            _end_all()
            return now + _PAUSE
        return min(self._ends_at, now + _PAUSE)

    def _let_signals_in(self) -> None:
        """Have the ``sync`` worker's handler for SIGTERM run, though its only thread is blocked.

        gunicorn lets the system restart what SIGTERM interrupts, so Python never gets to the
        handler. SIGWINCH does interrupt, and gunicorn has workers ignore it.
        """
        main = threading.main_thread().ident
        if main is None or not any(stream.task == main for stream in current.streams()):
            return
        arrived = getattr(self._worker, "PIPE", None)  # gets a byte from each signal
        if arrived and current_runtime().readable(arrived[0]):
            signal.pthread_kill(main, signal.SIGWINCH)


def _is_orphan(worker: Any) -> bool:
    """Whether the master of *worker* is gone, as :meth:`Worker.notify` of gunicorn finds out."""
    return bool(getattr(worker, "ppid", None) not in (None, os.getppid()))


def _leaves_at_once(worker: Any) -> bool:
    """Whether *worker* has lost its master and is of the kind that does not wait for its streams then."""
    return _is_orphan(worker) and any("gevent" in kind.__module__ for kind in type(worker).__mro__)


def _others_come(worker: Any) -> bool:
    """Whether somebody else takes connections while *worker* ends, or its listener is closed, too.

    A worker that has had its ``max_requests`` is replaced when it has ended, and not before.
    """
    spent = getattr(worker, "nr", 0) >= getattr(worker, "max_requests", float("inf"))
    return not spent or getattr(worker.cfg, "workers", 1) > 1


def _hand_over_all() -> None:
    sent = sum(stream.hand_over(going=True) for stream in current.streams())
    if sent:
        _log.info("%d readers are asked to come back elsewhere: their worker stops", sent)


def _end_all() -> None:
    streams = current.streams()
    open_ones = [stream for stream in streams if not stream.cancelled]
    if open_ones:
        _log.info("%d streams are ended: their worker stops", len(open_ones))
    for stream in open_ones:
        stream.cancel("shutdown")


def drain(timeout: float = 1.0) -> int:
    """End every stream of this process with the failure ``shutdown``.

    For servers that do not say that they are about to stop: call it from what stops yours, before
    that ends the requests. Under gunicorn it is not needed.

    :param timeout: seconds to wait until they have ended, 0 to return at once. A stream that calls
        this itself does not wait.
    :returns: how many are still running.
    """
    _end_all()
    deadline = time.monotonic() + timeout
    while current.streams() and current.running() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    return len(current.streams())


#: Return the :class:`Drainage` of this process.
current_drainage = per_process(Drainage)
