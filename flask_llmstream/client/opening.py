"""Wake a thread or greenlet that waits for the head of an answer.

Until the head has arrived no object that we have leads to the connection; only the stack of
whoever waits does.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Optional, TypeVar

from flask_llmstream.blocked import reading_socket, waiting_socket
from flask_llmstream.runtime import current_runtime, shut_down

__all__ = ["Opening"]

T = TypeVar("T")

#: Seconds between two attempts to break a connection that is not one yet.
_PAUSE = 0.01


class Opening:
    """One call at a time that opens a connection and waits, and a way to end it from outside."""

    def __init__(self) -> None:
        self._task: Optional[Any] = None

    def run(self, call: Callable[[], T]) -> T:
        """Return what *call* returns; from before its first line :meth:`wake` has an effect."""
        self._task = current_runtime().task()
        try:
            return call()
        finally:
            self._task = None

    def wake(self) -> None:
        """Break the connection that :meth:`run` waits on, without waiting for anything.

        Where it is still being established, that is done in the background as soon as it is.
        """
        if self._task is not None:
            self._break()
        if self._task is not None:
            current_runtime().spawn(self._insist, "llmstream-close")

    def _insist(self) -> None:
        while self._task is not None:
            time.sleep(_PAUSE)
            self._break()

    def _break(self) -> None:
        task = self._task
        frame = None if task is None else current_runtime().frame(task)
        sock = reading_socket(frame) or waiting_socket(frame)
        # The frames have the last word: the task may have gone on to a socket of somebody else.
        if sock is not None and self._holds(frame):
            shut_down(sock)

    def _holds(self, frame: Optional[Any]) -> bool:
        while frame is not None:
            if frame.f_code is Opening.run.__code__ and frame.f_locals.get("self") is self:
                return True
            frame = frame.f_back
        return False
