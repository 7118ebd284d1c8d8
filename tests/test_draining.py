"""When a worker goes: found among the callers, looked at while streams are open, ended in time."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Optional

import pytest
from serving import Served, events_of

from flask_llmstream import current
from flask_llmstream.draining import Drainage, drain, find_worker, margin
from flask_llmstream.testing import wait_until


class Worker:
    """What gunicorn's workers have in common."""

    def __init__(self, graceful_timeout: float = 10.0) -> None:
        self.alive = True
        self.cfg = SimpleNamespace(graceful_timeout=graceful_timeout)

    def handle(self, request: Callable[[], Any]) -> Any:
        return request()


@pytest.mark.parametrize(
    "graceful_timeout, expected", [(0, 0), (1, 0.5), (2, 1.0), (3, 1.0), (30, 3.0), (300, 5.0)]
)
def test_margin(graceful_timeout: float, expected: float) -> None:
    assert margin(graceful_timeout) == expected


def test_worker_is_found_among_the_callers() -> None:
    worker = Worker()
    assert worker.handle(lambda: find_worker()) is worker
    assert find_worker() is None


def blocked(release: threading.Event) -> Iterator[str]:
    yield "a"
    while not release.wait(0.01):
        yield ""


class NoTicker:
    """Never comes back: these tests do what a ticker does."""

    def now(self) -> float:
        return 0.0

    def schedule(self, ticked: Any, due: float) -> None:
        pass


@pytest.fixture(autouse=True)
def no_ticker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the process's own ticker from a drainage whose worker has gone: it would end other streams."""
    monkeypatch.setattr("flask_llmstream.draining.current_ticker", NoTicker)


def test_open_streams_are_ended_when_their_time_is_up() -> None:
    drainage, worker, release = Drainage(), Worker(10.0), threading.Event()
    with Served(blocked(release)) as served:
        served.read_until(b'"a"')
        worker.handle(drainage.begin)
        assert drainage.tick(100.0) == pytest.approx(100.25), "looks again soon"
        worker.alive = False
        drainage.tick(101.0)
        assert drainage.tick(108.5) <= 108.75 and not served.ends
        drainage.tick(109.75)
        assert events_of(served.read())[-1].event == "failed"
        assert served.end().reason == "shutdown"
    assert drainage.tick(110.0) == float("inf"), "no stream is open, nobody is looked at"


class GeventWorker(Worker):
    """As gunicorn's, for those who look at where it comes from."""

    __module__ = "gunicorn.workers.ggevent"


@pytest.mark.parametrize("kind, ended_at", [(Worker, 109.75), (GeventWorker, 100.5)])
def test_streams_end_when_the_master_is_gone(kind: Any, ended_at: float) -> None:
    """At once where the worker does not wait for them."""
    drainage, worker, release = Drainage(), kind(10.0), threading.Event()
    worker.ppid = os.getppid()
    with Served(blocked(release)) as served:
        served.read_until(b'"a"')
        worker.handle(drainage.begin)
        drainage.tick(100.0)
        assert not drainage.going and not served.ends
        worker.ppid += 1
        drainage.tick(100.5)
        assert drainage.going
        drainage.tick(ended_at)
        assert events_of(served.read())[-1].event == "failed"
        assert served.end().reason == "shutdown"


def test_process_without_a_worker_is_not_looked_at() -> None:
    drainage = Drainage()
    drainage.begin()
    assert not drainage._waiting


def test_drain_ends_all_and_waits_for_them() -> None:
    release = threading.Event()
    with Served(blocked(release)) as one, Served(blocked(release)) as two:
        one.read_until(b'"a"')
        two.read_until(b'"a"')
        assert drain(timeout=10) == 0
        assert [served.end().reason for served in (one, two)] == ["shutdown"] * 2


def test_drain_says_how_many_are_left() -> None:
    waiting, release = threading.Event(), threading.Event()

    def deaf() -> Iterator[str]:
        yield "a"
        waiting.set()
        release.wait(10)
        yield "b"

    with Served(deaf()) as served:
        assert waiting.wait(10)
        assert drain(timeout=0.05) == 1
        release.set()
        assert served.end().reason == "shutdown"


def test_stream_that_drains_does_not_wait_for_itself() -> None:
    left: Optional[int] = None

    def source() -> Iterator[str]:
        nonlocal left
        yield "a"
        left = drain(timeout=60)
        yield "b"

    with Served(source()) as served:
        assert served.end().reason == "shutdown"
    assert left == 1
    wait_until(lambda: not current.streams(), 5, "no stream to be left")
