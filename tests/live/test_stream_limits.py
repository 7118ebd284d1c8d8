"""Limits on streams: who is refused, how, and that every end gives a place back, once."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import time
from typing import Any, Dict, Iterator, List, Optional
from urllib.parse import quote

import flask.globals
import pytest
from asking import APPS, ask, events_of

from flask_llmstream.client import StreamClient
from flask_llmstream.exceptions import StreamRefused
from flask_llmstream.testing import LiveServer, ScriptedUpstream, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import silence, tokens

pytestmark = pytest.mark.live

ADA = {"Authorization": "Bearer ada"}


@contextlib.contextmanager
def serving(worker: str, folder: Any, workers: int, **settings: Any) -> Iterator[LiveServer]:
    settings["shared_dir"] = str(folder / "shared")
    settings["event_log"] = f"sqlite:///{folder}/streams.db"
    with gunicorn_server(
        APPS / "limited.py", worker, workers, threads=16, env={"SETTINGS": json.dumps(settings)}
    ) as server:
        yield server
        assert "Exception ignored" not in server.log(), server.log()[-5000:]


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One worker with two places."""
    with serving(request.param, tmp_path_factory.mktemp("small"), 1, max_streams=2) as server:
        yield server


@pytest.fixture(scope="module", params=["gevent", pytest.param("gthread", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Two workers and two places for each owner."""
    folder = tmp_path_factory.mktemp("pair")
    with serving(request.param, folder, 2, max_streams=99, max_streams_per_owner=2) as server:
        yield server


class Crowd:
    """Streams that a test has open."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.readers: List[StreamReader] = []

    def ask(self, path: str, **request: Any) -> int:
        """Return the status of the answer, which stays open."""
        reader = self.server.request(path, **request)
        self.readers.append(reader)
        return reader.status

    def join(self, path: str, **request: Any) -> int:
        """Begin a stream; return the process that serves it."""
        assert self.ask(path, **request) == 200
        data = b"".join(piece for _, piece in self.readers[-1].read_until(b">"))
        found = re.search(rb"<(\d+)>", data)
        assert found, data
        return int(found.group(1))

    def leave(self, number: int = 0) -> None:
        self.readers.pop(number).sock.close()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *exc_info: object) -> None:
        while self.readers:
            self.leave()


def running(server: LiveServer) -> int:
    count: int = ask(server, "/counts")["running"]
    return count


def assert_refused(reader: StreamReader, status: int, code: str) -> None:
    assert reader.status == status, reader.read()
    assert 2 <= int(reader.headers["retry-after"]) <= 6
    assert reader.headers["cache-control"] == "no-store"
    error = json.loads(reader.read().decode())["error"]
    assert (error["code"], error["retryable"]) == (code, True) and error["message"]


def stop(server: LiveServer, crowd: Crowd) -> None:
    """Stop what would go on when its reader has left."""
    place = crowd.readers[0].headers.get("content-location")
    if place:
        with server.request(place, method="DELETE") as reader:
            assert reader.status == 204


def wait_for(server: LiveServer, count: int, seconds: float = 5.0) -> None:
    last: List[int] = []
    wait_until(
        lambda: last.append(running(server)) or last[-1] == count, seconds, lambda: f"{count} streams: {last}"
    )


def test_full_worker_refuses_in_every_form(small: LiveServer, upstream: ScriptedUpstream) -> None:
    upstream.script = [tokens("a"), silence()]
    url = f"/relayed?url={quote(upstream.url + '/chat/completions')}"
    wait_for(small, 0)
    for first, second in [("/plain", "/legacy"), ("/kept", None), ("/route", "/route")]:
        with Crowd(small) as crowd:
            crowd.join(first)
            if second is None:
                assert crowd.ask(url) == 200
            else:
                crowd.join(second)
            before = ask(small, "/counts")
            assert before["running"] == 2
            for path in ("/plain", "/legacy", "/kept", url, "/route"):
                with small.request(path) as reader:
                    assert_refused(reader, 503, "busy")
                    # A page of elsewhere must be able to read it.
                    assert ("access-control-allow-origin" in reader.headers) is (path == "/legacy")
            with small.request("/plain", method="HEAD") as reader:
                assert reader.status == 200, "nothing would run"
            after = ask(small, "/counts")
            if importlib.util.find_spec("blinker"):  # the server's Python is ours
                assert after["worker"] - before["worker"] == 5
            assert {key: after[key] for key in ("running", "began", "started")} == {
                key: before[key] for key in ("running", "began", "started")
            }, "the source of a refused stream was begun"
            stop(small, crowd)
        wait_for(small, 0, 10.0)
    assert small.log().count("streams are refused: this worker has 2") == 1, "once a minute is enough"


def test_each_end_gives_its_place_back_once(small: LiveServer) -> None:
    wait_for(small, 0, 10.0)
    for path in ("/plain", "/legacy", "/kept", "/detached"):
        for how in ("short", "error"):
            with small.request(f"{path}?how={how}") as reader:
                with contextlib.suppress(ConnectionError):
                    reader.read()
        with small.request(path, method="HEAD"):
            pass
        wait_for(small, 0)
    with Crowd(small) as crowd:
        crowd.join("/plain")
        crowd.join("/legacy")
    wait_for(small, 0)
    with Crowd(small) as crowd:
        began = time.monotonic()
        crowd.join("/kept?seconds=0.8")
        crowd.join("/detached?seconds=0.8")
    wait_for(small, 0)
    assert time.monotonic() - began >= 0.8, "its source goes on, and so it holds its place"
    # Before 2.2 Flask itself cannot bear it: the contexts of what is thrown away are torn down in others.
    for how in ("plain", "resumable") if hasattr(flask.globals, "_cv_app") else ():
        with small.request(f"/thrown/{how}") as reader:
            assert reader.read() == b"200 200 200 200"
        wait_for(small, 0)
    with Crowd(small) as crowd:  # had one been given back twice, there would be more than two
        assert [crowd.ask("/plain") for _ in range(4)] == [200, 200, 503, 503]
    wait_for(small, 0)


def test_who_comes_back_counts_for_the_worker_and_is_asked_to_wait(small: LiveServer) -> None:
    wait_for(small, 0, 10.0)
    with Crowd(small) as crowd:
        crowd.join("/kept")
        place = crowd.readers[0].headers["content-location"]
        assert crowd.ask(place) == 200 and running(small) == 2
        with small.request(place) as reader:
            assert_refused(reader, 503, "busy")
        # An EventSource never comes back from a 503: it is told when, and with which cursor.
        with small.request(place, headers={"Accept": "text/event-stream"}) as reader:
            assert reader.status == 200
            data = reader.read()
        assert int(re.findall(rb"retry: (\d+)", data)[0]) in range(2000, 6001, 1000) and b"id: " in data
        assert events_of(data)[-1].event == "stream"
        assert running(small) == 2
        stop(small, crowd)
    wait_for(small, 0, 10.0)


def test_our_client_is_told_when_to_ask_again_and_waits_before_it_comes_back(small: LiveServer) -> None:
    wait_for(small, 0, 10.0)
    waits: List[float] = []
    with Crowd(small) as crowd:
        crowd.join("/kept")
        place = crowd.readers[0].headers["content-location"]
        with StreamClient(small.url + place) as client:
            last = [event for _, event in zip(range(4), client)][-1].id
        wait_for(small, 1)
        crowd.join("/plain")
        with pytest.raises(StreamRefused) as refused:
            StreamClient(small.url + "/plain", json={}).open()
        assert refused.value.status == 503 and 2 <= (refused.value.retry_after or 0) <= 6

        def make_room(seconds: float) -> None:
            waits.append(seconds)
            crowd.leave(1)
            wait_for(small, 1)

        began = ask(small, "/counts")["began"]
        with StreamClient(small.url + "/plain?how=short", json={}, retries=3, sleep=make_room) as client:
            assert "".join(client.text()).endswith(">")
        assert ask(small, "/counts")["began"] == began + 1
        wait_for(small, 1)
        crowd.join("/plain")

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            crowd.leave(1)
            wait_for(small, 1)
            stop(small, crowd)

        with StreamClient(small.url + place, last_event_id=last, retries=3, sleep=sleep) as client:
            assert "tick" in "".join(client.text()) and client.finish_reason == "cancelled"
    assert len(waits) == 2 and min(waits) >= 2
    wait_for(small, 0)


def spread(crowd: Crowd, path: str, headers: Optional[Dict[str, str]]) -> List[int]:
    """Have two streams run, one in each worker; return their processes."""
    pids: List[int] = []

    def look() -> bool:
        if len(pids) == 2:
            del pids[0]
            crowd.leave()
        while len(pids) < 2:
            try:
                pids.append(crowd.join(path, headers=headers))
            except AssertionError:  # who has left holds the place for a moment
                crowd.leave(-1)
                return False
        return pids[0] != pids[1]

    wait_until(look, 20.0, lambda: f"one stream in each worker: {pids}")
    return pids


@contextlib.contextmanager
def eventually_joined(server: LiveServer, path: str, headers: Optional[Dict[str, str]]) -> Iterator[None]:
    """Wait until there is a place, and keep it for the block."""
    with Crowd(server) as crowd:

        def look() -> bool:
            if crowd.ask(path, headers=headers) == 200:
                return True
            crowd.leave()
            return False

        wait_until(look, 10.0, "a place")
        yield


@pytest.mark.parametrize("path, headers, status, code", [
    pytest.param("/plain", ADA, 429, "too_many_streams", id="owner"),
    pytest.param("/legacy", ADA, 429, "too_many_streams", id="owner-of-legacy"),
    pytest.param("/route", None, 503, "busy", id="route", marks=pytest.mark.slow),
])
def test_limit_of_owners_and_routes_holds_across_workers(
    pair: LiveServer, path: str, headers: Optional[Dict[str, str]], status: int, code: str
) -> None:
    with Crowd(pair) as crowd:
        pids = spread(crowd, path, headers)
        for _ in range(6):
            with pair.request(path, headers=headers) as reader:
                assert_refused(reader, status, code)
        with Crowd(pair) as others:
            assert others.ask("/plain", headers={"Authorization": "Bearer bob"}) == 200
            assert [others.ask("/plain") for _ in range(4)] == [200] * 4, "nobody in particular"
        crowd.leave()
        with eventually_joined(pair, path, headers):
            with pair.request(path, headers=headers) as reader:
                assert_refused(reader, status, code)
    # Killed without a word, a worker takes its places with it; those of the other stay.
    with Crowd(pair) as crowd:
        pids = spread(crowd, path, headers)
        os.kill(pids[0], signal.SIGKILL)
        with eventually_joined(pair, path, headers):
            with pair.request(path, headers=headers) as reader:
                assert_refused(reader, status, code)
    wait_until(lambda: len(pair.worker_pids()) == 2 and pids[0] not in pair.worker_pids(), 10.0, "its heir")


def test_owner_who_has_read_the_end_may_ask_again_at_once(pair: LiveServer) -> None:
    with eventually_joined(pair, "/plain", ADA), Crowd(pair) as crowd:
        wait_until(lambda: one_short(pair) == 200, 5.0, "the other place")
        assert [one_short(pair) for _ in range(30)] == [200] * 30
        crowd.join("/plain", headers=ADA)
        assert one_short(pair) == 429


def one_short(server: LiveServer) -> int:
    with server.request("/plain?how=short", headers=ADA) as reader:
        reader.read()
        return reader.status


def test_owner_is_not_locked_out_of_answers_that_are_being_written(pair: LiveServer) -> None:
    first, second = (dict(ADA, **{"Idempotency-Key": f"key-{each}-{os.getpid()}"}) for each in "ab")
    with Crowd(pair) as crowd:
        with eventually_joined(pair, "/plain", ADA):
            wait_until(lambda: one_short(pair) == 200, 5.0, "the other place")
            crowd.join("/kept", method="POST", headers=first)
            place = crowd.readers[0].headers["content-location"]
            with pair.request("/kept", method="POST", headers=second) as reader:
                assert_refused(reader, 429, "too_many_streams")
            for path, method in [("/kept", "POST"), (place, "GET")]:
                assert crowd.ask(path, method=method, headers=first) == 200
                assert crowd.readers[-1].headers["content-location"] == place
        wait_until(lambda: one_short(pair) == 200, 5.0, "the other place")
        crowd.join("/kept", method="POST", headers=second)
        assert crowd.readers[-1].headers["content-location"] != place, "what was refused is begun now"
    pair.request(place, method="DELETE", headers=ADA).sock.close()
