"""A reader that does not read holds back its own source, and nobody else."""

from __future__ import annotations

import contextlib
import socket
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest
from procfs import peak_growth, reset_peak
from strict_http import Events, parse_answer, parse_events, read_all, request_bytes

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import Exchange, Script, ScriptedUpstream, done, flood, tokens

pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps_faults") / "pace.py"

#: Little room in the kernel, so that it is the server that waits.
SMALL_BUFFERS = """
import socket


def when_ready(server):
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
"""

#: The streams that keep a pace: items, and seconds between two of them.
ITEMS, PAUSE = 80, 0.01
#: What all waiting readers together may cost a worker, in bytes.
MEMORY_BOUND = 16 << 20


@pytest.fixture(scope="module", params=["gevent", "gevent-tls", "gthread"])
def server(request: Any, certificate: Tuple[str, str]) -> Iterator[LiveServer]:
    worker, _, tls = request.param.partition("-")
    certfile, keyfile = certificate if tls else (None, None)
    with gunicorn_server(
        APP, worker, threads=40, certfile=certfile, keyfile=keyfile, config_lines=SMALL_BUFFERS
    ) as running:
        yield running


def counts(server: LiveServer) -> Dict[str, Dict[str, int]]:
    reader = server.request("/counts")
    with contextlib.closing(reader.sock):
        found: Dict[str, Dict[str, int]] = reader.json()
    return found


@contextlib.contextmanager
def waiting_readers(server: LiveServer, paths: List[str]) -> Iterator[List[socket.socket]]:
    """Clients that ask, and then read nothing until the block ends."""
    with contextlib.ExitStack() as stack:
        socks = []
        for path in paths:
            sock = stack.enter_context(contextlib.closing(server.connect(receive_buffer=4096)))
            sock.sendall(request_bytes(path))
            socks.append(sock)
        yield socks


class Pace(NamedTuple):
    """How streams that share a worker with others fared."""

    #: Seconds that a stream of ITEMS took, the slowest of several.
    duration: float
    #: Median time between two items.
    gap: float
    #: Heartbeats that a quiet stream got in a second in which the machine ran, the least of several.
    heartbeats: float


def measure(server: LiveServer) -> Pace:
    """Run streams that keep a pace beside whatever else is going on."""
    over = threading.Event()
    #: When the machine did not let even a thread go on that only sleeps: from, to.
    stalls: List[Tuple[float, float]] = []

    def watch() -> None:
        while not over.is_set():
            due = time.monotonic() + 0.01
            time.sleep(0.01)
            now = time.monotonic()
            if now - due > 0.05:
                stalls.append((due, now))

    def steady(_: int) -> Tuple[float, List[float]]:
        reader = server.request(f"/steady?count={ITEMS}&pause={PAUSE}", 20.0)
        with contextlib.closing(reader.sock):
            arrived = [at for at, data in reader if b'"text"' in data]
        assert len(arrived) == ITEMS and reader.complete
        return arrived[-1] - arrived[0], [late - early for early, late in zip(arrived, arrived[1:])]

    def quiet(_: int) -> Tuple[int, float, float]:
        with contextlib.closing(server.connect()) as sock:
            sock.sendall(request_bytes("/quiet?seconds=0.8"))
            begun = time.monotonic()
            events = parse_events(parse_answer(read_all(sock)).body)
        assert events.text == "end"
        return events.heartbeats, begun, time.monotonic()

    def a_second(beats: int, begun: float, ended: float) -> float:
        lost = sum(max(0.0, min(ended, to) - max(begun, since)) for since, to in stalls)
        return beats / max(0.1, ended - begun - lost)

    with ThreadPoolExecutor(7) as pool:
        try:
            pool.submit(watch)
            quiets = [pool.submit(quiet, number) for number in range(3)]
            steadies = [pool.submit(steady, number).result for number in range(3)]
            ran = [result() for result in steadies]
            beats = [each.result() for each in quiets]
        finally:
            over.set()
    return Pace(
        max(duration for duration, _ in ran),
        statistics.median(gap for _, gaps in ran for gap in gaps),
        min(a_second(*each) for each in beats),
    )


def settled(server: LiveServer, *names: str) -> List[int]:
    """Wait until no more is taken from the sources of *names*, and return how much was."""
    seen: List[List[int]] = [[]]

    def stand_still() -> bool:
        before = seen[0]
        taken = counts(server)["taken"]
        seen[0] = [taken.get(name, 0) for name in names]
        if before == seen[0] and min(before):
            return True
        time.sleep(0.3)
        return False

    wait_until(stand_still, 10.0, lambda: f"{names} to be held back, at {seen[0]} items")
    return seen[0]


@contextlib.contextmanager
def dripping(socks: List[socket.socket]) -> Iterator[None]:
    """Read a few bytes per second of each while the block lasts: no better than reading none."""
    over = threading.Event()

    def drip() -> None:
        while not over.wait(0.2):
            for sock in socks:
                sock.recv(5)

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.timing
def test_others_keep_their_pace_and_heartbeats(server: LiveServer) -> None:
    """However a stream came to wait for its reader, nobody waits with it."""
    alone = measure(server)
    [worker] = server.worker_pids()
    memory = reset_peak(worker)
    ways = ["endless", "sending", "held"] * 4 + ["brimful"] * 4
    names = [f"{way}-{number}" for number, way in enumerate(ways)]
    with waiting_readers(server, [f"/slow/{way}/{name}" for way, name in zip(ways, names)]) as socks:
        settled(server, *names)
        with dripping(socks[:8]):
            beside = measure(server)
    growth = peak_growth(worker, memory)
    print(f"alone {alone}\nbeside waiting readers {beside}\nmemory {growth / 2**20:.1f} MiB")
    assert beside.duration < 2 * alone.duration + 0.5
    assert beside.gap < 2 * alone.gap + 0.01
    assert beside.heartbeats > alone.heartbeats / 2 > 3
    assert growth < MEMORY_BOUND

    def all_ended() -> bool:
        found = counts(server)["ended"]
        return all(found.get(name) == 1 for name in names)

    wait_until(all_ended, 5.0, "all sources to end")


#: Back-pressure is the same above TLS; only the ticker is not.
plain = pytest.mark.parametrize("server", ["gevent", "gthread"], indirect=True)


@plain
@pytest.mark.parametrize(
    "way,size,bound",
    [
        # A piece in the kernel, one in the server's hands, one gathered.
        ("endless", 200_000, 4),
        ("sending", 100_000, 4),
        # What a burst may gather, and what the kernel takes.
        ("endless", 8_000, 64),
        ("endless", 100, 1500),
        # Text that a chunker holds is counted by pauses: each brings eight.
        ("held", 50_000, 24),
    ],
)
def test_source_of_a_waiting_reader_is_held_back(server: LiveServer, way: str, size: int, bound: int) -> None:
    name = f"bound-{way}-{size}"
    with waiting_readers(server, [f"/slow/{way}/{name}?size={size}"]) as [sock]:
        [first] = settled(server, name)
        assert first <= bound
        # It goes on where it was when its reader does.
        sock.settimeout(10)
        for _ in range(100):
            left = max(400_000, size * 3)
            while left > 0:
                left -= len(sock.recv(65536))
            if counts(server)["taken"][name] > first:
                break
        else:
            pytest.fail("the source never went on")
    print(f"{way} {size}: {first} taken")
    wait_until(lambda: counts(server)["ended"].get(name) == 1, 5.0, "the source to end")


def script_of(exchange: Exchange) -> Script:
    if exchange.json["model"] == "endless":
        return [flood(2_000_000)]
    return [tokens(*[f"{number} " for number in range(50)], interval=0.01), done()]


@plain
def test_upstream_of_a_waiting_reader_is_held_back(server: LiveServer) -> None:
    """Back-pressure reaches the model; the calls of other streams are not touched by it."""
    [worker] = server.worker_pids()
    with ScriptedUpstream(script_of, send_buffer=16384) as upstream:
        path = f"/relay?upstream={upstream.url}&model="
        memory = reset_peak(worker)
        with waiting_readers(server, [path + "endless"] * 3):
            upstream.wait_for(lambda each: each.requests == 3)
            sent = [-1, -1, -1]

            def stands_still() -> bool:
                sent.insert(0, sum(each.bytes_sent for each in upstream.exchanges))
                time.sleep(0.2)
                return sent[2] == sent[1] == sent[0] > 0  # twice: once may be a stall of the machine

            wait_until(stands_still, 15.0, lambda: f"the upstreams to be held back, at {sent[0]} bytes")
            with ThreadPoolExecutor(4) as pool:
                for events in pool.map(lambda _: _receive(server, path + "other"), range(4)):
                    assert events.text == "".join(f"{number} " for number in range(50))
                    assert events.terminal()[0] == "done"
            assert sum(each.bytes_sent for each in upstream.exchanges if not each.completed) == sent[0]
            assert peak_growth(worker, memory) < MEMORY_BOUND
            left_at = time.monotonic()
        upstream.wait_for(lambda each: all(one.closed_at for one in each.exchanges[:3]))
        closed_at = max(each.closed_at or 0 for each in upstream.exchanges[:3])
    print(
        f"held back at {sent[0] / 3 / 2**20:.2f} MiB each, closed {1000 * (closed_at - left_at):.0f} ms"
        f" after its reader left, memory {peak_growth(worker, memory) / 2**20:.1f} MiB"
    )
    assert closed_at - left_at < 4.0


def _receive(server: LiveServer, path: str) -> Events:
    with contextlib.closing(server.connect()) as sock:
        sock.sendall(request_bytes(path))
        return parse_events(parse_answer(read_all(sock)).body)
