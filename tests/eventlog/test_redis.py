"""The log in Redis keeps the contract, on threads, on greenlets and on a cluster, and outlives its server."""

from __future__ import annotations

import gc
import os
import random
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set

import pytest
from redis_servers import SLOTS, Server

from flask_llmstream.eventlog import Page, open_log, redis_client
from flask_llmstream.eventlog.redis import RedisEventLog
from flask_llmstream.eventlog.redis_following import Following
from flask_llmstream.exceptions import ConfigurationError, LogUnavailable, StreamCancelled
from flask_llmstream.runtime import current_runtime
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.eventlog import EventLogContract
from flask_llmstream.testing.logs import follow, new_id, together

pytest.importorskip("redis", reason="needs the extra redis")

HERE = Path(__file__).parent


class TestRedisEventLog(EventLogContract):
    """On the threads, or greenlets, of this interpreter."""

    @pytest.fixture(autouse=True)
    def store(self, redis_server: Any) -> None:
        self.url = redis_server.url

    def make_log(self) -> RedisEventLog:
        return RedisEventLog(f"{self.url}?prefix=contract")

    def other_process(self) -> str:
        return f"{self.url}?prefix=contract"


PATCHED = """
from gevent import monkey
monkey.patch_all()
import sys, pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_contract_is_kept_on_greenlets() -> None:
    pytest.importorskip("gevent")
    names = "TestRedisEventLog or thousand or server_that_is_gone or cancelled or wake_up"
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-p", "no:cov", "-k", f"({names}) and not cluster"]
    done = subprocess.run(
        [sys.executable, "-c", PATCHED, *options, __file__],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=110, cwd=str(HERE.parent.parent),
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
    )
    said = done.stdout.decode()
    print(said)
    assert done.returncode == 0 and " passed" in said, said


# -- a server that fails -----------------------------------------------------------------


@pytest.fixture(scope="module")
def servers(tmp_path_factory: Any) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def server(servers: Server) -> Server:
    """A running server that may be ended."""
    if servers._process is None:
        servers.start()
    return servers


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., RedisEventLog]]:
    """Return a function that opens the log of the server."""
    logs: List[RedisEventLog] = []

    def open_(url: str = "") -> RedisEventLog:
        log = RedisEventLog(url or f"{server.url}?timeout=0.5")
        logs.append(log)
        return log

    yield open_
    for log in logs:
        log.close()


def begin(log: Any, **options: Any) -> str:
    stream = new_id()
    given: Dict[str, Any] = dict(worker="w", keep=60.0, max_events=10000, max_bytes=1 << 20)
    given.update(options)
    log.create(stream, **given)
    return stream


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
        assert time.monotonic() - began < 2
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
    log, writer = make(), make()
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


def is_known(log: RedisEventLog, stream: str) -> bool:
    """Whether somebody waits in *log*, to be woken by news."""
    followed = log._now.following.get(stream)
    return followed is not None and followed.known


def _clients(server: Server, kind: str) -> str:
    lines = server.say("CLIENT", "LIST", "TYPE", kind)
    if isinstance(lines, bytes):
        return lines.decode()
    return " ".join(f"cmd={each['cmd']}" for each in lines) if isinstance(lines, list) else str(lines)


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
    log = make()
    stream = begin(log)
    server.hang()
    try:
        for call in every_call(log, stream):
            began = time.monotonic()
            with pytest.raises(LogUnavailable, match="no answer within 0.5 s"):
                call()
            assert 0.4 < time.monotonic() - began < 2.0
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
    log = make(f"{server.url}?connections=2&timeout=1")
    assert together([partial(log.claim, new_id(), "ab", 60.0)] * 40) == ["ab"] * 40
    assert sorted(log._now._clients._free) == [0, 1] and len(log._now._clients._idle) <= 2
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
    del reader, readers
    gc.collect()


# -- what it leaves in the server ------------------------------------------------------------


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


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: Any) -> Iterator[Server]:
    """A cluster of one."""
    import redis

    if not hasattr(redis, "RedisCluster"):
        pytest.skip("this redis-py knows no clusters")
    server = Server(tmp_path_factory.mktemp("cluster"), "--cluster-enabled", "yes")
    try:
        server.start()
        server.say("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
        wait_until(lambda: "cluster_state:ok" in _text(server.say("CLUSTER", "INFO")), 10, "the cluster")
        yield server
    finally:
        server.kill()


def _text(answer: Any) -> str:
    if isinstance(answer, dict):
        return " ".join(f"{key}:{value}" for key, value in answer.items())
    return answer.decode() if isinstance(answer, bytes) else str(answer)


@pytest.mark.slow
class TestRedisClusterEventLog(EventLogContract):
    """On a cluster."""

    @pytest.fixture(autouse=True)
    def store(self, cluster: Server) -> None:
        self.url = f"{cluster.url}?cluster=1"

    def make_log(self) -> RedisEventLog:
        return RedisEventLog(self.url)


# -- the URL -----------------------------------------------------------------------------


def test_unix_socket(server: Server, make: Any) -> None:
    log = make(f"unix://{server.folder}/s?db=1&timeout=1")
    stream = begin(log)
    assert log.append(stream, 1, [b"x"])
    page = log.read(stream, 0)
    assert page is not None and page.entries == [b"x"]


@pytest.mark.parametrize("query", ["timeout=soon", "timeout=0", "connections=-1", "prefix={x}"])
def test_option_that_cannot_work(query: str) -> None:
    with pytest.raises(ConfigurationError):
        open_log(f"redis://user:secret@localhost/0?{query}")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'flask-llmstream\[redis\]'"):
        open_log("redis://localhost/0")


# -- processes and cost ------------------------------------------------------------------


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


def test_listener_runs_only_while_it_is_needed(
    server: Server, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flask_llmstream.eventlog import redis_following, redis_listener

    monkeypatch.setattr(redis_listener, "IDLE", 0.1)
    monkeypatch.setattr(redis_following, "LINGER", 0.1)
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
