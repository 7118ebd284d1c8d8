"""Who waits for news of a stream in this process: one flag for all followers of a stream.

A change wakes them by setting the flag and forgetting it, so whoever comes later waits for the
next change. A follower takes the flag *before* it looks at the log: no change falls in between.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Optional

from flask_llmstream.runtime import Runtime

__all__ = ["Waiters", "Waiting"]


class Waiting:
    """The followers of one stream since its last change."""

    __slots__ = ("count", "flag", "seen")

    def __init__(self, flag: Any) -> None:
        #: Set at the next change.
        self.flag = flag
        #: How many follow.
        self.count = 0
        #: Number of the last entry when one of them looked; ``None`` before.
        self.seen: Optional[int] = None


class Waiters:
    """The followers of all streams."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()
        self._by_stream: Dict[str, Waiting] = {}

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._by_stream)

    def enter(self, stream: str) -> Waiting:
        """Begin to wait; to be followed by :meth:`leave`."""
        with self._lock:
            waiting = self._by_stream.get(stream)
            if waiting is None:
                waiting = self._by_stream[stream] = Waiting(self._runtime.flag())
            waiting.count += 1
            return waiting

    def leave(self, stream: str, waiting: Waiting) -> None:
        """Wait no longer."""
        with self._lock:
            waiting.count -= 1
            if not waiting.count and self._by_stream.get(stream) is waiting:
                del self._by_stream[stream]

    def wake(self, streams: Iterable[str]) -> None:
        """Wake the followers of *streams*."""
        if not self._by_stream:
            return
        with self._lock:
            found = [self._by_stream.pop(stream, None) for stream in streams]
        for waiting in found:
            if waiting is not None:
                waiting.flag.set()

    def wake_all(self) -> None:
        """Wake everybody."""
        self.wake(list(self.seen()))

    def seen(self) -> Dict[str, Optional[int]]:
        """Return what the followers of each stream have seen."""
        with self._lock:
            return {stream: waiting.seen for stream, waiting in self._by_stream.items()}
