"""Standard output of a command: bytes and text at once, and a status line where people look at it.

Decisions
    1. The status line stands below the text, and the cursor stays in the text: text is written as into
       a pipe, the terminal wraps and scrolls it, and what was said stays in its scroll-back. No
       scroll region, no alternate screen: whatever ends us leaves a usable terminal.
    2. It is erased before each write and drawn again at most a few times a second. It is not drawn
       while the cursor is at the right edge, where terminals differ in what they remember.
    3. Text of a model that goes to a terminal cannot move the cursor or do anything else there.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import unicodedata
from typing import Any, Callable, Mapping, Optional

__all__ = ["Output", "Screen", "is_live", "on_one_line"]

#: Seconds between two drawings of the status line.
_INTERVAL = 0.25
_TAB = 8
#: What a terminal takes for a command, or cannot show at all; line feeds and tabs are text.
_NO_TEXT = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: Makes sure of a line below and comes back: index, reverse index. Neither changes the column.
_ROOM = "\x1bD\x1bM"
_SAVE, _BELOW, _ERASE, _RESTORE = "\x1b7", "\r\x1b[B", "\x1b[K", "\x1b8"
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


def is_live(file: Any, environ: Mapping[str, str]) -> bool:
    """Whether *file* is a terminal that can move its cursor."""
    try:
        terminal = file.isatty()
    except (AttributeError, ValueError):
        return False
    capable = environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    return bool(terminal) and capable and os.name == "posix"


def on_one_line(text: str) -> str:
    """Return *text* with a space for whatever breaks a line or moves a cursor."""
    return "".join(char if char.isprintable() else " " for char in text)


class Output:
    """Standard output, flushed at once, and what is said on standard error when it ends."""

    def __init__(self) -> None:
        self._bytes = sys.stdout.buffer
        self._encoding = sys.stdout.encoding or "utf-8"
        self._mid_line = False
        self._channel: Optional[str] = None

    def write_of(self, channel: Optional[str], text: str) -> None:
        """Write *text*; on a line of its own, behind the channel's name, where that is another."""
        if channel != self._channel:
            self._channel = channel
            line = "\n" if self._mid_line else ""
            self.write(line + ("" if channel is None else f"{on_one_line(channel)}: "))
        self.write(text)

    def write(self, text: str) -> None:
        """Write *text*."""
        if text:
            # An answer may hold what a terminal cannot show: better a "?" than no answer.
            self.write_bytes(text.encode(self._encoding, "replace"))
            self._mid_line = not text.endswith("\n")

    def write_bytes(self, data: bytes) -> None:
        """Write *data* as it is."""
        self._bytes.write(data)
        self._bytes.flush()

    def notice(self, message: str) -> None:
        """Say something on standard error that is no part of the answer."""
        self.say(message)

    def end(self, message: Optional[str] = None) -> None:
        """End the last line and say *message*, on one line."""
        try:
            if self._mid_line:
                self.write("\n")
        except BrokenPipeError:
            self.abandon()
        if message is not None:
            self.say(message)

    def close(self) -> None:
        """Leave the terminal as it was, however the command has ended."""

    def say(self, message: str) -> None:
        """Write *message* to standard error, on one line."""
        sys.stderr.write(on_one_line(message) + "\n")
        sys.stderr.flush()

    def abandon(self) -> None:
        """Nobody reads any more: let what is still buffered go nowhere, without a complaint."""
        try:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._bytes.fileno())
        except (OSError, ValueError):
            pass  # not a real file, so nothing that could complain


class Screen(Output):
    """Standard output that is a terminal, with a status line below the text.

    :param status: returns what the line says now.
    :param colour: whether it may be dimmed.
    """

    def __init__(self, status: Callable[[], str], colour: bool) -> None:
        super().__init__()
        self._status = status
        self._colour = colour
        self._column = 0
        self._drawn = ""
        self._drawn_at = 0.0
        self._notice = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="llmstream-status", daemon=True)
        self._ticker.start()

    def write(self, text: str) -> None:
        """Write *text*, without what is no text."""
        shown = _NO_TEXT.sub("\ufffd", text.replace("\r", ""))
        with self._lock:
            self._notice = ""
            self._erase()
            super().write(shown)
            self._column = _column_after(shown, self._column, self._columns())
            if time.monotonic() - self._drawn_at >= _INTERVAL:
                self._draw()

    def notice(self, message: str) -> None:
        """Show *message* as the status, until the next text."""
        with self._lock:
            self._notice = message
            self._draw()

    def end(self, message: Optional[str] = None) -> None:
        """Remove the status line for good; then as :meth:`Output.end`."""
        self.close()
        super().end(message)

    def close(self) -> None:
        """Remove the status line for good."""
        self._ended.set()
        self._ticker.join()
        with self._lock:
            try:
                self._erase()
            except OSError:
                pass  # the terminal has gone

    def _tick(self) -> None:
        while not self._ended.wait(_INTERVAL):
            with self._lock:
                try:
                    self._draw()
                except OSError:
                    return  # the terminal has gone, and the next text will say so

    def _draw(self) -> None:
        columns = self._columns()
        if self._ended.is_set() or self._column > columns - 2:
            return
        line = on_one_line(self._notice or self._status())[: columns - 1]
        if line == self._drawn:
            return
        shown = f"{_DIM}{line}{_PLAIN}" if self._colour else line
        text = _ROOM + _SAVE + _BELOW + _ERASE + shown + _RESTORE
        self._drawn, self._drawn_at = line, time.monotonic()
        self.write_bytes(text.encode(self._encoding, "replace"))

    def _erase(self) -> None:
        if self._drawn:
            self._drawn = ""
            self.write_bytes((_SAVE + _BELOW + _ERASE + _RESTORE).encode("ascii"))

    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._bytes.fileno()).columns or 80
        except (OSError, ValueError):
            return 80


def _column_after(text: str, column: int, columns: int) -> int:
    """Return where the cursor is after *text*; *columns* means at the edge, about to wrap."""
    for char in text:
        if char == "\n":
            column = 0
        elif char == "\t":
            column = min((column // _TAB + 1) * _TAB, columns - 1)
        else:
            width = _width(char)
            column = width if column + width > columns else column + width
    return column


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
