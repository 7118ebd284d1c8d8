"""One read for all who ask the same at the same time: followers of a stream are woken together.

Whoever asks joins a read that has not begun yet, never one that has: the answer is as new as one
of his own would be.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Hashable, Optional, TypeVar

from flask_llmstream.runtime import Runtime

__all__ = ["SharedReads"]

T = TypeVar("T")


class _Read:
    """A read, and those who wait for what it finds."""

    __slots__ = ("error", "flag", "found", "is_done")

    def __init__(self, flag: Any) -> None:
        self.flag = flag
        self.found: Any = None
        self.error: Optional[Exception] = None
        self.is_done = False


class SharedReads:
    """Reads that have not begun, by what they are to find."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pending: Dict[Hashable, _Read] = {}

    def __call__(self, key: Hashable, read: Callable[[Callable[[], None]], T]) -> T:
        """Return what *read* finds; it must call its argument before it looks."""
        while True:
            mine = _Read(self._runtime.flag())
            # One step of the interpreter, as is taking it out: no lock, which could not be shared
            # by greenlets and the native thread that reads.
            other = self._pending.setdefault(key, mine)
            if other is mine:
                return self._lead(key, mine, read)
            other.flag.wait()
            if other.error is not None:
                raise other.error
            if other.is_done:
                return other.found  # type: ignore[no-any-return]
            # Who had asked first was cancelled.

    def _lead(self, key: Hashable, mine: _Read, read: Callable[[Callable[[], None]], T]) -> T:
        try:
            mine.found = found = read(lambda: self._forget(key, mine))
            mine.is_done = True
            return found
        except Exception as error:
            mine.error = error
            raise
        finally:
            self._forget(key, mine)
            mine.flag.set()

    def _forget(self, key: Hashable, mine: _Read) -> None:
        if self._pending.get(key) is mine:
            self._pending.pop(key, None)
