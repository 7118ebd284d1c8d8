"""How long to wait before a connection is opened again."""

from __future__ import annotations

from typing import Any, List, Optional

import pytest

from flask_llmstream.client.backoff import Backoff


def waits(count: int, random: float = 0.0, base: Optional[float] = None) -> List[Optional[float]]:
    backoff = Backoff(count - 1, lambda: random)
    return [backoff.next(base) for _ in range(count)]


def test_waits_double_up_to_half_a_minute_and_end_with_the_retries() -> None:
    assert waits(8) == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, None]


def test_no_retries_means_no_wait() -> None:
    assert waits(1) == [None]


@pytest.mark.parametrize("random, expect", [(0.0, 4.0), (0.5, 5.0), (1.0, 6.0)])
def test_chance_adds_up_to_a_half(random: float, expect: float) -> None:
    assert waits(4, random)[2] == expect


@pytest.mark.parametrize(
    "base, expect",
    [
        pytest.param(0.0, [0.0, 0.0, 0.0], id="at once"),
        pytest.param(0.25, [0.25, 0.5, 1.0], id="sooner"),
        pytest.param(100.0, [100.0, 100.0, 100.0], id="later than the longest of ours"),
    ],
)
def test_the_server_sets_the_first_wait(base: float, expect: List[float]) -> None:
    assert waits(4, base=base)[:3] == expect


def test_a_wait_is_never_shorter_than_the_server_asks() -> None:
    backoff = Backoff(2, lambda: 0.0)
    assert backoff.next(at_least=0.5) == 1.0
    assert backoff.next(at_least=50.0) == 50.0


def test_progress_begins_anew() -> None:
    backoff = Backoff(2, lambda: 0.0)
    assert [backoff.next(), backoff.next(), backoff.next()] == [1.0, 2.0, None]
    backoff.reset()
    assert backoff.next() == 1.0


@pytest.mark.parametrize("retries", [-1, None, "3", float("nan")])
def test_retries_are_a_number(retries: Any) -> None:
    with pytest.raises(ValueError, match="expected a number of 0 or more; 0 raises at once"):
        Backoff(retries, lambda: 0.0)


def test_many_retries_do_not_overflow() -> None:
    assert waits(3000)[-2] == 30.0
