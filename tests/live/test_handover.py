"""Readers of resumable streams go to another worker while the old one finishes what it has begun."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Callable, List
from urllib.parse import urljoin

import pytest
import requests
from asking import events_of, text_of
from moving import Reader, address, all_completed, for_three_seconds, held, opened, serve, words

from flask_llmstream.testing import wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, done, silence, tokens, wait

pytestmark = [pytest.mark.live, pytest.mark.slow]

WORKERS = ["gevent", "gthread"]


@pytest.mark.parametrize("worker", WORKERS)
def test_reload_loses_and_doubles_nothing(
    worker: str, tmp_path: Path, noticed: Callable[[str], None]
) -> None:
    moved = threading.Event()
    with ScriptedUpstream(held(moved, 50)) as upstream, serve(tmp_path, worker) as server:
        began = time.monotonic()
        readers = {n: Reader(server.url + address(upstream, n)) for n in range(14)}
        wait_until(lambda: all(reader.begun.is_set() for reader in readers.values()), 10)
        follow = [(n, Reader(urljoin(server.url, readers[n].location))) for n in range(6)]
        wait_until(lambda: all(reader.begun.is_set() for _, reader in follow), 10)
        first = set(server.worker_pids())
        os.kill(server.pid, signal.SIGHUP)

        def at_the_new() -> bool:
            return all(int(reader.workers[-1]) not in first for reader in readers.values())

        # For a second the old workers may take those who come back, too.
        wait_until(lambda: at_the_new() and len(set(server.worker_pids()) - first) == 2, 20, server.log)
        # The second time it is followers that go, whose writers are in another worker. The kernel may have
        # given nearly all of them to one.
        ((most, _),) = Counter(reader.workers[-1] for reader in readers.values()).most_common(1)
        one, before = int(most), {n: len(reader.workers) for n, reader in readers.items()}
        os.kill(one, signal.SIGTERM)
        wait_until(lambda: any(len(readers[n].workers) > before[n] for n in readers), 20, server.log)
        moved.set()
        for n, reader in list(readers.items()) + follow:
            assert reader.join() == "".join(words(str(n)))
        took = time.monotonic() - began
        times = [len(reader.workers) for reader in readers.values()]
        noticed(f"{sum(times)} requests of 14 readers, {took:.1f} s for answers of 5 s")
        assert max(times) > 2
        assert upstream.requests == 14, "nothing was asked for twice"
        upstream.wait_for(all_completed)
        # A worker that is stopped while it boots does not notice: wait for the one in place of *one*.
        gone = first | {one}
        wait_until(lambda: len(server.worker_pids()) == 2 and not gone & set(server.worker_pids()), 20)
        assert "Traceback" not in server.log() and "SIGKILL" not in server.log(), server.log()


@pytest.mark.parametrize("worker", WORKERS)
def test_reader_of_a_silent_model_is_sent_away_at_once(
    worker: str, tmp_path: Path, noticed: Callable[[str], None]
) -> None:
    script = [tokens("a", "b"), wait(5), tokens("c"), done()]
    with ScriptedUpstream(script) as upstream, serve(tmp_path, worker) as server:
        path = address(upstream)
        with opened(server, path) as reader, opened(server, address(upstream, path="/plain")) as plain:
            head = reader.read_until(b'"b"')
            location = reader.headers["content-location"]
            with opened(server, location) as follower:
                follower.read_until(b'"b"')
                old = set(server.worker_pids())
                at = time.monotonic()
                os.kill(server.pid, signal.SIGHUP)
                wait_until(lambda: len(set(server.worker_pids()) - old) == 2, 20, "the new workers")
                follower.read()
                assert follower.complete
            body = b"".join(data for _, data in head) + reader.read()
            took = time.monotonic() - at
            noticed(f"sent away {took:.2f} s after SIGHUP, new workers included")
            assert reader.complete and events_of(body)[-1].event is None and took < 20
            text, workers = text_of(body), [0]
            while events_of(body)[-1].event != "done" and len(workers) < 20:
                # For a second the old workers still take connections; they send them on.
                headers = {"Last-Event-ID": str(events_of(body)[-1].id)}
                with opened(server, path, headers=headers) as again:
                    workers.append(int(again.headers["worker"]))
                    rest = again.read()
                text += text_of(rest)
                body += rest
            assert text == "abc" and workers[-1] not in old, workers
            assert events_of(plain.read())[-1].event == "done", "who cannot come back is let finish"
        assert upstream.requests == 2


def test_who_does_not_finish_in_time_ends_with_shutdown_in_the_log(tmp_path: Path) -> None:
    script = [tokens("a"), silence()]
    with ScriptedUpstream(script) as upstream, serve(tmp_path, "gevent", "graceful_timeout = 4") as server:
        reader = Reader(server.url + address(upstream))
        assert reader.begun.wait(10)
        os.kill(server.pid, signal.SIGHUP)
        reader._thread.join(20)
        assert len(reader.workers) > 1 and reader.text == "a"
        assert getattr(reader.failed, "code", None) == "shutdown"
        upstream.wait_closed()


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_that_has_had_enough_requests_sends_readers_to_others(workers: int, tmp_path: Path) -> None:
    """Where it is the only one, they are better off with it."""
    lines = "max_requests = 3"
    with ScriptedUpstream(for_three_seconds) as upstream, serve(tmp_path, "gevent", lines, workers) as server:
        reader = Reader(server.url + address(upstream, 7))
        assert reader.begun.wait(10)
        old = set(server.worker_pids())
        # The kernel may give them all to the other worker, but that one soon leaves too, and boots slowly.
        deadline = time.monotonic() + 2.5
        for asked in itertools.count(1):
            requests.get(server.url + "/pid", headers={"Connection": "close"})
            if asked >= 6 and (workers == 1 or len(reader.workers) > 1) or time.monotonic() > deadline:
                break
        assert reader.join() == "".join(words("7", 30))
        assert upstream.requests == 1
        if workers == 1:
            assert len(reader.workers) == 1
        else:
            assert len(reader.workers) > 1
        wait_until(lambda: set(server.worker_pids()) - old, 10, "another worker")
        # A worker that is stopped while it boots does not notice: wait for those in place of all that leave.
        leaving = server.log().count("Autorestarting worker")
        wait_until(lambda: server.log().count("Booting worker") == workers + leaving, 10)
        wait_until(lambda: len(server.worker_pids()) == workers, 10)


@pytest.mark.timing
@pytest.mark.parametrize("worker", WORKERS)
def test_connections_are_rotated_before_they_get_old(
    worker: str, tmp_path: Path, noticed: Callable[[str], None]
) -> None:
    with ScriptedUpstream(for_three_seconds) as upstream, serve(tmp_path, worker, max_age=1.2) as server:
        readers = {n: Reader(server.url + address(upstream, n)) for n in range(6)}
        ages: List[float] = []
        while len(ages) < 3 and not (ages and ages[-1] < 1.4):  # where the machine stalls, all is late
            asked_at = time.monotonic()
            with opened(server, address(upstream, 6 + len(ages))) as reader:
                ages.append(list(reader)[-1][0] - reader.head_at)
                assert reader.complete
            assert time.monotonic() - asked_at > 0.9, "a fifth of them earlier at most"
        age = ages[-1]
        for n, each in readers.items():
            assert each.join() == "".join(words(str(n), 30))
            assert len(each.workers) >= 2
        noticed(f"a connection of max_age 1.2 s sent its last event after {age:.2f} s")
        assert age < 1.4
        assert upstream.requests == 6 + len(ages)


def test_connection_of_a_slow_reader_is_rotated_too(tmp_path: Path) -> None:
    """Its server is blocked in a write, so it cannot be told; the source goes on all the same."""
    big = "x" * 20000
    script = [tokens(*[big] * 300), done()]
    with ScriptedUpstream(script) as upstream, serve(
        tmp_path, "gevent", max_age=1.0, keep_bytes=1 << 24
    ) as server:
        with contextlib.closing(server.connect(receive_buffer=4096)) as sock:
            sock.sendall(f"GET {address(upstream)} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            upstream.wait_for(lambda u: u.exchanges and u.exchanges[0].completed, 15)
        assert "Traceback" not in server.log(), server.log()
