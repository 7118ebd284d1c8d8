"""What the live tests share: a place for the figures that they measure."""

from __future__ import annotations

import statistics
from typing import Any, Callable, List, Sequence

import pytest

#: Lines for the end of the test run.
_figures: List[str] = []

Measured = Callable[..., None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Return a function that has *seconds* shown, in milliseconds, at the end of the run."""

    def show(what: str, seconds: Sequence[float]) -> None:
        ordered = sorted(1000 * each for each in seconds)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        _figures.append(
            f"{request.node.name}: {what}: p50 {statistics.median(ordered):.1f} ms,"
            f" p99 {p99:.1f} ms, max {ordered[-1]:.1f} ms (n={len(ordered)})"
        )

    return show


@pytest.fixture
def noticed(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that has a line shown at the end of the run."""
    return lambda text: _figures.append(f"{request.node.name}: {text}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _figures:
        terminalreporter.section("measured")
        for line in _figures:
            terminalreporter.write_line(line)
