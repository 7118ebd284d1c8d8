"""Who reads which stream: told by readers once in a while, and heard by the process that writes it."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import Callable, Dict, Iterator, List

from flask_llmstream.runtime import Runtime

__all__ = ["Attendance", "Callbacks"]

_log = logging.getLogger(__name__)

#: Streams after which those that are no longer read are forgotten.
_MOST_ATTENDED = 1000


class Callbacks:
    """What an event log calls when something is wanted of a stream that was created with it."""

    def __init__(self) -> None:
        #: Called when it is asked to stop.
        self.stop: List[Callable[[str], None]] = []
        #: Called when somebody says that they read it.
        self.attend: List[Callable[[str], None]] = []
        #: Called when all have left it who read it in one process.
        self.leave: List[Callable[[str], None]] = []

    def __bool__(self) -> bool:
        return bool(self.stop or self.attend or self.leave)

    @staticmethod
    def call(callbacks: List[Callable[[str], None]], stream: str) -> None:
        """Call each of *callbacks*, whatever becomes of the others."""
        for callback in list(callbacks):
            try:
                callback(stream)
            except Exception:
                _log.exception("a callback failed for stream %s", stream)


class Attendance:
    """What the readers in this process have said: one speaks for all, and says it again in time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._attended: Dict[str, float] = {}

    def is_due(self, stream: str, seconds: float) -> bool:
        """Whether to tell others now that *stream* is read for so many seconds; notes that they are told."""
        now = self._runtime.now()
        if self._attended.get(stream, now) - now > seconds / 2:
            return False
        if len(self._attended) >= _MOST_ATTENDED:
            self._attended = {key: until for key, until in list(self._attended.items()) if until > now}
        self._attended[stream] = now + seconds
        return True

    @contextmanager
    def telling(self, stream: str) -> Iterator[None]:
        """While others are told of *stream*: where that fails it is due again at once."""
        try:
            yield
        except BaseException:
            if stream in self._attended:  # it may have been heard all the same, and is to be taken back then
                self._attended[stream] = self._runtime.now()
            raise

    def forget(self, stream: str) -> bool:
        """Take back what was said of *stream*; return whether anything was."""
        return self._attended.pop(stream, None) is not None
