"""What arrives is what was sent, byte by byte, whoever else writes in between."""

from __future__ import annotations

import contextlib
import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple

import pytest
from strict_http import Events, parse_answer, parse_events, read_all, request_bytes

from flask_llmstream.testing import LiveServer, gunicorn_server

pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps_faults") / "payloads.py"

#: Characters of each stream.
BUDGET = 400_000

#: Little room in the kernel, or the server would never wait for a slow reader.
SMALL_BUFFERS = """
import socket


def when_ready(server):
    for listener in server.LISTENERS:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
"""


@pytest.fixture(scope="module", params=["gevent", "gevent-tls", "gthread"])
def server(request: Any, certificate: Tuple[str, str]) -> Iterator[LiveServer]:
    worker, _, tls = request.param.partition("-")
    certfile, keyfile = certificate if tls else (None, None)
    with gunicorn_server(
        APP, worker, threads=8, certfile=certfile, keyfile=keyfile, config_lines=SMALL_BUFFERS
    ) as running:
        yield running
        assert "Traceback" not in running.log()


def read_fast() -> Tuple[int, float]:
    return 65536, 0.0


def slow_reader(seed: int) -> Callable[[], Tuple[int, float]]:
    """Return a pace that keeps the server waiting: small reads, and pauses."""
    chance = random.Random(seed)
    return lambda: (chance.randint(1, 40_000), chance.choice([0.0, chance.random() * 0.01]))


def receive(server: LiveServer, path: str, slow: int = 0) -> Events:
    """Read one stream; what can be wrong with its bytes is a failure.

    :param slow: seed of a slow reader; 0 reads as fast as it can.
    """
    with contextlib.closing(server.connect(receive_buffer=16384 if slow else None)) as sock:
        sock.sendall(request_bytes(path))
        received = read_all(sock, 60.0, slow_reader(slow) if slow else read_fast)
    answer = parse_answer(received)
    assert (answer.status, answer.rest) == (200, b"")
    assert answer.chunks is not None
    events = parse_events(answer.body)
    return events


def check(events: Events) -> None:
    """Compare with what the app says it has sent, in text and in order."""
    assert events.terminal() == ("done", {"reason": "stop", "usage": None})
    [sums] = events.named("custom")
    text = events.text
    assert len(text) == sums["data"]["length"]
    assert hashlib.sha256(text.encode()).hexdigest() == sums["data"]["sha256"]


@pytest.mark.parametrize(
    "way,chunk",
    [
        ("paced", ""),
        ("hot", ""),
        ("sending", ""),
        ("octets", ""),
        ("everything", ""),
        ("paced", "line"),
        ("sending", "word"),
        ("everything", "line"),
    ],
)
def test_every_byte_arrives_in_order_among_heartbeats(server: LiveServer, way: str, chunk: str) -> None:
    seed = random.SystemRandom().randint(1, 1 << 30)
    budget = BUDGET // 4 if chunk == "word" else BUDGET  # a word is an event
    query = f"?budget={budget}" + (f"&chunk={chunk}" if chunk else "")
    paths = [f"/{way}/{seed + number}{query}" for number in range(4)]
    print(f"seed {seed}")
    with ThreadPoolExecutor(4) as pool:
        slow = [0, seed, 0, seed + 1]
        received = list(pool.map(lambda pair: receive(server, *pair), zip(paths, slow)))
    for events in received:
        check(events)
    heartbeats = [events.heartbeats for events in received]
    print(f"heartbeats {heartbeats}, events {[len(events.events) for events in received]}")
    if way == "paced":
        assert sum(heartbeats) >= 4


@pytest.mark.parametrize("way", ["late", "everything"])
@pytest.mark.parametrize("padding", [0, 2048, 65536])
def test_padding_comes_first_and_changes_nothing(server: LiveServer, padding: int, way: str) -> None:
    """Whether the source opens the stream or its silence does."""
    events = receive(server, f"/{way}/7?budget=50000&padding={padding}")
    check(events)
    if padding or way == "late":
        assert events.comments.index(" open") == 0
    lines = [comment for comment in events.comments if comment not in (" open", " hb", " begin")]
    assert padding - 10 <= sum(len(line) + 2 for line in lines) <= padding + 1100


def test_marks_stand_where_they_were_put(server: LiveServer) -> None:
    """Text that is yielded, sent and held back keeps its order with named events."""
    for seed in range(4):
        events = receive(server, f"/everything/{seed}?budget=60000&chunk=word")
        check(events)
        length = 0
        for name, data in events.events:
            if name is None:
                length += len(Events([(name, data)], []).text)
            elif name == "mark":
                assert length == int(data)
