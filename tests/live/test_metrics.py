"""What Prometheus reads is what happened, under several workers and whatever becomes of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Set, Tuple

import pytest
from asking import APPS, events_of
from scraping import Scrape, assert_grown, fetch, parse, scrape, scrape_when

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.scripts import done, silence, tokens

pytestmark = [pytest.mark.live, pytest.mark.timeout(90)]


@contextlib.contextmanager
def measured(folder: Path, worker: str, **changes: Any) -> Iterator[LiveServer]:
    folder.chmod(0o700)
    env = {"SETTINGS": json.dumps({"shared_dir": str(folder)}), "PROMETHEUS_MULTIPROC_DIR": None}
    env.update(changes.pop("env", {}))
    with gunicorn_server(
        APPS / "measured.py", worker=worker, workers=2, threads=24, env=env,
        config_lines="accesslog = None", **changes
    ) as server:
        yield server


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[LiveServer]:
    with measured(tmp_path_factory.mktemp("shared"), request.param) as server:
        yield server


def read(server: LiveServer, path: str) -> Tuple[int, int]:
    """Return the bytes and events of an answer."""
    with server.request(path) as reader:
        data = reader.read()
    return len(data), len(events_of(data))


def leave(server: LiveServer, path: str, marker: bytes = b'"a"', **request: Any) -> None:
    """Read until something has come, and go."""
    with server.request(path, **request) as reader:
        reader.read_until(marker)


def at_rest(server: LiveServer, is_there: Callable[[Scrape], Any]) -> Scrape:
    """Return a scrape of which *is_there* is true, and that has not changed since the one before it.

    A worker that is scraped by another may be in the middle of counting one end.
    """
    last = [Scrape()]

    def look(now: Scrape) -> bool:
        before, last[0] = last[0], now
        return bool(before == now and is_there(now))

    return scrape_when(server, look)


def since(before: Scrape, now: Scrape) -> Scrape:
    """Return what has been added."""
    return Scrape({key: value - before.get(key, 0.0) for key, value in now.items()})


def stop(server: LiveServer) -> None:
    with server.request("/held") as reader:
        reader.read_until(b'"a"')
        place = reader.headers["content-location"]
        with server.request(place, method="DELETE") as answer:
            assert answer.status == 204
        reader.read()


def test_sums_are_what_the_clients_did(server: LiveServer) -> None:
    before = at_rest(server, lambda now: now.sum("streams_active") == 0)
    paths = [f"/say/{number}" for number in (1, 5, 20)] * 4 + ["/burst/300"] * 4 + ["/padded/3"] * 2
    paths += ["/fails"] * 3 + ["/old"] * 3
    with ThreadPoolExecutor(16) as pool:
        late = [pool.submit(read, server, "/late") for _ in range(3)]
        left = [pool.submit(leave, server, "/quiet") for _ in range(5)]
        stopped = [pool.submit(stop, server) for _ in range(2)]
        got = list(pool.map(lambda path: read(server, path), paths))
        for each in [*late, *left, *stopped]:
            each.result()
    assert fetch(server, "/refused")[0] >= 500
    # Two that begin with status 200, and nothing else, beside those above.
    total = len(paths) + 3 + 5 + 2 + 1

    found = since(before, at_rest(server, lambda now: since(before, now).sum("streams_ended_total") == total))
    assert found.sum("streams_started_total") == total and found.sum("streams_active") == 0
    assert found.by("streams_ended_total", "reason") == {
        "finish": 12 + 4 + 2 + 3, "error": 4, "timeout": 3, "disconnect": 5, "stop": 2,
    }
    assert found.by("streams_ended_total", "format") == {"sse": total - 3, "adopted-sse": 3}
    for route in ("say", "burst", "padded", "fails", "old"):
        answers = [size for path, size in zip(paths, got) if path.split("/")[1] == route]
        assert found.sum("sent_bytes_total", route=route) == sum(size for size, _ in answers), route
        # The comment that opens a padded stream is no event.
        assert found.sum("sent_events_total", route=route) == sum(events for _, events in answers), route
        assert found.sum("stream_duration_seconds_count", route=route) == len(answers)
        assert found.sum("time_to_first_token_seconds_count", route=route) == len(answers)
        # One after the other, they are no longer than the streams.
        parts = found.sum("time_to_first_token_seconds_sum", route=route)
        parts += found.sum("output_gap_seconds_sum", route=route)
        assert 0 < parts <= 1.05 * found.sum("stream_duration_seconds_sum", route=route) + 0.05, route
    # What is there at once leaves together; what comes one by one does not wait.
    events = found.sum("sent_events_total", route="burst")
    coalesced = found.sum("coalesced_events_total", route="burst")
    assert events / 2 < coalesced <= events if is_gevent(server) else coalesced < events
    assert found.sum("coalesced_events_total", route="say") <= 12 * 2  # the last with the end
    deliveries = found.sum("output_gap_seconds_count", route="say") + 12
    assert deliveries <= found.sum("sent_events_total", route="say")
    # A tenth less than was slept: on gevent a sleep begins when the loop has last looked at the clock.
    assert found.sum("output_gap_seconds_sum", route="say") >= 0.009 * 4 * (0 + 4 + 19)
    assert found.sum("output_tokens_total", route="say", estimated="true") == 4 * (1 + 5 + 20)
    assert found.sum("time_to_first_token_seconds_count", route="refused") == 0
    assert found.sum("sent_events_total", route="refused") == 0
    assert found.by("leaks", "kind") == {}


def is_gevent(server: LiveServer) -> bool:
    return "Using worker: gevent" in server.log()


def test_calls_that_clients_leave_are_counted_with_what_they_save(
    server: LiveServer,
) -> None:
    with ScriptedUpstream([tokens(*"abcdefghij"), done()]) as model:
        with server.request("/ask", json={"url": model.url}) as reader:
            reader.read()
    # The mean is each worker's own.
    worker = reader.headers["x-worker"]
    same = 0
    with ScriptedUpstream([tokens("a", "b", "c"), silence()]) as model:
        for path in ["/ask"] * 4 + ["/both"]:
            with server.request(path, json={"url": model.url}) as reader:
                reader.read_until(b'"c"')
                same += path == "/ask" and reader.headers["x-worker"] == worker
        model.wait_closed()
    scrape_when(server, lambda now: now.sum("streams_ended_total", reason="disconnect", route="both"))
    found = at_rest(server, lambda now: now.sum("streams_active") == 0)
    assert found.sum("upstream_cancelled_total", route="ask") == 4
    assert found.sum("upstream_cancelled_total", route="both") == 2
    assert found.sum("upstream_cancel_seconds_count") == found.sum("upstream_cancelled_total")
    assert 0 <= found.sum("upstream_cancel_seconds_sum") < 6 * 3.0
    assert found.sum("saved_output_tokens_estimate_total", route="ask") == same * (10 - 3)
    assert found.sum("output_tokens_total", route="ask", estimated="true") == 4 * 3
    assert found.sum("output_tokens_total", route="ask", estimated="false") == 10


def test_refusals_are_counted(server: LiveServer) -> None:
    before = scrape(server).sum("streams_refused_total", limit="route")
    with server.request("/one") as reader:
        reader.read_until(b'"a"')
        assert [fetch(server, "/one")[0] for _ in range(3)] == [503] * 3
    assert scrape(server).sum("streams_refused_total", limit="route") == before + 3


def test_running_streams_are_counted_by_whichever_worker_is_asked(server: LiveServer) -> None:
    scrape_when(server, lambda now: now.sum("streams_active") == 0)
    with contextlib.ExitStack() as stack:
        for _ in range(12):
            reader = stack.enter_context(server.request("/quiet"))
            reader.read_until(b'"a"')
        begun = scrape(server).sum("streams_started_total", route="quiet")
        # The others hand over what has come once a second.
        sent = 12 * len(b'data: {"text":"a"}\n\n')
        before = scrape(server)
        assert before.sum("streams_active") == 12
        asked: Set[str] = set()
        with ThreadPoolExecutor(8) as pool:  # at the same time
            for status, headers, data in pool.map(lambda _: fetch(server), range(16)):
                assert status == 200
                asked.add(headers["x-worker"])
                now = parse(data.decode())
                assert now.sum("streams_active") == 12 and now.sum("streams_started_total") == before.sum(
                    "streams_started_total"
                )
                assert_grown(before, now)
        while len(asked) < 2:
            asked.add(fetch(server)[1]["x-worker"])
        least = sent + (begun - 12) * 20
        scrape_when(server, lambda now: now.sum("sent_bytes_total", route="quiet") >= least)
    scrape_when(server, lambda now: now.sum("streams_active") == 0)


def test_what_stays_open_is_a_leak_until_it_is_closed(server: LiveServer) -> None:
    read(server, "/leaky")
    assert scrape_when(server, lambda now: now.sum("leaks")).by("leaks", "kind") == {"unclosed": 1}

    def mended(now: Scrape) -> bool:
        fetch(server, "/mend")
        return now.sum("leaks") == 0

    scrape_when(server, mended)


def test_who_asks_gets_the_format_that_it_likes_and_guests_get_none(server: LiveServer) -> None:
    status, headers, data = fetch(server)
    assert status == 200 and headers["content-type"].startswith("text/plain; version=")
    assert headers["cache-control"] == "no-store"
    status, headers, data = fetch(server, Accept="application/openmetrics-text; version=1.0.0")
    assert headers["content-type"].startswith("application/openmetrics-text") and data.endswith(b"# EOF\n")
    _, headers, _ = fetch(server, **{"Accept-Encoding": "gzip"})
    assert headers["content-encoding"] == "gzip"
    read(server, "/say/1")  # or there is none to be picked, where this test is the first
    picked = scrape(server, "/llmstream/metrics?name%5B%5D=llmstream_streams_active")
    assert {name for name, _ in picked} == {"llmstream_streams_active"}
    assert fetch(server, **{"X-Role": "guest"})[0] == 403


def open_on_both(server: LiveServer, stack: contextlib.ExitStack) -> Dict[int, int]:
    """Open streams until both workers have some; return how many each has."""
    counts: Dict[int, int] = {}

    def look() -> bool:
        reader = server.request("/quiet")
        reader.read_until(b'"a"')
        pid = int(reader.headers["x-worker"])
        if counts.setdefault(pid, 0) < 3:
            counts[pid] += 1
            stack.enter_context(reader)
        else:
            # One of them may get dozens in a row, and it has as many threads and no more.
            reader.close()
        return len(counts) == 2

    wait_until(look, 20.0, lambda: f"streams of both workers: {counts}")
    scrape_when(server, lambda now: now.sum("streams_active") == sum(counts.values()))
    return counts


def test_nothing_is_forgotten_with_a_worker_that_dies(server: LiveServer) -> None:
    scrape_when(server, lambda now: now.sum("streams_active") == 0)
    with contextlib.ExitStack() as stack:
        counts = open_on_both(server, stack)
        before = scrape(server)
        assert before.sum("streams_active") == sum(counts.values())
        victim = min(counts)
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in server.worker_pids() and len(server.worker_pids()) == 2, 40.0)
        left = sum(counts.values()) - counts[victim]
        found = scrape_when(server, lambda now: now.sum("streams_active") == left)
        assert_grown(before, found)
        assert found.sum("streams_started_total") == before.sum("streams_started_total")


@pytest.mark.slow
def test_nothing_is_forgotten_with_workers_that_are_replaced(server: LiveServer) -> None:
    read(server, "/say/2")
    before = scrape_when(server, lambda now: now.sum("streams_active") == 0)
    pids = server.worker_pids()
    os.kill(server.pid, signal.SIGHUP)
    wait_until(lambda: len(server.worker_pids()) == 2 and not set(pids) & set(server.worker_pids()), 40.0)
    found = scrape(server)
    assert_grown(before, found)
    assert found.sum("streams_started_total") == before.sum("streams_started_total")
    assert found.sum("leaks") == 0
    read(server, "/say/2")
    assert scrape(server).sum("streams_started_total", route="say") == before.sum(
        "streams_started_total", route="say"
    ) + 1


def test_exporter_of_the_app_shows_them_too_in_the_mode_of_the_library(tmp_path: Path) -> None:
    folder = tmp_path / "multiprocess"
    folder.mkdir()
    with measured(tmp_path, "gthread", env={"PROMETHEUS_MULTIPROC_DIR": str(folder)}) as server:
        for _ in range(6):
            read(server, "/say/3")
        with contextlib.ExitStack() as stack:
            counts = open_on_both(server, stack)
            found = scrape_when(server, lambda now: now.sum("streams_ended_total", route="say") == 6)
            assert found.sum("streams_ended_total", route="say", reason="finish") == 6
            assert found.sum("streams_active") == sum(counts.values())
            theirs = scrape(server, "/exported")
            for name in ("streams_started_total", "streams_active", "sent_bytes_total"):
                assert theirs.sum(name, route="say") == found.sum(name, route="say"), name
            victim = min(counts)
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: victim not in server.worker_pids(), 15.0)
            left = sum(counts.values()) - counts[victim]
            # Without the hook in gunicorn's configuration: whoever reads removes what the dead had.
            now = scrape_when(server, lambda now: now.sum("streams_active") == left)
            assert_grown(found, now)
    assert not list(tmp_path.glob("metrics-*"))
