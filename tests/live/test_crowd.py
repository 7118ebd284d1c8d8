"""A thousand clients of one gevent worker leave at once: nothing of them stays behind."""

from __future__ import annotations

import resource
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest
from asking import APPS, ask, new_key

from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, silence, tokens

pytestmark = [pytest.mark.live, pytest.mark.slow]

CROWD = 1000


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process and its children open some thousand files, where the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def join(server: LiveServer, upstream: ScriptedUpstream, size: int) -> Dict[str, StreamReader]:
    """Open *size* streams and return their readers by key, once each has read its tokens."""
    readers = {}
    for _ in range(size):
        key = new_key()
        request = {"key": key, "base_url": upstream.url}
        readers[key] = server.request("/relay/openai_chat", json=request)
    for reader in readers.values():
        reader.read_until(b'"c"')
    return readers


def leave(readers: Dict[str, StreamReader]) -> Dict[str, float]:
    """Close all connections, every second with a RST, and return when that was."""
    left_at = {}
    for number, (key, reader) in enumerate(readers.items()):
        left_at[key] = time.monotonic()
        if number % 2:
            reader.reset()
        else:
            reader.close()
    return left_at


def wait_for_counts(server: LiveServer, most: Dict[str, int]) -> None:
    """Wait until none of the worker's counts is above *most*."""
    found: Dict[str, int] = {}

    def look() -> bool:
        found.update(ask(server, "/counts"))
        return all(found[name] <= most[name] for name in found)

    wait_until(look, 10.0, lambda: f"{found} to be like {most}")


def test_thousand_clients_that_leave_at_once_leave_nothing_behind(
    many_files: None, measured: Callable[..., None], noticed: Callable[[str], None]
) -> None:
    quiet = "accesslog = None\nworker_connections = 2000"
    script: List[Any] = [tokens("a", "b", "c"), silence()]
    with gunicorn_server(APPS / "relay.py", config_lines=quiet) as server:
        with ScriptedUpstream(script) as upstream:
            leave(join(server, upstream, 50))
            upstream.wait_closed()
            idle = {"streams": 0, "bound": 0, "running": 0, "watched": 0, "ticking": 0}
            wait_until(lambda: idle.items() <= ask(server, "/counts").items(), 10.0, "the warm-up's end")
            # The connection of who has asked before may still be there.
            before = min((ask(server, "/counts") for _ in range(5)), key=lambda counts: counts["fds"])

            readers = join(server, upstream, CROWD)
            during = ask(server, "/counts")
            assert during["streams"] == during["bound"] == during["running"] == CROWD
            # The ticker also looks at the worker itself, as long as there are streams.
            assert during["watched"] == CROWD and during["ticking"] == CROWD + 1
            assert upstream.open_connections == CROWD
            assert during["fds"] >= before["fds"] + 2 * CROWD

            left_at = leave(readers)
            upstream.wait_closed(timeout=30)
            latencies = []
            for exchange in upstream.exchanges[-CROWD:]:
                key = exchange.json["messages"][0]["content"]
                assert exchange.peer.closed_by == "peer"
                latencies.append((exchange.closed_at or 0.0) - left_at[key])
            # A greenlet counts as a thread, too, when it has logged something, and some of them last.
            wait_for_counts(server, dict(before, threads=before["threads"] + before["greenlets"]))
        totals = ask(server, "/totals")
        assert totals["odd"] == {}
        assert totals["started"] == CROWD + 50
        assert totals["reasons"] == {"disconnect": CROWD + 50}
        assert "Traceback" not in server.log()
    assert len(latencies) == CROWD
    measured(f"{CROWD} clients leave at once → each upstream sees it", latencies)
    noticed(f"with {CROWD} streams {during}; before and after {before}")
    # All of it passes through one worker and this process, one after the other.
    assert max(latencies) < 10.0
