"""How far a stream has come, for whoever waits for it."""

from __future__ import annotations

import time
from typing import Callable, Optional

__all__ = ["Progress"]


class Progress:
    """Counts what has arrived; read it at any time, from any thread.

    ::

        def show(progress):
            print(f"\\r{progress.tokens} of about {progress.expected}, {progress.rate:.0f}/s", end="")

        with StreamClient(url, expected_tokens=800, on_progress=show) as stream:
            report = "".join(stream.text())

    :param expected: how many tokens there will be, as far as the caller can tell.
    :param clock: returns seconds. Defaults to the monotonic clock.
    """

    __slots__ = ("expected", "events", "pieces", "characters", "bytes", "counted", "_clock", "_first", "_end")

    def __init__(
        self, expected: Optional[int] = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        #: What the caller has said, ``None`` where nothing.
        self.expected = expected
        #: Events that were handed out, heartbeats not among them.
        self.events = 0
        #: Unnamed events among them: pieces of text, mostly one per token.
        self.pieces = 0
        #: Characters of the text, where it is read with ``text()`` or ``channel_texts()``.
        self.characters = 0
        #: Bytes of the body so far, decompressed.
        self.bytes = 0
        #: Tokens as the server has counted them, ``None`` until it says so, mostly at the end.
        self.counted: Optional[int] = None
        self._clock = clock
        self._first: Optional[float] = None
        self._end: Optional[float] = None

    @property
    def tokens(self) -> int:
        """Tokens so far: the server's count where it is known, the pieces of text until then."""
        return self.pieces if self.counted is None else self.counted

    @property
    def seconds(self) -> float:
        """Seconds since the first byte of the first answer; stands still after the end."""
        if self._first is None:
            return 0.0
        return (self._clock() if self._end is None else self._end) - self._first

    @property
    def rate(self) -> float:
        """Tokens per second since the first byte; 0 before it."""
        seconds = self.seconds
        return self.tokens / seconds if seconds > 0 else 0.0

    def arrived(self, size: int) -> None:
        """Note that *size* bytes have come."""
        if self._first is None:
            self._first = self._clock()
        self.bytes += size

    def ended(self) -> None:
        """Stop the time."""
        if self._end is None:
            self._end = self._clock()
