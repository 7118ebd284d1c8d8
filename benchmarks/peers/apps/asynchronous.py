"""What the views of the asynchronous apps do: the generators of benchmarks/apps/work.py again."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import AsyncIterator

from benchmarks.apps.work import TOKENS, due, hot

__all__ = ["hot_tokens", "idle_tokens", "steady_tokens"]


async def steady_tokens(clock: str) -> AsyncIterator[str]:
    """Yield each token when it is due, for ever."""
    for token, left in zip(itertools.cycle(TOKENS), due(clock)):
        # uvloop's timers are whole milliseconds, rounded down: an event would be early.
        await asyncio.sleep(max(0, math.ceil(left * 1000)) / 1000)
        yield token


async def hot_tokens(count: int) -> AsyncIterator[str]:
    """Yield *count* tokens without ever blocking."""
    for token in hot(TOKENS, count):
        yield token


async def idle_tokens() -> AsyncIterator[str]:
    """Yield one token, then nothing for an hour."""
    yield TOKENS[0]
    await asyncio.sleep(3600)
