"""Calls of the log in Redis: they share connections, cost little, and leave nothing behind when cut short."""

from __future__ import annotations

import gc
import os
import random
import time
from functools import partial
from typing import Any, List

import pytest
from redis_servers import Server, begin

from flask_llmstream.eventlog import Page, redis_client
from flask_llmstream.eventlog.redis import RedisEventLog
from flask_llmstream.exceptions import LogUnavailable, StreamCancelled
from flask_llmstream.runtime import current_runtime
from flask_llmstream.testing.logs import new_id, together

pytest.importorskip("redis", reason="needs the extra redis")


def test_cancelled_call_leaves_no_reply_behind(server: Server, make: Any) -> None:
    """An exception that is no error, thrown in the middle of a reply."""
    log = make()
    stream = begin(log)
    log.append(stream, 1, [b"x" * 100000])
    clients = log._now._clients
    (client,) = clients._idle
    (connection,) = client.connection_pool._available_connections
    read = connection.read_response

    def cancelled(*arguments: Any, **options: Any) -> Any:
        connection.read_response = read
        raise StreamCancelled("stop")

    connection.read_response = cancelled
    with pytest.raises(StreamCancelled):
        log.read(stream, 0)
    assert clients._idle == [], "nobody uses it again"
    for _ in range(3):
        page = log.read(stream, 0)
        assert page is not None and page.entries == [b"x" * 100000]


def test_calls_wait_for_one_another(server: Server, make: Any) -> None:
    patient = make(f"{server.url}?connections=2&timeout=10")
    assert together([partial(patient.claim, new_id(), "ab", 60.0)] * 40) == ["ab"] * 40
    assert sorted(patient._now._clients._free) == [0, 1] and len(patient._now._clients._idle) <= 2
    log = make(f"{server.url}?connections=2&timeout=1")
    stream = begin(log)
    server.hang()
    try:
        began = time.monotonic()
        for error in together([partial(failure, log, stream)] * 6):
            assert "no answer within 1 s" in str(error) or "all 2 connections are busy" in str(error)
        assert time.monotonic() - began < 5
    finally:
        server.go_on()
    assert sorted(log._now._clients._free) == [0, 1]
    assert log.read(stream, 0) == Page(1, [], 0, "open")


def failure(log: RedisEventLog, stream: str) -> LogUnavailable:
    """Return what reading raises."""
    with pytest.raises(LogUnavailable) as caught:
        log.read(stream, 0)
    return caught.value


# redis-py drops a socket that it was just connecting, and the interpreter closes it.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_greenlets_that_are_cancelled_take_nothing_with_them(server: Server, make: Any) -> None:
    """Neither half a reply, nor a place among the calls that may be made."""
    if current_runtime().name != "gevent":
        return  # runs in the interpreter of test_contract_is_kept_on_greenlets
    import gevent

    log = make()
    streams = {begin(log, max_bytes=1 << 24): b"%d" % number * 60000 for number in range(4)}
    log.append_many([(stream, 1, [entry] * 20) for stream, entry in streams.items()])
    cancelled = 0
    hub = gevent.get_hub()
    hub.NOT_ERROR = (*hub.NOT_ERROR, StreamCancelled)
    for _ in range(60):
        readers = [gevent.spawn(log.read, random.choice(list(streams)), 0) for _ in range(6)]
        gevent.sleep(random.random() * 0.01)
        for reader in readers:
            if not reader.ready():
                cancelled += 1
                hub.loop.run_callback(reader.throw, StreamCancelled("stop"))
        gevent.joinall(readers)
        for stream, entry in streams.items():
            page = log.read(stream, 0)
            assert page is not None and set(page.entries) == {entry}
    print(f"{cancelled} readers were cancelled")
    assert cancelled > 10
    assert len(log._now._clients._free) == redis_client.CONNECTIONS
    # Sockets that were being connected are let go by the loop, and must not be found by the next test.
    del reader, readers
    for _ in range(3):
        gevent.sleep(0.01)
        gc.collect()


def test_child_of_a_fork_has_connections_of_its_own(server: Server, make: Any) -> None:
    log = make()
    stream = begin(log)
    log.append(stream, 1, [b"x"])
    log.wait(stream, 1, 0.2)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            page = log.read(stream, 0)
            log.wait(stream, 1, 0.1)
            status = 0 if page is not None and page.entries == [b"x"] and log.append(stream, 2, [b"y"]) else 2
            log.close()
        finally:
            os._exit(status)
    for _ in range(50):
        assert log.read(stream, 0) is not None
    assert os.waitpid(pid, 0)[1] == 0
    page = log.read(stream, 0)
    assert page is not None and page.entries == [b"x", b"y"]


def test_cost_of_an_entry(server: Server, make: Any) -> None:
    log = make()
    streams = [begin(log) for _ in range(20)]
    entry = b'{"delta": "some words of an answer"}'
    batches = 40
    for size in (1, 50):
        cpu, began = time.process_time(), time.monotonic()
        for number in range(batches):
            first = number * size + 1 + (0 if size == 1 else batches)
            log.append_many([(stream, first, [entry] * size) for stream in streams])
        count = batches * size * len(streams)
        print(
            f"batches of {size} over 20 streams: {1e6 * (time.process_time() - cpu) / count:.1f} us of CPU,"
            f" {1e6 * (time.monotonic() - began) / count:.1f} us in all per entry"
        )
    assert len(follow_open(log, streams[0])) == batches * 51


def follow_open(log: RedisEventLog, stream: str) -> List[bytes]:
    found: List[bytes] = []
    while True:
        page = log.read(stream, len(found))
        assert page is not None
        found += page.entries
        if not page.entries:
            return found
