"""``flask-llmstream tail`` as a process, in a pipe or on a terminal of its own."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from typing import Any, Callable, List, Optional

from scripted import PATIENCE

__all__ = ["COMMAND", "Terminal", "finished"]

COMMAND = [sys.executable, "-m", "flask_llmstream.cli", "tail"]


def finished(*args: str, environ: Any = None, stdin: Optional[bytes] = None) -> Any:
    """Run ``tail`` with *args* into pipes; return (exit code, stdout, stderr)."""
    done = subprocess.run(
        [*COMMAND, *args], input=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=dict(os.environ, **(environ or {})), timeout=30,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Terminal:
    """``tail`` on a pseudo-terminal, and what a terminal emulator makes of its output.

    :param columns: width of the terminal; it has *rows* lines.
    """

    def __init__(self, *args: str, columns: int = 40, rows: int = 6, **environ: str) -> None:
        import pyte

        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""
        self._lock = threading.Lock()
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        given = {**os.environ, "TERM": "xterm-256color", **environ}
        if "NO_COLOR" not in environ:
            given.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [*COMMAND, *args], stdin=slave, stdout=slave, stderr=slave, env=given, start_new_session=True
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            select.select([self.master], [], [])
            try:
                data = os.read(self.master, 65536)
            except OSError:  # Linux: the process has gone
                return
            if not data:
                return
            with self._lock:
                self.output += data
                self._stream.feed(data)

    @property
    def lines(self) -> List[str]:
        """What the screen shows, without the spaces at the ends."""
        with self._lock:
            return [line.rstrip() for line in self.screen.display]

    @property
    def all_lines(self) -> List[str]:
        """What was scrolled away, and what the screen shows."""
        with self._lock:
            columns = range(self.screen.columns)
            top = ["".join(line[x].data for x in columns).rstrip() for line in self.screen.history.top]
            return top + [line.rstrip() for line in self.screen.display]

    def wait_for(self, condition: Callable[[List[str]], Any]) -> None:
        """Wait until *condition* holds for the lines of the screen."""
        deadline = time.monotonic() + PATIENCE
        while not condition(self.lines):
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.01)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End what still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._reader.join(PATIENCE)
        os.close(self.master)
