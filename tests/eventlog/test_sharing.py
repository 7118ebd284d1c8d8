"""Reads are shared by those who ask before they begin, and never by who asks later."""

from __future__ import annotations

import threading
from typing import Any, Callable, List, Optional

import pytest

from flask_llmstream.eventlog.sharing import SharedReads
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.runtime import Runtime
from flask_llmstream.testing import wait_until


class Noting(Runtime):
    """Notes who waits for the read of another."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: List[object] = []

    def flag(self) -> Any:
        waiting = self.waiting

        class Flag(threading.Event):
            def wait(self, timeout: Optional[float] = None) -> bool:
                waiting.append(self)
                return super().wait(timeout)

        return Flag()


class Asking:
    """Threads that ask one after another; the reads wait until they are let go."""

    def __init__(self) -> None:
        self.runtime = Noting()
        self.shared = SharedReads(self.runtime)
        self.go = threading.Event()
        self.begun = 0
        self.answers: List[Any] = []
        self.threads: List[threading.Thread] = []

    def read(self, begin: Callable[[], None]) -> int:
        """Return how many reads have begun."""
        self.go.wait(10)
        begin()
        self.begun += 1
        return self.begun

    def ask(self, read: Callable[[Callable[[], None]], Any], key: str = "key") -> None:
        def run() -> None:
            try:
                self.answers.append(self.shared(key, read))
            except BaseException as error:
                self.answers.append(error)

        thread = threading.Thread(target=run)
        self.threads.append(thread)
        thread.start()
        # It leads one of the reads, or has joined one: a thread that was only started might come too late.
        wait_until(lambda: len(self.shared._pending) + len(self.runtime.waiting) >= len(self.threads))

    def finish(self) -> List[Any]:
        self.go.set()
        for thread in self.threads:
            thread.join(10)
        return self.answers


def test_read_that_has_not_begun_is_shared() -> None:
    asking = Asking()
    for _ in range(5):
        asking.ask(asking.read)
    asking.ask(asking.read, "other")
    assert sorted(asking.finish()) in ([1, 1, 1, 1, 1, 2], [1, 2, 2, 2, 2, 2])
    assert asking.begun == 2 and asking.shared("key", asking.read) == 3


def test_read_that_has_begun_is_not_shared() -> None:
    asking, begun, go = Asking(), threading.Event(), threading.Event()

    def slow(begin: Callable[[], None]) -> str:
        begin()
        begun.set()
        go.wait(10)
        return "old"

    thread = threading.Thread(target=lambda: asking.answers.append(asking.shared("key", slow)))
    thread.start()
    begun.wait(10)
    asking.go.set()
    assert asking.shared("key", asking.read) == 1, "it does not wait for the other"
    go.set()
    thread.join(10)
    assert asking.answers == ["old"]


@pytest.mark.parametrize(
    "error, others", [(ValueError("no"), "ValueError"), (StreamCancelled("stop"), "int")]
)
def test_failure_is_shared_and_cancellation_is_not(error: BaseException, others: str) -> None:
    asking = Asking()

    def fail(begin: Callable[[], None]) -> int:
        asking.go.wait(10)
        raise error

    asking.ask(fail)
    for _ in range(3):
        asking.ask(asking.read)
    kinds = [type(answer).__name__ for answer in asking.finish()]
    assert sorted(kinds) == sorted([type(error).__name__] + [others] * 3)
