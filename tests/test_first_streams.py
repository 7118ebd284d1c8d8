"""The first resumable streams of a worker with threads come at the same time, and share one journal."""

from __future__ import annotations

import sys
import threading
from typing import Any, Callable, Iterator, List

import pytest
from untraced import untraced_threads

from flask_llmstream.journal import Journal, current_journals
from flask_llmstream.runtime import Runtime

#: Threads, and rounds: a race is lost now and then only.
AT_ONCE, ROUNDS = 16, 30


@pytest.fixture(autouse=True)
def hasty() -> Iterator[None]:
    """Have the interpreter switch threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(function: Callable[[], Any]) -> List[Any]:
    """Call *function* in many threads at the same moment; return what it returns."""
    barrier = threading.Barrier(AT_ONCE)
    found: List[Any] = []

    def run() -> None:
        barrier.wait()
        found.append(function())

    threads = [threading.Thread(target=run) for _ in range(AT_ONCE)]
    with untraced_threads():
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    return found


def test_all_get_the_same_journal() -> None:
    """Else each would keep a thread, a database and sockets for the life of the worker."""
    for number in range(ROUNDS):
        url = f"memory://?first={number}" if number % 2 else f"sqlite:////nowhere/{number}.db"
        try:
            found = together(lambda: current_journals()[url])
        finally:
            current_journals().pop(url, None)
        assert len(found) == AT_ONCE and len(set(map(id, found))) == 1


def test_journal_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started: List[str] = []
    monkeypatch.setattr(Runtime, "spawn", lambda self, run, name: started.append(name))

    class Log:
        name = "a log that takes everything"

        def on_stop(self, callback: Any) -> None:
            """Take it."""

        def on_attend(self, callback: Any) -> bool:
            return False

        def on_leave(self, callback: Any) -> bool:
            return False

        def create(self, *values: Any) -> None:
            """Take it."""

    for number in range(ROUNDS):
        journal: Any = Journal(Log())  # type: ignore[arg-type]
        together(lambda: journal.begin("ab", 1.0, 10, 1000, 0.0))
        assert len(started) == number + 1
