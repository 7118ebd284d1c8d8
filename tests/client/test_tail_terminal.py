"""``tail`` on a terminal: the text as in a pipe, and a line below it that says how far it is."""

from __future__ import annotations

import re
import threading
import time
from typing import Any, Callable, Iterator, List

import pytest
from scripted import PATIENCE, Exchange, Serve
from tailing import Terminal

from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.native import SSEFormat

# The terminal emulator is installed with the source tree only.
pytestmark = pytest.mark.checkout

WIRE = SSEFormat()
STATUS = re.compile(r"\d+ tokens, \d+\.\d s, \d+\.\d/s")
Run = Callable[..., Terminal]


@pytest.fixture
def tail() -> Iterator[Run]:
    """Return a function that starts ``tail`` on a terminal."""
    started: List[Terminal] = []

    def start(*args: str, **options: Any) -> Terminal:
        started.append(Terminal(*args, **options))
        return started[-1]

    yield start
    for terminal in started:
        terminal.close()


class Paced:
    """Sends one piece of text after the other, each when it is told to."""

    def __init__(self, *pieces: str, end: bytes = WIRE.done("stop", Usage(1, 42))) -> None:
        self._pieces = pieces
        self._end = end
        self.go_on = threading.Semaphore(0)

    def __call__(self, exchange: Exchange) -> None:
        exchange.head()
        for piece in (*self._pieces, ""):
            assert self.go_on.acquire(timeout=PATIENCE)
            exchange.body(WIRE.encode(piece) if piece else self._end)
        exchange.end()


def test_the_status_line_stands_below_the_text_and_goes_with_the_end(serve: Serve, tail: Run) -> None:
    paced = Paced("Hello ", "w\u00f6rld \x1b[2J\x07\n", "\u6f22" * 20, "\u6f22" * 5)
    terminal = tail(serve(paced).url)
    terminal.wait_for(lambda lines: "waiting" in lines[1])
    paced.go_on.release()
    terminal.wait_for(lambda lines: lines[0] == "Hello" and STATUS.fullmatch(lines[1]))
    paced.go_on.release()
    # What would clear the screen is no text of an answer.
    shown = "Hello w\u00f6rld \ufffd[2J\ufffd"
    terminal.wait_for(lambda lines: lines[0] == shown and STATUS.fullmatch(lines[2]))
    paced.go_on.release()
    terminal.wait_for(lambda lines: lines[1].startswith("\u6f22"))
    time.sleep(0.6)
    # At the right edge terminals differ in what they remember, so there the line is left alone.
    assert not any(STATUS.fullmatch(line) for line in terminal.lines)
    paced.go_on.release()
    terminal.wait_for(lambda lines: STATUS.fullmatch(lines[3]))
    assert b"\x1b[2m" in terminal.output
    paced.go_on.release()
    assert terminal.end() == 0
    lines = [line.replace(" ", "") for line in terminal.lines]
    assert lines[1:3] == ["\u6f22" * 20, "\u6f22" * 5]
    assert STATUS.fullmatch(terminal.lines[3]) and terminal.lines[3].startswith("42 tokens")
    assert not any(lines[4:])


def test_nothing_is_lost_or_left_when_it_scrolls(serve: Serve, tail: Run) -> None:
    """A terminal of six lines, at its bottom, with each column the text can end in."""
    words: List[str] = []
    shown: List[Terminal] = []

    def drawn() -> int:
        return sum(terminal.output.count(b"\x1bD\x1bM") for terminal in shown)

    def script(exchange: Exchange) -> None:
        exchange.head()
        # More of them where the machine is busy, and the line seldom drawn.
        while len(words) < 150 or drawn() < 3 and len(words) < 1500:
            number = len(words)
            words.append(f"word{number:03d}" + ("\n" if number % 17 == 16 else " "))
            exchange.body(WIRE.encode(words[-1]))
            if number % 10 == 0:
                exchange.wait_closed(0.06)
        exchange.body(WIRE.done("stop"))
        exchange.end()

    terminal = tail(serve(script).url, columns=23)
    shown.append(terminal)
    assert terminal.end() == 0
    assert drawn() >= 3, "the status line was drawn while it scrolled"
    # A line that is full is not ended by a space: the words are put together without any.
    found = "".join(terminal.all_lines).replace(" ", "")
    text = "".join(words).replace(" ", "").replace("\n", "")
    assert found.startswith(text), (found, text)
    assert re.fullmatch(STATUS.pattern.replace(" ", ""), found[len(text):])


def test_a_reconnect_is_said_and_gone_when_text_comes(serve: Serve, tail: Run) -> None:
    go_on = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        if exchange.number:
            assert go_on.wait(PATIENCE)
            exchange.body(WIRE.encode("two") + WIRE.done("stop"))
            exchange.end()
        else:
            exchange.body(b'retry: 10\nid: 1\ndata: {"text":"one "}\n\n')

    terminal = tail(serve(script).url, columns=120)
    terminal.wait_for(lambda lines: "broke off after 1 events" in lines[1] and "trying again" in lines[1])
    assert terminal.lines[0] == "one"
    go_on.set()
    assert terminal.end() == 0
    assert terminal.lines[0] == "one two" and "broke" not in "".join(terminal.lines)


def test_ctrl_c_leaves_the_terminal_as_it_was(serve: Serve, tail: Run) -> None:
    left = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(WIRE.encode("some"))
        if exchange.wait_closed():
            left.set()

    terminal = tail(serve(script).url, columns=60)
    terminal.wait_for(lambda lines: STATUS.fullmatch(lines[1]))
    terminal.interrupt()
    assert left.wait(5.0)
    assert terminal.end() == 130
    assert terminal.lines[:3] == ["some", "interrupted; the connection is closed", ""]


@pytest.mark.parametrize(
    "environ, moves", [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, False)], ids=["NO_COLOR", "dumb"]
)
def test_what_the_terminal_is_said_to_be_counts(serve: Serve, tail: Run, environ: Any, moves: bool) -> None:
    paced = Paced("Hello")
    server = serve(paced)
    terminal = tail(server.url, **environ)
    if moves:
        terminal.wait_for(lambda lines: "waiting" in lines[1])
    paced.go_on.release()
    terminal.wait_for(lambda lines: lines[0] == "Hello")
    paced.go_on.release()
    assert terminal.end() == 0
    assert b"\x1b[2m" not in terminal.output and (b"\x1b" in terminal.output) == moves
    if not moves:
        assert terminal.output == b"Hello\r\n"
