"""How long to wait before a connection is opened again."""

from __future__ import annotations

from typing import Callable, Optional

__all__ = ["Backoff"]

#: Seconds before the first attempt where the server has not asked for another time.
_BASE = 1.0
#: Seconds that doubling never passes. A server that asks for longer gets it.
_CAP = 30.0


class Backoff:
    """Counts attempts since the last progress and says how long to wait for the next.

    :param retries: how many attempts in a row may fail.
    :param random: returns a number from 0 up to 1. The wait grows by up to half of itself, so
        that the clients of a server that was restarted do not all come back at the same moment.
    :raises ValueError: for other *retries* than a number of 0 or more.
    """

    def __init__(self, retries: int, random: Callable[[], float]) -> None:
        if not isinstance(retries, (int, float)) or not retries >= 0:
            raise ValueError(f"retries is {retries!r:.80}, expected a number of 0 or more; 0 raises at once")
        self._retries = retries
        self._random = random
        self._failed = 0

    def reset(self) -> None:
        """Something has arrived: begin to count again."""
        self._failed = 0

    def next(self, base: Optional[float] = None, at_least: Optional[float] = None) -> Optional[float]:
        """Return the seconds to wait before the next attempt, ``None`` when there is none left.

        :param base: wait before the first attempt. Defaults to one second.
        :param at_least: what the server asked for with ``Retry-After``.
        """
        if self._failed >= self._retries:
            return None
        if base is None:
            base = _BASE
        # The exponent is bounded: 2.0 ** 1024 is an OverflowError, not a long wait.
        delay = min(base * 2.0 ** min(self._failed, 16), max(base, _CAP))
        self._failed += 1
        return max(delay * (1 + self._random() / 2), at_least or 0.0)
