"""A clock that stands still until a test moves it."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """Stands in for :func:`time.monotonic` wherever a clock is taken as an argument.

    :param start: what the clock shows first, in seconds. Defaults to 0.

    ::

        clock = ManualClock()
        progress = Progress(clock=clock)  # of flask_llmstream.client.progress
        clock.advance(0.5)
    """

    def __init__(self, start: float = 0.0) -> None:
        self._now = float(start)

    def __call__(self) -> float:
        """Return the time that the clock shows, in seconds."""
        return self._now

    def advance(self, seconds: float) -> float:
        """Move the clock forward and return what it shows then.

        :raises ValueError: if *seconds* is negative: a monotonic clock never goes back.
        """
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back, got advance({seconds!r})")
        self._now += seconds
        return self._now

    def __repr__(self) -> str:
        return f"ManualClock({self._now!r})"
