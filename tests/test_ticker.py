"""The ticker looks at each stream when it asked for it, and at nothing else."""

from __future__ import annotations

import math
import threading
from typing import Any, Callable, List, Optional, Tuple

import pytest

from flask_llmstream.runtime import Runtime
from flask_llmstream.testing import ManualClock, wait_until
from flask_llmstream.ticker import Ticker, current_ticker


class Unspawning(Runtime):
    """Counts background tasks instead of starting them: the test itself runs what is due."""

    def __init__(self) -> None:
        super().__init__()
        self.spawned: List[str] = []

    def spawn(self, run: Callable[[], None], name: str) -> Any:
        self.spawned.append(name)
        return object()


class Looked:
    """Is looked at, and notes when."""

    def __init__(self, *again: float) -> None:
        self.at: List[float] = []
        self._again = list(again)

    def tick(self, now: float) -> float:
        self.at.append(now)
        return self._again.pop(0) if self._again else math.inf


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(100.0)


@pytest.fixture
def ticker(clock: ManualClock) -> Ticker:
    return Ticker(Unspawning(), now=clock)


def test_nothing_is_started_before_something_is_scheduled() -> None:
    runtime = Unspawning()
    ticker = Ticker(runtime)
    assert runtime.spawned == [] and len(ticker) == 0
    ticker.schedule(Looked(), 5.0)
    ticker.schedule(Looked(), 6.0)
    assert runtime.spawned == ["llmstream-ticker"] and len(ticker) == 2


def test_streams_are_looked_at_in_the_order_of_their_time(ticker: Ticker, clock: ManualClock) -> None:
    order: List[Tuple[str, float]] = []

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def tick(self, now: float) -> float:
            order.append((self.name, now))
            return math.inf

    for name, due in [("late", 103.0), ("early", 101.0), ("same", 101.0), ("far", 500.0)]:
        ticker.schedule(Named(name), due)
    assert ticker.run_due(clock()) == 1.0 and order == []
    assert ticker.run_due(clock.advance(1.0)) == 2.0
    assert order == [("early", 101.0), ("same", 101.0)]
    ticker.run_due(clock.advance(2.5))
    assert order[2:] == [("late", 103.5)]
    assert len(ticker) == 1


def test_answer_is_when_to_come_back(ticker: Ticker, clock: ManualClock) -> None:
    looked = Looked(105.0, 110.0)
    ticker.schedule(looked, 101.0)
    assert ticker.run_due(clock.advance(1.0)) == 4.0
    assert ticker.run_due(clock.advance(4.0)) == 5.0
    ticker.run_due(clock.advance(5.0))
    ticker.run_due(clock.advance(500.0))
    assert looked.at == [101.0, 105.0, 110.0] and len(ticker) == 0


def test_stream_that_is_always_due_does_not_hold_the_others(ticker: Ticker, clock: ManualClock) -> None:
    greedy, other = Looked(0.0, 0.0, 0.0), Looked()
    ticker.schedule(greedy, 100.0)
    ticker.schedule(other, 100.0)
    assert 0 < ticker.run_due(clock()) < 0.01
    assert len(greedy.at) == 1 and len(other.at) == 1


def test_cleared_entry_is_passed_over_and_does_not_keep_its_stream(
    ticker: Ticker, clock: ManualClock
) -> None:
    looked, other = Looked(), Looked()
    entry = ticker.schedule(looked, 101.0)
    ticker.schedule(other, 102.0)
    entry.ticked = None
    assert len(ticker) == 1
    assert ticker.run_due(clock.advance(1.0)) == 1.0
    ticker.run_due(clock.advance(1.0))
    assert looked.at == [] and other.at == [102.0]


def test_entry_cleared_by_its_own_look_does_not_come_back(ticker: Ticker, clock: ManualClock) -> None:
    class Clearing:
        entry: Any = None

        def tick(self, now: float) -> float:
            assert self.entry.due == math.inf, "whoever wants an earlier look must ask for it"
            self.entry.ticked = None
            return now + 1

    clearing = Clearing()
    clearing.entry = ticker.schedule(clearing, 100.0)
    ticker.run_due(clock())
    assert len(ticker) == 0


def test_stream_that_fails_is_reported_and_stops_no_other(
    ticker: Ticker, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def tick(self, now: float) -> float:
            raise ValueError("boom")

    looked = Looked()
    ticker.schedule(Failing(), 100.0)
    ticker.schedule(looked, 100.0)
    ticker.run_due(clock())
    assert looked.at == [100.0] and len(ticker) == 0
    assert "boom" in caplog.text


def test_without_entries_it_still_looks_now_and_then(ticker: Ticker, clock: ManualClock) -> None:
    assert ticker.run_due(clock()) == 60.0


def test_thread_wakes_up_for_an_entry_that_is_due_earlier_than_the_first() -> None:
    ticker = Ticker(Runtime())
    looked = threading.Event()

    class Setting:
        def tick(self, now: float) -> float:
            looked.set()
            return math.inf

    far = ticker.schedule(Looked(), ticker.now() + 3600)
    ticker.schedule(Setting(), ticker.now() + 0.02)
    assert looked.wait(5)
    far.ticked = None
    wait_until(lambda: len(ticker) == 0)


def test_each_process_has_one() -> None:
    found: List[Optional[Ticker]] = [current_ticker(), current_ticker()]
    assert found[0] is found[1]
