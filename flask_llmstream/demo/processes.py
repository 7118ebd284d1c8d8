"""The processes of the demo: started in sessions of their own, ended one by one.

Decisions:

1. A session each: a Ctrl-C in the terminal reaches only the demo, which then ends them in order.
   Else gunicorn would cut its streams, and the model would vanish under those still open.
2. Signals only set a flag. An exception out of a signal handler could come between the start of
   a process and the moment when somebody knows of it, and leave it behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from types import FrameType
from typing import Callable, List, Mapping, Optional, Sequence

__all__ = ["DemoError", "Process", "StopFlag", "Stopped"]


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


class Stopped(Exception):
    """Somebody asked the demo to stop."""


class StopFlag:
    """Remembers that a signal came, and ends waits then."""

    def __init__(self) -> None:
        self.is_set = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._set)

    def _set(self, signum: int, frame: Optional[FrameType]) -> None:
        self.is_set = True

    def wait_until(self, condition: Callable[[], bool], on_second: Callable[[], None]) -> None:
        """Wait until *condition* holds; call *on_second* once a second meanwhile.

        :raises Stopped: if a signal comes first.
        """
        next_second = time.monotonic() + 1
        while not condition():
            if self.is_set:
                raise Stopped
            time.sleep(0.05)
            if time.monotonic() >= next_second:
                next_second += 1
                on_second()


class Process:
    """One child process.

    :param name: for messages.
    :param command: the program and its arguments.
    :param environment: the whole environment.
    :param keep_output: keep its output for :meth:`output`; else it goes to the terminal.
    :raises DemoError: if the program cannot be run.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], keep_output: bool = False
    ) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile() if keep_output else None
        try:
            # The child's standard input ends when this process does, however it does.
            self._child = subprocess.Popen(
                list(command),
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=self._log,
                stderr=subprocess.STDOUT if self._log else None,
                start_new_session=True,
            )
        except OSError as exc:
            if self._log is not None:
                self._log.close()
            raise DemoError(f"{name} cannot be started: {exc.strerror}: {command[0]}") from exc

    def output(self) -> List[str]:
        """Return the lines that it has written so far."""
        if self._log is None:
            return []
        # Not seek(): the child writes at the position that it shares with this file.
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace").splitlines()

    def check(self) -> None:
        """Raise :class:`DemoError` if it has ended."""
        if self._child.poll() is not None:
            raise DemoError(f"{self.name} has ended with status {self._child.returncode}")

    def stop(self, timeout: float) -> None:
        """End it with SIGTERM and, *timeout* seconds later, its whole session with SIGKILL."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._child.pid, signal.SIGKILL)
                self._child.wait()
        if self._child.stdin is not None:
            self._child.stdin.close()
        if self._log is not None:
            self._log.close()
