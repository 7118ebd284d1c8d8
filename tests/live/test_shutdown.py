"""A worker that goes ends its streams with a word first, in every way in which gunicorn stops one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, List
from urllib.parse import quote

import pytest
from asking import APPS, events_of

from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, silence, tokens

pytestmark = pytest.mark.live

#: Seconds; gunicorn kills its worker when they are over.
GRACE = 3
ROUTES = ["/stream/silent", "/stream/ticking", "/legacy/silent", "/legacy/ticking"]


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes"
    path.touch()
    return path


def serve(notes: Path, worker: str, lines: str = "") -> Any:
    config = f"graceful_timeout = {GRACE}\naccesslog = None\n{lines}"
    threads = 12 if worker == "gthread" else None
    return gunicorn_server(
        APPS / "lasting.py", worker, threads=threads, env={"NOTES": str(notes)}, config_lines=config
    )


def open_streams(
    server: LiveServer, upstream: ScriptedUpstream, routes: List[str]
) -> Dict[str, StreamReader]:
    query = "?url=" + quote(upstream.url + "/chat/completions")
    readers = {route: server.request(route + query, timeout=20) for route in routes}
    upstream.wait_for(lambda u: len(u.exchanges) == sum("silent" in route for route in routes))
    return readers


def check_end(route: str, reader: StreamReader, breaks: bool = False) -> None:
    """The client is told, and the connection is ended in the way of its style.

    :param breaks: whether it breaks off after that in any case. gunicorn 22 and 23 write a whole
        answer 500 behind it then, which no client that knows the end ever reads.
    """
    with contextlib.closing(reader.sock):
        if breaks:
            body = b"".join(data for _, data in reader.read_until(b"event: failed"))
        else:
            body = reader.read()
    last = events_of(body)[-1]
    assert last.event == "failed", body[-200:]
    assert json.loads(last.data)["code"] == "shutdown"
    assert json.loads(last.data)["retryable"] is True
    assert reader.complete is (route.startswith("/stream") and not breaks), route


def check_notes(notes: Path, routes: List[str]) -> None:
    """Each source has cleaned up, and each end was told of, once; the client may know earlier."""
    expected = []
    for route in routes:
        name = route.rpartition("/")[2]
        if route.startswith("/stream"):
            expected += [f"{name} cleaned up", f"{name} ended: shutdown"]
        else:
            expected.append(f"legacy {name} cleaned up")

    def lines() -> List[str]:
        return notes.read_text().splitlines()

    wait_until(lambda: set(expected) <= set(lines()), 5, notes.read_text)
    assert {line: lines().count(line) for line in expected} == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
@pytest.mark.parametrize("sign", ["SIGTERM", "SIGHUP"])
def test_long_streams_are_ended_before_the_worker_is_killed(
    worker: str, sign: str, notes: Path, noticed: Callable[[str], None]
) -> None:
    with ScriptedUpstream([tokens("a"), silence()]) as upstream, serve(notes, worker) as server:
        readers = open_streams(server, upstream, ROUTES)
        old = set(server.worker_pids())
        short = server.request("/short?seconds=0.7")
        sent_at = time.monotonic()
        os.kill(server.pid, getattr(signal, sign))
        body = short.read()
        assert events_of(body)[-1].event == "done", "whoever can finish in time is let finish"
        short.close()
        for route, reader in readers.items():
            check_end(route, reader)
        took = time.monotonic() - sent_at
        noticed(f"told after {took:.2f} s of {GRACE}")
        # The words came before that; gthread may close a connection a second after its last one.
        assert took < GRACE + 1.5
        upstream.wait_closed()
        check_notes(notes, ROUTES)
        if sign == "SIGHUP":
            wait_until(lambda: set(server.worker_pids()) - old == set(server.worker_pids()) != set(), 10)
            with contextlib.closing(server.request("/pid").sock):
                pass
        else:
            wait_until(server._has_ended, 10, "the server to end")
        assert "SIGKILL" not in server.log()


def test_single_stream_of_a_sync_worker_is_ended(notes: Path) -> None:
    with ScriptedUpstream([tokens("a"), silence()]) as upstream, serve(notes, "sync") as server:
        readers = open_streams(server, upstream, ["/stream/silent"])
        # The thread that signals are handled in is now waiting for the model.
        readers["/stream/silent"].read_until(b": hb\n")
        os.kill(server.pid, signal.SIGTERM)
        check_end("/stream/silent", readers["/stream/silent"])
        check_notes(notes, ["/stream/silent"])
        upstream.wait_closed()


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_worker_that_has_had_enough_requests_ends_its_streams(worker: str, notes: Path) -> None:
    with ScriptedUpstream([tokens("a"), silence()]) as upstream, serve(
        notes, worker, "max_requests = 3"
    ) as server:
        readers = open_streams(server, upstream, ["/stream/silent", "/legacy/silent"])
        with contextlib.closing(server.request("/pid")) as asked:
            asked.read()
        for route, reader in readers.items():
            check_end(route, reader)
        upstream.wait_closed()
        check_notes(notes, ["/stream/silent", "/legacy/silent"])


def test_worker_is_not_looked_at_while_no_stream_is_open(notes: Path) -> None:
    """A quiet worker sleeps: no thread or greenlet of ours wakes it."""
    with serve(notes, "gthread") as server:
        with contextlib.closing(server.request("/short?seconds=0")) as reader:
            reader.read()
        (pid,) = server.worker_pids()

        def ticker() -> List[int]:
            return [switches_of(pid, int(task)) for task in os.listdir(f"/proc/{pid}/task")]

        deadline = time.monotonic() + 10
        while True:
            before = ticker()
            time.sleep(1.2)  # the span that is measured
            after = ticker()
            # gthread's own loop wakes once a second.
            if len(before) == len(after) and sum(after) - sum(before) <= 4:
                break
            assert time.monotonic() < deadline, (before, after)


def switches_of(pid: int, task: int) -> int:
    status = Path(f"/proc/{pid}/task/{task}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("voluntary_ctxt_switches"))
    return int(line.split()[1])


@pytest.mark.parametrize("worker", ["gevent", "gthread", "sync"])
def test_worker_that_is_interrupted_has_a_second_for_its_streams(
    worker: str, notes: Path, noticed: Callable[[str], None]
) -> None:
    """As Ctrl-C and SIGQUIT do; without the hook nobody is told and no ``finally`` runs."""
    routes = ["/stream/silent"] if worker == "sync" else ["/stream/silent", "/legacy/silent"]
    hook = "from flask_llmstream.gunicorn import worker_int"
    with ScriptedUpstream([tokens("a"), silence()]) as upstream, serve(notes, worker, hook) as server:
        readers = open_streams(server, upstream, routes)
        for reader in readers.values():
            reader.read_until(b": hb")  # now it waits for the model, and not in the server's write
        sent_at = time.monotonic()
        os.kill(server.pid, signal.SIGINT)
        for route, reader in readers.items():
            # A sync worker leaves the stream with SystemExit, which is passed on.
            check_end(route, reader, breaks=worker == "sync")
        took = time.monotonic() - sent_at
        noticed(f"told after {took:.2f} s")
        assert took < GRACE
        upstream.wait_closed()
        check_notes(notes, routes)
