"""The log in Redis outlives a server that dies, hangs, has no memory left or does not let it in."""

from __future__ import annotations

import time
from typing import Any, Callable, List

import pytest
from redis_servers import Server, begin

from flask_llmstream.eventlog.redis import RedisEventLog
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.testing.logs import follow, together

pytest.importorskip("redis", reason="needs the extra redis")


def every_call(log: RedisEventLog, stream: str) -> List[Callable[[], Any]]:
    return [
        lambda: begin(log),
        lambda: log.append(stream, 1, [b"x"]),
        lambda: log.seal(stream, "finished"),
        lambda: log.read(stream, 0),
        lambda: log.wait(stream, 0, 5),
        lambda: log.request_stop(stream),
        lambda: log.claim("key", stream, 60),
        lambda: log.renew("w", 60),
    ]


def test_server_that_is_gone_and_comes_back(server: Server, make: Any) -> None:
    log = make(f"redis://user:secret@127.0.0.1:{server.port}/0?timeout=0.5")
    log = make()
    stream = begin(log)
    assert log.append(stream, 1, [b"x"])
    server.kill()
    for call in every_call(log, stream):
        began = time.monotonic()
        with pytest.raises(LogUnavailable, match=r"redis://127\.0\.0\.1.* cannot be used: .*[Cc]onnect"):
            call()
        assert time.monotonic() - began < 5
    server.start()
    # It kept nothing. Connections that died with it are in nobody's way.
    assert log.read(stream, 0) is None
    assert not log.append(stream, 2, [b"y"])
    stream = begin(log)
    assert log.append(stream, 1, [b"x"]) and log.seal(stream, "finished")
    assert follow(log, stream) == ([b"x"], "finished")


def test_restart_between_two_calls_is_not_noticed(server: Server, make: Any) -> None:
    log = make()
    together([lambda: log.renew("w", 60)] * 8)
    server.kill()
    server.start()
    log.renew("w", 60)
    assert begin(log)


def test_server_without_memory(server: Server, make: Any) -> None:
    log = make()
    streams = [begin(log) for _ in range(3)]
    log.append_many([(stream, 1, [b"x"]) for stream in streams])
    server.say("CONFIG", "SET", "maxmemory-policy", "noeviction")
    server.say("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(LogUnavailable, match="out of memory; raise maxmemory"):
            log.append_many([(stream, 2, [b"y"]) for stream in streams])
        with pytest.raises(LogUnavailable, match="out of memory"):
            begin(log)
        page = log.read(streams[0], 0)
        assert page is not None and page.entries == [b"x"]
    finally:
        server.say("CONFIG", "SET", "maxmemory", "0")
    for stream in streams:
        assert log.append(stream, 2, [b"y"])
        page = log.read(stream, 0)
        assert page is not None and page.entries == [b"x", b"y"]


def test_replica_refuses_to_be_written(server: Server, make: Any) -> None:
    log = make()
    stream = begin(log)
    server.say("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(LogUnavailable, match="this is a replica; name the primary"):
            log.append(stream, 1, [b"x"])
    finally:
        server.say("REPLICAOF", "NO", "ONE")
    assert log.append(stream, 1, [b"x"])


def test_server_that_hangs_costs_one_timeout(server: Server, make: Any) -> None:
    log = make(server.hasty_url)
    stream = begin(make())
    server.hang()
    try:
        for call in every_call(log, stream):
            began = time.monotonic()
            with pytest.raises(LogUnavailable, match="no answer within 0.5 s"):
                call()
            assert 0.4 < time.monotonic() - began < 5.0
    finally:
        server.go_on()
    # Whether it took what it was sent in that time, nobody can say.
    assert log.append(begin(log), 1, [b"x"])


def test_stream_that_fails_loses_no_other(server: Server, make: Any) -> None:
    log = make()
    broken, stream = begin(log), begin(log)
    server.say("SET", f"llmstream:{{{broken}}}:log", "something else")
    for _ in range(2):
        with pytest.raises(LogUnavailable, match="something else uses its keys"):
            log.append_many([(broken, 1, [b"x"]), (stream, 1, [b"x"])])
    page = log.read(stream, 0)
    assert page is not None and page.entries == [b"x"]


def test_wrong_password_is_not_shown(server: Server, make: Any) -> None:
    log = make(f"redis://:hush%40hush@127.0.0.1:{server.port}/0")
    server.say("CONFIG", "SET", "requirepass", "other")
    try:
        with pytest.raises(LogUnavailable) as caught:
            log.renew("w", 60)
    finally:
        make(f"redis://:other@127.0.0.1:{server.port}/0")._now.run([("CONFIG", "SET", "requirepass", "")])
    assert "hush" not in str(caught.value) + repr(log)
