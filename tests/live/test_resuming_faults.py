"""Resumable streams when something dies: a worker, a log, a server; and when a thousand follow one."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple
from urllib.parse import quote

import pytest
from asking import events_of, text_of
from coming_back import Cuts, CuttingProxy, chat, end_of, in_background, stream_client, together, words_of
from redis_servers import Server as RedisServer
from resumed import begin, free_port, last_id, nginx_before, read_all, serving

from flask_llmstream.client import StreamClient
from flask_llmstream.exceptions import StreamFailed
from flask_llmstream.testing import ScriptedUpstream, send_request, wait_until

pytestmark = [pytest.mark.live, pytest.mark.timeout(180)]

CUTS = 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_killed_worker(
    talker: ScriptedUpstream, log_urls: Callable[[str], str], kind: str, noticed: Callable[[str], None]
) -> None:
    with serving(talker, log_urls(kind), 2) as server:
        model = f"{kind}killed-2000-50"
        reader, place, data = begin(server, model)
        victim = int(reader.headers["x-worker"])
        time.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        began = time.monotonic()
        data += reader.read()
        reader.close()
        assert not reader.complete

        def come_back(headers: Dict[str, str]) -> Tuple[bytes, float]:
            rest = read_all(server, place, headers=headers, timeout=20)
            return rest, time.monotonic() - began

        heads: List[Dict[str, str]] = [{"Last-Event-ID": last_id(data)}, {}, {}]
        results = together([functools.partial(come_back, each) for each in heads])
        assert not [each for each in results if isinstance(each, BaseException)], results
        seen = text_of(data.partition(b"\n\n")[2])
        for number, (rest, took) in enumerate(results):
            name, said = end_of(events_of(rest))
            assert name == "failed" and said["code"] == "interrupted" and said["retryable"] is True
            assert took < 16.0
            text = "".join(
                json.loads(event.data)["text"] for event in events_of(rest) if event.event is None
            )
            if number:
                assert "".join(words_of(model)).startswith(text) and len(text) + 60 > len(seen)
            with server.request(place, headers={"Last-Event-ID": last_id(rest)}) as answer:
                assert answer.status == 204
        noticed(f"{kind}: interrupted was said {max(took for _, took in results):.1f} s after the kill")


def lose_sqlite(path: str) -> Callable[[], None]:
    """Lock the file; return what gives it back."""
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    lock.execute("BEGIN EXCLUSIVE")

    def give_back() -> None:
        lock.execute("ROLLBACK")
        lock.close()

    return give_back


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("redis", marks=pytest.mark.slow)])
def test_a_lost_log_ends_no_stream(
    talker: ScriptedUpstream, log_urls: Callable[[str], str], lasting_redis: RedisServer, kind: str
) -> None:
    log = log_urls(kind)
    with serving(talker, log + ("?timeout=0.5" if kind == "sqlite" else ""), 1) as server:
        model = f"{kind}lost-40-50"
        reader, place, data = begin(server, model)
        give_back = lose_sqlite(log.partition("://")[2][1:]) if kind == "sqlite" else lasting_redis.start
        if kind == "redis":
            lasting_redis.kill()
        try:
            began = time.monotonic()
            with server.request(chat(f"{kind}unlogged-5-10"), timeout=20) as unlogged:
                assert unlogged.status == 200 and "content-location" not in unlogged.headers
                whole = unlogged.read()
                assert text_of(whole.partition(b"event:")[0]) == "".join(words_of(f"{kind}unlogged-5-10"))
                assert b"id:" not in whole
            assert time.monotonic() - began < 5.0
            with server.request(place, timeout=20) as refused:
                # A locked file can be read.
                assert refused.status == (200 if kind == "sqlite" else 503)
                assert kind == "sqlite" or "retry-after" in refused.headers
            if kind == "redis":
                # As an EventSource asks, which would take 503 for the end.
                heads = {"Accept": "text/event-stream", "Last-Event-ID": last_id(data)}
                for path in (place, chat(model)):
                    with server.request(path, headers=heads, timeout=20) as asked:
                        assert asked.status == 200
                        body = asked.read()
                    (event,) = events_of(body)
                    assert (event.event, event.id) == ("stream", last_id(data))
                    assert body.startswith(b"event: stream\n") and b"\nretry: 2000\n" in body
                    assert json.loads(event.data) == {"url": place}
            data += reader.read()
            assert reader.complete
            reader.close()
            texts = [json.loads(each.data)["text"] for each in events_of(data) if each.event is None]
            assert "".join(texts) == "".join(words_of(model))
            lines = [line for line in server.log().splitlines() if "streams go on" in line]
            assert len(lines) == 1, lines
        finally:
            give_back()
        wait_until(lambda: "can be used again" in server.log(), 10, "the log to be used again")
        model = f"{kind}again-10-20"
        reader, place, data = begin(server, model)
        reader.close()
        rest = read_all(server, place, headers={"Last-Event-ID": last_id(data)})
        assert end_of(events_of(rest))[1]["reason"] == "stop"


@pytest.mark.timing
@pytest.mark.slow
def test_redis_is_restarted_under_a_run_of_readers(
    talker: ScriptedUpstream, lasting_redis: RedisServer, noticed: Callable[[str], None]
) -> None:
    with serving(talker, lasting_redis.url, 4) as server:
        models = [f"restart{number}-100-80" for number in range(60)]

        def read(number: int) -> str:
            path = server.url + chat(models[number])
            return stream_client(path, f"r{number}", post=bool(number % 2))[0]

        def restart() -> str:
            time.sleep(2.0)
            lasting_redis.kill()
            time.sleep(1.5)
            lasting_redis.start()
            return ""

        cuts = Cuts(CUTS, least=400, most=1500)
        with CuttingProxy(server.address, cuts) as proxy:

            def read_cut(number: int) -> str:
                return stream_client(
                    proxy.url + chat(models[number]), f"c{number}", post=bool(number % 2), retries=200
                )[0]

            jobs: List[Callable[[], str]] = [restart]
            jobs += [functools.partial(read if number < 30 else read_cut, number) for number in range(60)]
            results = together(jobs)[1:]
        exact = [text == "".join(words_of(model)) for text, model in zip(results, models)]
        noticed(f"{sum(exact)} of {len(exact)} readers have the exact text")
        faults = [each for each in results if isinstance(each, BaseException)]
        assert not faults, (len(faults), faults[:3])
        assert all(exact)


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_two_servers_behind_nginx_one_is_restarted_and_one_is_killed(
    talker: ScriptedUpstream, log_urls: Callable[[str], str], tmp_path: Path, kind: str,
    noticed: Callable[[str], None],
) -> None:
    log = log_urls(kind)
    count = 60
    ports = [free_port(), free_port()]
    killed_writers: List[str] = []
    with contextlib.ExitStack() as stack:

        def start(number: int) -> Any:
            return stack.enter_context(serving(
                talker, log, 2, config_lines=f"bind = '127.0.0.1:{ports[number]}'\ngraceful_timeout = 14"
            ))

        first, second = start(0), start(1)
        url = stack.enter_context(nginx_before(tmp_path, ports))

        def read(number: int) -> Tuple[str, str]:
            model = f"{kind}two{number}-70-80"
            client = StreamClient(
                url + chat(model), json={}, retries=300, idle_timeout=30,
                sleep=lambda seconds: time.sleep(min(seconds, 0.2)),
            )
            found: List[str] = []
            try:
                with client:
                    found.extend(client.text())
            except StreamFailed as error:
                return "".join(found), error.code
            return "".join(found), "done"

        def disturb() -> Tuple[str, str]:
            time.sleep(2.0)
            with in_background(first.stop):  # SIGTERM, and wait for what runs
                time.sleep(1.0)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(second.pid, signal.SIGKILL)
                second.process.wait()
                start(1)
            start(0)
            return "", ""

        jobs: List[Any] = [disturb] + [functools.partial(read, number) for number in range(count)]
        results = together(jobs, 120.0)
        faults = [each for each in results if isinstance(each, BaseException)]
        assert not faults, (len(faults), faults[:3])
        for number, (text, code) in enumerate(results[1:]):
            whole = "".join(words_of(f"{kind}two{number}-70-80"))
            if code == "done":
                assert text == whole, number
            else:
                assert whole.startswith(text) and text, number
                killed_writers.append(code)
    noticed(f"{count - len(killed_writers)} of {count} complete, {len(killed_writers)} interrupted")
    # Those of the server that was told to go have ended there; their readers have followed the log.
    assert 0 < len(killed_writers) < count and set(killed_writers) == {"interrupted"}


def cpu_of(pids: List[int]) -> float:
    """Return the seconds of CPU that the processes have used."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@pytest.mark.timing
@pytest.mark.slow
def test_a_thousand_followers_cost_what_a_thousand_streams_cost(
    talker: ScriptedUpstream, log_urls: Callable[[str], str], noticed: Callable[[str], None]
) -> None:
    count, events, pause = 1000, 30, 200
    used: Dict[str, float] = {}
    lines = "worker_connections = 3000\naccesslog = None"
    with serving(talker, log_urls("sqlite"), 1, config_lines=lines) as server:
        pids = server.worker_pids()

        def run(what: str, paths: List[str]) -> None:
            reading = selectors.DefaultSelector()
            left: Dict[Any, bytes] = {}
            before = cpu_of(pids)
            for path in paths:
                sock = server.connect()
                send_request(sock, path, headers={"Accept": "text/plain"})
                reading.register(sock, selectors.EVENT_READ)
                left[sock] = b""
            deadline = time.monotonic() + 60
            while left:
                assert time.monotonic() < deadline, f"{len(left)} are not done"
                for key, _ in reading.select(1.0):
                    sock = key.fileobj
                    data = sock.recv(65536)
                    left[sock] += data
                    if not data or left[sock].endswith(b"\r\n0\r\n\r\n"):
                        assert b" 200 " in left[sock][:20]
                        assert f".{events - 1}".encode() in left[sock][-60:], "it has not got all"
                        reading.unregister(sock)
                        sock.close()
                        del left[sock]
            reading.close()
            used[what] = cpu_of(pids) - before

        plain = json.dumps({"resumable": False})
        run("streams", [
            f"/chat?model=cost{number}-{events}-{pause}&options={quote(plain)}" for number in range(count)
        ])
        reader, place, _ = begin(server, f"one-{events}-{pause}")
        with reader:
            run("followers", [place] * count)
    ratio = used["followers"] / used["streams"]
    noticed(
        f"{count} followers of one stream used {used['followers']:.2f} s of CPU, {count} streams"
        f" {used['streams']:.2f} s: {ratio:.2f}"
    )
    assert ratio < 2.0
