"""What the log in Redis leaves in the server: bounded, for a time, and in one slot for each stream."""

from __future__ import annotations

import os
from typing import Any, Set

import pytest
from redis_servers import SLOTS, Server, begin

from flask_llmstream.eventlog import redis
from flask_llmstream.testing.logs import new_id

pytest.importorskip("redis", reason="needs the extra redis")


def test_everything_has_a_time_to_live(server: Server, make: Any) -> None:
    server.say("FLUSHALL")
    log = make()
    stream, ended = begin(log), begin(log, keep=30.0)
    log.append_many([(stream, 1, [b"x"]), (ended, 1, [b"x"])])
    log.request_stop(stream)
    log.claim("key", stream, 60)
    log.renew("w", 60)
    log.seal(ended, "finished")
    log.seal(ended, "finished")
    left = {key.decode(): server.say("TTL", key) for key in server.say("KEYS", "*")}
    assert len(left) == 6 and all(0 < each <= 86400 for each in left.values()), left
    for key in left:
        if ended in key:
            assert left[key] <= 30
    assert all("key" not in key.split(":") for key in left), "what somebody chose is not shown"


def test_what_comes_behind_the_seal_keeps_nothing_for_longer(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request to stop, and an append that has a stream live on, while another process seals it."""
    monkeypatch.setattr(redis, "RENEWED_AFTER", -1.0)
    server.say("FLUSHALL")
    log, other = make(), make()
    stopped, sealed, gone = (begin(log, keep=30.0) for _ in range(3))
    fetch = other._now.fetch

    def ends_then(stream: str, after: int, limit: int) -> Any:
        page = fetch(stream, after, limit)
        assert log.seal(stream, "finished")
        if stream == gone:
            server.say("DEL", *(f"llmstream:{{{stream}}}:{key}" for key in ("log", "meta")))
        return page

    monkeypatch.setattr(other._now, "fetch", ends_then)
    assert not other.request_stop(stopped), "it has ended"
    assert not other.request_stop(gone)
    log.append(sealed, 1, [b"x"])
    other._now.seal(sealed, "interrupted")
    assert not log.append(sealed, 2, [b"y"])
    left = {key.decode(): server.say("TTL", key) for key in server.say("KEYS", "*{*")}
    assert len(left) == 5 and all(0 < each <= 30 for each in left.values()), left


def test_bytes_in_the_server_are_bounded(server: Server, make: Any) -> None:
    log, other = make(), make()
    stream = begin(log, max_bytes=100000, max_events=100000)
    number = 1
    for turn in range(100):
        entries = [os.urandom(100)] * 50
        # Another process may go on with it.
        assert (other if turn % 10 == 9 else log).append(stream, number, entries)
        number += 50
    size = server.say("MEMORY", "USAGE", f"llmstream:{{{stream}}}:log", "SAMPLES", 0)
    print(f"{size} bytes for 100,000")
    assert size < 250000


def test_append_that_was_half_done_is_completed(server: Server, make: Any) -> None:
    log, other = make(), make()
    streams = [begin(log) for _ in range(3)]
    other.append(streams[1], 1, [b"a", b"b"])
    other.append(streams[2], 1, [b"a"])
    assert log.append_many([(stream, 1, [b"a", b"b", b"c"]) for stream in streams]) == []
    for stream in streams:
        page = log.read(stream, 0)
        assert page is not None and page.entries == [b"a", b"b", b"c"]


def test_layout_has_one_slot_per_stream() -> None:
    from flask_llmstream.eventlog.redis_layout import Keys

    keys, stream = Keys("some:prefix"), new_id()
    names = [keys.log(stream), keys.meta(stream), keys.news(stream)]
    assert len({slot(name) for name in names}) == 1
    assert slot("123456789") == 0x31C3 % SLOTS, "the value that the specification gives"
    assert keys.stream_of(keys.news(stream).encode()) == stream
    others: Set[int] = {slot(keys.log(new_id())) for _ in range(50)}
    assert len(others) > 25, "streams are spread"


def slot(key: str) -> int:
    """Return the slot of *key*, as the specification of Redis Cluster says."""
    tag = key.partition("{")[2].partition("}")[0]
    crc = 0
    for byte in (tag or key).encode():
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ (0x1021 if crc & 0x8000 else 0)
    return (crc & 0xFFFF) % SLOTS
