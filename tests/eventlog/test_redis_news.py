"""Who waits for a log in Redis is woken, whatever becomes of the connection that the news comes by."""

from __future__ import annotations

import random
import threading
import time
from functools import partial
from typing import Any, List

import pytest
from redis_servers import Server, begin
from untraced import untraced_threads

from flask_llmstream.eventlog import Page
from flask_llmstream.eventlog.redis import RedisEventLog
from flask_llmstream.eventlog.redis_following import Following
from flask_llmstream.runtime import current_runtime
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.logs import follow, together

pytest.importorskip("redis", reason="needs the extra redis")


def test_followers_outlive_a_lost_listener(server: Server, make: Any) -> None:
    log, writer = make(), make()
    heard: List[str] = []
    writer.on_stop(heard.append)
    stream = begin(writer)
    found: List[Any] = []
    thread = threading.Thread(target=lambda: found.append(follow(log, stream)))
    thread.start()
    number = 0
    for _ in range(3):
        wait_until(lambda: "cmd=subscribe" in _clients(server, "pubsub"), 5, "a subscription")
        server.say("CLIENT", "KILL", "TYPE", "pubsub")
        for _ in range(5):
            number += 1
            writer.append(stream, number, [b"%d" % number])
            time.sleep(0.01)
    server.say("CLIENT", "KILL", "TYPE", "pubsub")
    began = time.monotonic()
    assert log.request_stop(stream)
    wait_until(lambda: heard, 10, "the request that was made meanwhile")
    late = 1000 * (time.monotonic() - began)
    print(f"a request to stop was heard {late:.0f} ms after its connection had died")
    writer.seal(stream, "finished")
    thread.join(20)
    assert found == [([b"%d" % each for each in range(1, 16)], "finished")]


def test_listener_that_hears_nothing_asks_and_begins_anew(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_llmstream.eventlog import redis_listener

    monkeypatch.setattr(redis_listener, "SILENCE", 0.2)
    log, writer = make(server.hasty_url), make()
    stream = begin(writer)
    woken: List[float] = []

    def follower() -> None:
        log.wait(stream, 0, 30)
        woken.append(time.monotonic())

    thread = threading.Thread(target=follower)
    thread.start()
    wait_until(lambda: is_known(log, stream), 5, "it to wait")
    connection = log._now.listener._connection
    time.sleep(2.5)
    assert log._now.listener._connection is connection, "it was answered"
    server.hang()
    wait_until(lambda: log._now.listener._connection is None, 10, "the listener to give up")
    server.go_on()
    thread.join(0.5)
    if thread.is_alive():
        writer.append(stream, 1, [b"x"])
    thread.join(10)
    assert not thread.is_alive()


def test_news_that_was_lost_is_found_by_looking(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the way through a cluster, for example; or a request to stop."""
    from flask_llmstream.eventlog import redis_process

    monkeypatch.setattr(redis_process, "LOOK_EVERY", 1)
    log, heard = make(), []  # type: ignore[var-annotated]
    log.on_stop(heard.append)
    stream = begin(log)
    key = f"llmstream:{{{stream}}}"
    server.say("HSET", f"{key}:meta", "stop", "1")
    wait_until(lambda: heard == [stream], 10, "the request to be found")
    woken: List[Any] = []

    def follower() -> None:
        log.wait(stream, 0, 30)
        woken.append(log.read(stream, 0))

    thread = threading.Thread(target=follower)
    thread.start()
    wait_until(lambda: is_known(log, stream), 5, "it to wait")
    server.say("XADD", f"{key}:log", "1-0", "1", "x")
    thread.join(10)
    assert [page.entries for page in woken] == [[b"x"]]
    assert heard == [stream]


def test_no_wake_up_is_lost(server: Server, make: Any) -> None:
    """Whoever sleeps through one here sleeps for twenty seconds."""
    logs = [make(), make()]
    stream = begin(logs[0])
    expected = [b"%d" % number for number in range(200)]

    def write() -> None:
        chance = random.Random()
        for number, entry in enumerate(expected, 1):
            logs[0].append(stream, number, [entry])
            time.sleep(chance.choice([0, 0.001, 0.01]))
        logs[0].seal(stream, "finished")

    def read(number: int) -> List[bytes]:
        log, found = logs[number % 2], []  # type: ignore[var-annotated]
        while True:
            page = log.read(stream, len(found), 1 + number)
            assert page is not None
            found += page.entries
            if page.state != "open" and len(found) >= page.last:
                return found
            if number % 3 or not page.entries:
                log.wait(stream, len(found), 20)

    began = time.monotonic()
    found = together([write] + [partial(read, number) for number in range(16)])
    assert found[1:] == [expected] * 16
    print(f"{time.monotonic() - began:.1f} s")
    assert time.monotonic() - began < 15


def _published(server: Server) -> int:
    found = server.say("INFO", "commandstats").get("cmdstat_publish")
    return int(found["calls"]) if found else 0


def test_news_are_pushed_only_to_who_reads(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, writer = make(), make()
    heard: List[str] = []
    writer.on_attend(heard.append)
    streams = [begin(writer) for _ in range(20)]
    wait_until(lambda: writer._now.audience.listening, 10, "the writer to listen")
    before, calls = _published(server), _calls(server)
    for number in range(1, 11):
        writer.append_many([(stream, number, [b"x"]) for stream in streams])
    pushed, calls = _published(server) - before, _calls(server) - calls
    print(f"200 appends that nobody reads: {calls} commands, {pushed} of them PUBLISH")
    assert not pushed
    log.attend(streams[0], 20.0)
    wait_until(lambda: heard == streams[:1], 10, "the writer to hear of the reader")
    wait_until(lambda: _published(server) - before == 2, 10, "the word, and the last number")
    writer.append_many([(stream, 11, [b"y"]) for stream in streams])
    assert _published(server) - before == 3
    lost, missed = writer._now.lost, threading.Event()

    def lost_and_forgotten() -> None:
        # Here, and not in the thread of the test: it listens again in the next moment.
        lost()
        writer._now.mine[streams[0]].read_until = 0.0
        missed.set()

    monkeypatch.setattr(writer._now, "lost", lost_and_forgotten)
    server.say("CLIENT", "KILL", "TYPE", "pubsub")
    assert missed.wait(10), "the connection was not missed"
    wait_until(lambda: writer._now.audience.listening, 10, "the writer to listen again")
    assert writer._now.audience.wants(streams[0]), "it is read still"
    assert not writer._now.audience.wants(streams[1])


def test_nothing_is_lost_for_a_reader_who_comes_just_then(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever misses a push here waits until it gives up: nothing else tells it, and nobody else comes."""
    from flask_llmstream.eventlog import redis_following, redis_process

    monkeypatch.setattr(redis_process, "LOOK_EVERY", 1000000)
    monkeypatch.setattr(redis_following, "LINGER", 0.05)
    writer, log = make(), make()
    writer.on_attend(lambda stream: None)
    streams = [begin(writer) for _ in range(100)]
    wait_until(lambda: writer._now.audience.listening, 10, "the writer to listen")
    heard = writer._now.heard

    def heard_late(channel: bytes, message: bytes) -> None:
        time.sleep(0.005)  # as in a worker that is busy
        heard(channel, message)

    monkeypatch.setattr(writer._now, "heard", heard_late)
    late: List[float] = []
    chance = random.Random()
    for stream in streams:
        appended: List[float] = []

        def append() -> None:
            time.sleep(pause)
            writer.append(stream, 1, [b"x"])
            appended.append(time.monotonic())

        pause = chance.uniform(0.0, 0.012)
        thread = threading.Thread(target=append)
        thread.start()
        log.attend(stream, 20.0)
        while not log.read(stream, 0).entries:
            log.wait(stream, 0, 3.0)
        now = time.monotonic()
        thread.join()
        late.append(now - appended[0])
    print(
        "100 readers who came at about the time of an entry got it after"
        f" {1000 * sorted(late)[50]:.1f} ms (median), {1000 * max(late):.1f} ms at most"
    )
    assert max(late) < 2.5


def test_what_one_follower_finds_wakes_the_others() -> None:
    """The push that tells of it comes later, and is no news then."""
    following = Following(current_runtime())
    followed = following.use("ab")
    following.doubt("ab", True)
    assert not followed.quiet(5)
    following.share("ab", followed, "old", lambda: Page(6, [], 5, "open"))
    assert followed.quiet(5)
    waiting = following.waiters.enter("ab")
    following.share("ab", followed, "new", lambda: Page(6, [b"x"], 6, "open"))
    assert waiting.flag.is_set() and not followed.quiet(5)


def test_page_from_before_the_subscription_is_read_again() -> None:
    following = Following(current_runtime())
    followed = following.use("ab")
    pages = [Page(1, [], 0, "open"), Page(1, [b"x"], 1, "open")]
    for _ in range(2):
        assert following.share("ab", followed, "", lambda: pages[0]) == pages[0]
    following.doubt("ab", True)
    assert following.share("ab", followed, "", lambda: pages[1]) == pages[1]
    assert following.share("ab", followed, "", lambda: pages[0]) == pages[1], "which was just read"


def test_listener_runs_only_while_it_is_needed(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_llmstream.eventlog import redis_following, redis_listener

    log = make()
    stream = begin(log)

    def running() -> bool:
        return bool(log._now.listener._running)

    log.append(stream, 1, [b"x"])
    log.read(stream, 0)
    log.wait(stream, 0, 5)
    assert not running()
    log.wait(stream, 1, 0.3)
    assert running()
    # Not before: nobody waits for anything from now on, and it was to be seen that it runs.
    monkeypatch.setattr(redis_listener, "IDLE", 0.1)
    monkeypatch.setattr(redis_following, "LINGER", 0.1)
    wait_until(lambda: not running(), 10, "the listener to end")
    log.wait(stream, 1, 0.3)
    log.on_stop(lambda stream: None)
    time.sleep(2.5)
    assert running(), "the stream may be asked to stop"
    log.seal(stream, "finished")
    wait_until(lambda: not running(), 10, "the listener to end")


def test_thousand_followers_of_a_stream(server: Server, make: Any) -> None:
    log, writer = make(), make()
    stream = begin(writer)
    found: List[Any] = []
    moments: List[float] = []

    def follower() -> None:
        log.wait(stream, 0, 60)
        moments.append(time.monotonic())
        found.append(follow(log, stream))

    before = threading.stack_size(256 * 1024)
    try:
        threads = [threading.Thread(target=follower) for _ in range(1000)]
        with untraced_threads():
            for thread in threads:
                thread.start()
    finally:
        threading.stack_size(before)

    def settled() -> bool:
        followed = log._now.following.get(stream)
        waiting = log._now.following.waiters._by_stream.get(stream)
        return followed is not None and followed.known and waiting is not None and waiting.count == 1000

    wait_until(settled, 60, "all to wait")
    time.sleep(1)  # for the first to have gone round once more
    wait_until(settled, 60, "all to wait")
    news = f"llmstream:{{{stream}}}:news"
    assert int(server.say("PUBSUB", "NUMSUB", news)[1]) == 1
    calls = _calls(server)
    cpu, began = time.process_time(), time.monotonic()
    writer.append(stream, 1, [b"now"])
    wait_until(lambda: len(moments) == 1000, 30, "all to be woken")
    wait_until(settled, 30, "all to wait again")
    cpu = time.process_time() - cpu
    calls = _calls(server) - calls
    writer.seal(stream, "finished")
    for thread in threads:
        thread.join(30)
    assert found == [([b"now"], "finished")] * 1000
    print(
        f"1,000 followers: one append cost {1000 * cpu:.0f} ms of CPU and {calls} commands,"
        f" all were awake after {1000 * (max(moments) - began):.0f} ms"
    )
    assert calls < 300


def _calls(server: Server) -> int:
    return int(server.say("INFO", "stats")["total_commands_processed"])


def is_known(log: RedisEventLog, stream: str) -> bool:
    """Whether somebody waits in *log*, to be woken by news."""
    followed = log._now.following.get(stream)
    return followed is not None and followed.known


def _clients(server: Server, kind: str) -> str:
    lines = server.say("CLIENT", "LIST", "TYPE", kind)
    if isinstance(lines, bytes):
        return lines.decode()
    return " ".join(f"cmd={each['cmd']}" for each in lines) if isinstance(lines, list) else str(lines)
