"""Who holds a gevent worker's loop? Nothing that waits there can tell, so a native thread looks.

While code runs that does not wait as gevent does (a driver in C, a long computation), no stream of the
worker moves: no token, no heartbeat, no news of clients that leave. A timer of the hub counts; where the
count stands still the thread notes the stack, and the hub, once it is free, says who it was.

Decisions
    1. The thread logs nothing: locks of logging belong to greenlets. It writes down a text.
    2. Each place is named once, and a hold that nobody could look at (the interpreter itself was held)
       once as well.
    3. It runs while there are streams, and ends by itself a little later.
"""

from __future__ import annotations

import logging
from typing import Any, List, Optional, Set

from flask_llmstream.culprits import describe_stack
from flask_llmstream.runtime import current_runtime, frame_of_thread, per_process
from flask_llmstream.ticker import current_ticker

__all__ = ["HELD", "Watchdog", "watch_loop"]

_log = logging.getLogger(__name__)

#: Seconds that the loop may be held without a word.
HELD = 1.0
#: Seconds between two counts.
_COUNT = 0.25
#: Counts between two looks whether there are streams.
_COUNTS_TO_LOOK = 8
#: Places that are named at most.
_MOST_NAMED = 100


class Watchdog:
    """Watches the hub that it is made in.

    :param runtime: of greenlets.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._thread = runtime.native_ident()
        self._timer: Any = None
        self._count = 0
        self._counted_at = 0.0
        #: What the thread has seen: the stack, and its innermost place.
        self._seen: List[str] = []
        self._named: Set[str] = set()

    def begin(self) -> None:
        """Watch for as long as there are streams; does nothing where that is done already."""
        if self._timer is not None:
            return
        self._counted_at = self._runtime.now()
        timer = self._timer = self._runtime.every(_COUNT, self._tick)
        self._runtime.spawn_native(lambda: self._watch(timer))

    def _tick(self) -> None:
        """Count, in the hub; say who has held it since the last time."""
        now = self._runtime.now()
        held, self._counted_at = now - self._counted_at, now
        self._count += 1
        if held > HELD:
            # Not here: a handler of logging may wait, and the hub must not.
            self._runtime.spawn(lambda: self._tell(held), "llmstream-watchdog")
        if not self._count % _COUNTS_TO_LOOK and not len(current_ticker()):
            timer, self._timer = self._timer, None
            timer.stop()
            timer.close()

    def _tell(self, held: float) -> None:
        stack = self._seen.pop() if self._seen else ""
        del self._seen[:]
        place = stack.partition(" (")[0]
        if place in self._named or len(self._named) >= _MOST_NAMED:
            return
        self._named.add(place)
        _log.warning(
            "the event loop was held for %.1f s by %s: %d streams of this worker stood still meanwhile. What"
            " waits or computes for long belongs into another process or a thread (gevent.get_hub()"
            ".threadpool), or needs a library that cooperates with gevent",
            held, stack or "code that also held the interpreter (a C extension)", len(current_ticker()),
        )

    def _watch(self, timer: Any) -> None:
        """Look whether the hub counts, for as long as *timer* has it do so; runs in a native thread."""
        pause = self._runtime.native_sleep
        count, since = -1, 0.0
        while self._timer is timer:  # after another beginning there is another thread
            pause(_COUNT)
            if self._count != count:
                count, since = self._count, 0.0
                continue
            since += _COUNT
            if since >= HELD / 2 and not self._seen:
                self._seen.append(describe_stack(frame_of_thread(self._thread)))


def _make() -> Optional[Watchdog]:
    runtime = current_runtime()
    return Watchdog(runtime) if runtime.sees_blocking else None


_current_watchdog = per_process(_make)


def watch_loop() -> None:
    """Have whoever holds the loop of this process named in the log; nothing on threads."""
    watchdog = _current_watchdog()
    if watchdog is not None:
        watchdog.begin()
