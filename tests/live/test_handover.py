"""Readers of resumable streams go to another worker while the old one finishes what it has begun."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional
from urllib.parse import quote, urljoin

import pytest
import requests
from asking import APPS, events_of, text_of

from flask_llmstream.client import StreamClient
from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import Exchange, Script, ScriptedUpstream, done, silence, tokens, wait

pytestmark = [pytest.mark.live, pytest.mark.slow]

WORKERS = ["gevent", "gthread"]


def serve(folder: Path, worker: str, lines: str = "", workers: int = 2, **settings: Any) -> Any:
    env = {"LOG": f"sqlite:///{folder / 'log.db'}", "SETTINGS": json.dumps(settings)}
    threads = 64 if worker == "gthread" else None
    lines = f"graceful_timeout = 20\naccesslog = None\n{lines}"
    return gunicorn_server(APPS / "handover.py", worker, workers, threads, env=env, config_lines=lines)


def words(number: str, count: int = 50) -> List[str]:
    return [f"{number}.{each} " for each in range(count)]


def slowly(exchange: Exchange) -> Script:
    """Five seconds of words that only this request gets."""
    number = exchange.json["messages"][0]["content"]
    return [tokens(*words(number), interval=0.1), done()]


def for_three_seconds(exchange: Exchange) -> Script:
    number = exchange.json["messages"][0]["content"]
    return [tokens(*words(number, 30), interval=0.1), done()]


def address(upstream: ScriptedUpstream, number: object = 0, path: str = "/chat") -> str:
    return f"{path}?number={number}&url={quote(upstream.url)}"


class Reader:
    """Reads a stream in a thread, and comes back until it is complete."""

    def __init__(self, url: str, retries: int = 8) -> None:
        self.text = ""
        self.begun = threading.Event()
        self.failed: Optional[BaseException] = None
        #: The worker that has answered each of its requests.
        self.workers: List[str] = []
        self._session = requests.Session()
        self._session.hooks["response"].append(self._note)
        self._client = StreamClient(url, session=self._session, retries=retries, idle_timeout=15)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _note(self, response: requests.Response, **kwargs: Any) -> None:
        self.workers.append(response.headers.get("Worker", str(response.status_code)))

    def _run(self) -> None:
        try:
            with self._session, self._client as client:
                for piece in client.text():
                    self.text += piece
                    self.begun.set()
        except BaseException as error:
            self.failed = error

    @property
    def location(self) -> str:
        assert self._client.response is not None
        return self._client.response.headers["Content-Location"]

    def join(self) -> str:
        self._thread.join(30)
        assert not self._thread.is_alive(), self.text
        assert self.failed is None, (self.failed, self.workers, self.text)
        return self.text


@pytest.mark.parametrize("worker", WORKERS)
def test_reload_loses_and_doubles_nothing(
    worker: str, tmp_path: Path, noticed: Callable[[str], None]
) -> None:
    with ScriptedUpstream(slowly) as upstream, serve(tmp_path, worker) as server:
        began = time.monotonic()
        readers = {n: Reader(server.url + address(upstream, n)) for n in range(14)}
        wait_until(lambda: all(reader.begun.is_set() for reader in readers.values()), 10)
        follow = [(n, Reader(urljoin(server.url, readers[n].location))) for n in range(6)]
        wait_until(lambda: all(reader.begun.is_set() for _, reader in follow), 10)
        first = set(server.worker_pids())
        os.kill(server.pid, signal.SIGHUP)
        # The second time it is followers that go, whose writers are in another worker.
        wait_until(lambda: all(len(reader.workers) > 1 for reader in readers.values()), 10)
        (one, *_) = set(server.worker_pids()) - first
        os.kill(one, signal.SIGTERM)
        for n, reader in list(readers.items()) + follow:
            assert reader.join() == "".join(words(str(n)))
        took = time.monotonic() - began
        times = [len(reader.workers) for reader in readers.values()]
        noticed(f"{sum(times)} requests of 14 readers, {took:.1f} s for answers of 5 s")
        assert max(times) > 2
        assert upstream.requests == 14, "nothing was asked for twice"
        assert all(exchange.completed for exchange in upstream.exchanges)
        # A worker that is stopped while it boots does not notice: wait for the one in place of *one*.
        gone = first | {one}
        wait_until(lambda: len(server.worker_pids()) == 2 and not gone & set(server.worker_pids()), 10)
        assert "Traceback" not in server.log() and "SIGKILL" not in server.log(), server.log()


@contextlib.contextmanager
def opened(server: LiveServer, path: str, **request: Any) -> Iterator[StreamReader]:
    reader = server.request(path, **request)
    with contextlib.closing(reader.sock):
        yield reader


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
            assert reader.complete and events_of(body)[-1].event is None and took < 5
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
        for _ in range(6):
            requests.get(server.url + "/pid", headers={"Connection": "close"})
        assert reader.join() == "".join(words("7", 30))
        assert upstream.requests == 1
        if workers == 1:
            assert len(reader.workers) == 1
        else:
            assert len(reader.workers) > 1
        wait_until(lambda: set(server.worker_pids()) - old, 10, "another worker")


def test_connections_are_rotated_before_they_get_old(
    tmp_path: Path, noticed: Callable[[str], None]
) -> None:
    with ScriptedUpstream(for_three_seconds) as upstream, serve(tmp_path, "gevent", max_age=1.2) as server:
        readers = {n: Reader(server.url + address(upstream, n)) for n in range(6)}
        with opened(server, address(upstream, 6)) as reader:
            pieces = list(reader)
            age = pieces[-1][0] - reader.head_at
            assert reader.complete
        for n, each in readers.items():
            assert each.join() == "".join(words(str(n), 30))
            assert len(each.workers) >= 2
        noticed(f"a connection of max_age 1.2 s sent its last event after {age:.2f} s")
        assert 0.8 < age < 1.4
        assert upstream.requests == 7


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
