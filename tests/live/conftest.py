"""What the live tests share: a place for the figures that they measure, and logs for resumable streams."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Sequence

import pytest
from coming_back import script_for

from flask_llmstream.testing import ScriptedUpstream

sys.path.append(str(Path(__file__).resolve().parent.parent / "eventlog"))

from redis_servers import Server as RedisServer  # noqa: E402

#: Under which name a test keeps its lines for the end of the run; its report brings them along, also from
#: another process (pytest -n).
_FIGURE = "figure"

Measured = Callable[..., None]


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Return a function that has *seconds* shown, in milliseconds, at the end of the run."""

    def show(what: str, seconds: Sequence[float]) -> None:
        ordered = sorted(1000 * each for each in seconds)
        p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
        _keep(
            request,
            f"{what}: p50 {statistics.median(ordered):.1f} ms,"
            f" p99 {p99:.1f} ms, max {ordered[-1]:.1f} ms (n={len(ordered)})",
        )

    return show


@pytest.fixture
def noticed(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that has a line shown at the end of the run."""
    return lambda text: _keep(request, text)


def _keep(request: pytest.FixtureRequest, text: str) -> None:
    request.node.user_properties.append((_FIGURE, f"{request.node.name}: {text}"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    lines = [text for each in reports for name, text in each.user_properties if name == _FIGURE]
    if lines:
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def talker() -> Iterator[ScriptedUpstream]:
    """A scripted model that says what its name asks for; see ``coming_back.words_of``."""
    with ScriptedUpstream(script_for) as upstream:
        yield upstream


@pytest.fixture(scope="session")
def lasting_redis(tmp_path_factory: Any) -> Iterator[RedisServer]:
    """A redis-server that knows after a restart what it knew before."""
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes")
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="session")
def log_urls(tmp_path_factory: Any, lasting_redis: RedisServer) -> Callable[[str], str]:
    """Return a function that returns the URL of a log of that kind."""

    def url(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('log')}/streams.db"
        return lasting_redis.url if kind == "redis" else "memory://"

    return url
