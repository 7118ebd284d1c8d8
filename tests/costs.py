"""What a piece of work costs, so that neither a busy machine nor a slow one makes a test fail.

Counted is the time that the processor spends on this thread. What else runs on the machine can make an
attempt dearer (caches, cores that are shared), never cheaper: the least of several attempts counts, and as
long as a law does not hold there are more of them. One that is broken does not hold however often it is
tried.
"""

from __future__ import annotations

import gc
import math
import time
from typing import Any, Callable

#: Seconds after which a law that has not held yet is taken for broken.
PATIENCE = 20.0


def cost(run: Callable[[], Any]) -> float:
    """Return the seconds of processor that *run* takes, once.

    Without collections of garbage: what there is to look through is that of the whole test run.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        began = time.thread_time()
        run()
        return time.thread_time() - began
    finally:
        if collecting:
            gc.enable()


def costs_at_most(
    most: float, run: Callable[[], Any], patience: float = PATIENCE, what: str = "it"
) -> float:
    """Return the cost of *run* in seconds, the least of as many attempts as there have to be.

    :param what: what the message calls it.
    :raises AssertionError: it is above *most* each time.
    """
    until, least = time.monotonic() + patience, math.inf
    while True:
        least = min(least, cost(run))
        if least <= most:
            return least
        assert time.monotonic() < until, f"{what} takes {least:.3f} s of the processor, and may take {most}"


def costs_at_most_times(
    most: float, small: Callable[[], Any], large: Callable[[], Any], patience: float = PATIENCE,
    floor: float = 0.0,
) -> float:
    """Return how many times the cost of *small* that of *large* is.

    Both are tried by turns, and *small* at least five times: a cost that is found too high there would hide
    one that is too high in *large*.

    :param floor: seconds; what *small* costs counts as that much at least.
    :raises AssertionError: it is above *most*, however often it is tried.
    """
    until, a, b = time.monotonic() + patience, math.inf, math.inf
    while True:
        a = min([a, *(cost(small) for _ in range(5))])
        b = min(b, cost(large))
        ratio = b / max(a, floor)
        if ratio <= most:
            return ratio
        assert time.monotonic() < until, f"{b:.4f} s are {ratio:.1f} times {a:.4f} s, and may be {most}"
