"""Sentry around streams: a failure is one event, a client that leaves is none."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import silence

pytest.importorskip("sentry_sdk")
pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps") / "tracked.py"
PROCESSES = [("flask", "gevent"), ("wsgi", "gevent"), ("flask", "gthread")]
each_route = pytest.mark.parametrize("route", ["stream", "legacy"])


@pytest.fixture(scope="module", params=PROCESSES, ids="-".join)
def server(request: Any) -> Iterator[LiveServer]:
    by, worker = request.param
    quiet = "accesslog = None"
    with gunicorn_server(APP, worker, threads=4, env={"SENTRY_BY": by}, config_lines=quiet) as server:
        yield server


def events_of(server: LiveServer, key: str) -> List[Any]:
    """Return the events since the last call, once the generator *key* is over."""
    facts: Dict[str, Any] = {}
    seen: List[Any] = []

    def look() -> bool:
        reader = server.request(f"/facts/{key}")
        with contextlib.closing(reader.sock):
            facts.update(reader.json())
        seen.extend(facts["events"])
        return bool(facts["ended"])

    wait_until(look, 10.0, lambda: f"the generator to end: {facts}\n{server.log()}")
    look()  # what comes after the generator, while the server ends the response
    assert facts["ended"] == 1
    return seen


@each_route
@pytest.mark.parametrize("how", ["silent", "talking"])
def test_client_that_leaves_is_no_event(server: LiveServer, route: str, how: str) -> None:
    """Where the view blocks, between two items, and where the server writes."""
    with ScriptedUpstream([silence()]) as upstream:
        reader = server.request(f"/{route}?how={how}&key={route}-{how}&url={upstream.url}")
        reader.read_until(b"one")
        if how == "silent":
            upstream.wait_for(lambda upstream: upstream.exchanges)
        reader.close()
        seen = events_of(server, f"{route}-{how}")
    assert seen == []
    assert "Traceback" not in server.log()


@each_route
@pytest.mark.parametrize("how", ["first", "later"])
def test_failure_is_one_event(server: LiveServer, route: str, how: str) -> None:
    reader = server.request(f"/{route}?how={how}&key={route}-{how}")
    with contextlib.closing(reader.sock):
        reader.read()
    # Its integration, its middleware and its handler of log records have all seen it.
    assert events_of(server, f"{route}-{how}") == [["RuntimeError"]]
