"""The first item, the end of the hold and a client that leaves, all at the same moment."""

from __future__ import annotations

import contextlib
import json
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from strict_http import Answer, parse_answer, parse_events, read_all, request_bytes

from flask_llmstream.testing import LiveServer, gunicorn_server, send_request, wait_until

pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps_faults") / "openings.py"

#: As in the app.
HOLD = 0.04
#: Streams of each kind, and how far from the end of the hold they speak, in seconds.
STREAMS, AROUND = 48, 0.006

#: What each source says: text, terminal event, and code of a failure.
OUTCOMES = {
    "item": ("item", "done", None),
    "two": ("item two", "done", None),
    "send": ("item two", "done", None),
    "empty": ("", "done", None),
    "held": ("item\n", "done", None),
    "held-and-fail": ("item", "failed", "upstream_rate_limited"),
    "fail": ("", "failed", "upstream_rate_limited"),
    "crash": ("", "failed", "internal_error"),
}
STATUS = {"upstream_rate_limited": 429, "internal_error": 500}


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: Any) -> Iterator[LiveServer]:
    with gunicorn_server(APP, request.param, threads=16) as running:
        yield running


def lateness(chance: random.Random, number: int = 2) -> float:
    """Around the end of the hold, and sometimes surely on one side of it."""
    return (-HOLD, HOLD)[number % 8] if number % 8 < 2 else chance.gauss(0, AROUND)


def fetch(server: LiveServer, path: str) -> Answer:
    with contextlib.closing(server.connect()) as sock:
        sock.sendall(request_bytes(path))
        answer = parse_answer(read_all(sock))
    assert not answer.rest
    return answer


@pytest.mark.parametrize("outcome", sorted(OUTCOMES))
def test_first_item_at_the_end_of_the_hold(server: LiveServer, outcome: str) -> None:
    """Whichever is first, there is one status, and one end."""
    chance = random.Random()
    text, terminal, code = OUTCOMES[outcome]
    paths = [
        f"/first/{outcome}/{outcome}-{number}?late={lateness(chance, number):.6f}"
        for number in range(STREAMS)
    ]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda path: fetch(server, path), paths))
    opened = 0
    for answer in answers:
        if code is not None and not text and answer.status == STATUS[code]:
            assert json.loads(answer.body.decode())["error"]["code"] == code
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers.get("retry-after") == ("3" if code == "upstream_rate_limited" else None)
            continue
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        events = parse_events(answer.body)
        assert events.comments.count(" open") <= 1
        opened += events.comments.count(" open")
        assert events.text == text
        name, value = events.terminal()
        assert name == terminal
        assert code is None or value["code"] == code
        assert b"nobody may read this" not in answer.body
    print(f"{outcome}: {opened} of {STREAMS} were opened by the hold")
    assert 0 < opened < STREAMS, "the source was never on both sides of the hold"


def test_client_leaving_at_the_end_of_the_hold(server: LiveServer) -> None:
    """Every source is cleaned up, and told of, once."""
    chance = random.Random()
    names: List[str] = [f"leaving-{number}" for number in range(120)]

    def leave(name: str) -> None:
        outcome = chance.choice(["item", "two", "send", "fail", "held"])
        path = f"/first/{outcome}/{name}?late={lateness(chance):.6f}"
        with contextlib.closing(server.connect()) as sock:
            send_request(sock, path)
            time.sleep(max(0.0, HOLD + chance.gauss(0, AROUND)))
            if chance.random() < 0.5:
                # With bytes unread, or this option, the close is a RST.
                sock.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(leave, names))

    def all_over() -> bool:
        with contextlib.closing(server.connect()) as sock:
            sock.sendall(request_bytes("/counts"))
            found = json.loads(parse_answer(read_all(sock)).body.decode())
        started = {name for name in found["begun"] if name in names}
        kinds = ("begun", "cleaned", "ended")
        times = Counter(found[kind].get(name, 0) for name in started for kind in kinds)
        assert set(times) <= {0, 1}, times
        return bool(started) and set(times) == {1}

    wait_until(all_over, 10.0, "every source to be cleaned up")
    log = server.log()
    assert "Error handling request" not in log
    assert "its source failed while it was closed" not in log
