"""What the views of both apps do; *items* are formatted events for one, tokens for the other."""

from __future__ import annotations

import itertools
import os
import time
from typing import Iterator, List, Sequence, TypeVar

__all__ = ["FRAMES", "TOKENS", "TURN", "UPSTREAM_URL", "closings", "due", "hot", "idle", "paced", "steady"]

_Item = TypeVar("_Item", str, bytes)

#: Pieces of text as a model cuts them.
TOKENS: List[str] = (
    "The| stream| of| tok|ens| that| a| model| writes| is| cut| where| its| vocabulary| says| so|,|"
    " which| is| seldom| where| a| word| ends|.\n\n|It| says| \"|quoted|\"| things|,| na|ïve| ones|"
    " and| even| 1|2|3|4|5|.| Each| piece| is| short|;| what| is| around| it| costs| more| than|"
    " it| does|,| and| so| it| is| the| frame| that| counts|."
).split("|")

#: The same, formatted as a bare generator sends them.
FRAMES: List[str] = [
    'data: {"text":"%s"}\n\n' % token.replace('"', '\\"').replace("\n", "\\n") for token in TOKENS
]

#: The OpenAI-compatible server of :mod:`benchmarks.upstream`.
UPSTREAM_URL = os.environ.get("BENCHMARK_UPSTREAM", "")

#: Seconds for which one server sends while the others are silent. Short, so that what else the
#: machine does meets all of them alike.
TURN = 0.1

#: Moments at which an idle generator was closed, on the clock that all processes share.
closings: List[float] = []


def paced(items: Sequence[str], clock: str) -> Iterator[str]:
    """Yield items at a steady rate for ever, in its turn only; turns are told by the clock.

    :param clock: ``rate,phase,turn,turns``: items a second; where in the first interval of a turn
        this stream begins, from 0 to 1; whose turn it is; of how many that follow each other.
    """
    rate, phase, turn, turns = (float(each) for each in clock.split(","))
    for item in itertools.cycle(items):
        into = (time.monotonic() - turn * TURN) % (turns * TURN)
        time.sleep(1 / rate if into < TURN else turns * TURN - into + phase / rate)
        yield item


def due(clock: str) -> Iterator[float]:
    """Say for ever how many seconds are left until the next event is due: below 0, it is late.

    :param clock: ``start,rate``: when the first is due, on the clock that all processes share, and how
        many are due in a second.
    """
    start, rate = (float(each) for each in clock.split(","))
    for number in itertools.count():
        yield start + number / rate - time.monotonic()


def steady(items: Sequence[_Item], clock: str) -> Iterator[_Item]:
    """Yield each item when it is due, for ever; see :func:`due`. One who is late makes up for it."""
    for item, left in zip(itertools.cycle(items), due(clock)):
        time.sleep(max(0.0, left))
        yield item


def hot(items: Sequence[_Item], count: int) -> Iterator[_Item]:
    """Yield *count* items without ever blocking."""
    return itertools.islice(itertools.cycle(items), count)


def idle(items: Sequence[_Item]) -> Iterator[_Item]:
    """Yield one item, then nothing for an hour."""
    try:
        yield items[0]
        time.sleep(3600)
    finally:
        closings.append(time.monotonic())
