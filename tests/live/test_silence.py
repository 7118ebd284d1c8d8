"""While a generator says nothing: the opening, a heartbeat now and then, and no change to what it says."""

from __future__ import annotations

import contextlib
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterator, List, Tuple

import pytest
from asking import APPS, ended, leaving, new_key, produce, text_of

from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.testing import LiveServer, gunicorn_server

pytestmark = pytest.mark.live


@contextlib.contextmanager
def serving(worker: str) -> Iterator[LiveServer]:
    quiet = "accesslog = None"
    with gunicorn_server(APPS / "producers.py", worker=worker, threads=8, config_lines=quiet) as server:
        yield server


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with serving(request.param) as server:
        yield server


#: When it was asked, when the head came, when each comment came, when the last bytes came, the body.
Heard = Tuple[float, float, List[float], float, bytes]


def listen(server: LiveServer, seconds: float, hold: float) -> Heard:
    asked_at = time.monotonic()
    options = {"heartbeat_interval": 1.0, "status_hold": hold}
    comments: List[float] = []
    body = b""
    at = 0.0
    with leaving(produce(server, "silent", new_key(), options, seconds=seconds)) as reader:
        for at, data in reader:
            body += data
            if data.startswith(b":"):
                comments.append(at)
        assert reader.complete
    return asked_at, reader.head_at, comments, at, body


HOLDS = [0.0, 0.5, 2.0]


@pytest.mark.slow
def test_silent_generator_gets_a_comment_a_second_and_its_events_unchanged(
    server: LiveServer, noticed: Callable[[str], None]
) -> None:
    with ThreadPoolExecutor(len(HOLDS)) as pool:
        for hold, heard in zip(HOLDS, pool.map(lambda hold: listen(server, 8, hold), HOLDS)):
            check(8, hold, heard, noticed)


@pytest.mark.slow
def test_forty_silent_seconds_are_no_different(noticed: Callable[[str], None]) -> None:
    with serving("gevent") as on_gevent, serving("gthread") as on_threads:
        cases = [(server, hold) for server in (on_gevent, on_threads) for hold in HOLDS]
        with ThreadPoolExecutor(len(cases)) as pool:
            heard = list(pool.map(lambda case: listen(case[0], 40, case[1]), cases))
    for (_, hold), each in zip(cases, heard):
        check(40, hold, each, noticed)


def check(seconds: float, hold: float, heard: Heard, noticed: Callable[[str], None]) -> None:
    asked_at, head_at, comments, last_at, body = heard
    opened = head_at - asked_at
    gaps = [after - before for before, after in zip(comments, comments[1:])]
    noticed(
        f"status_hold={hold:g}: head after {1000 * opened:.1f} ms, {len(comments)} comments in"
        f" {seconds} s, gaps of {min(gaps):.3f} to {max(gaps):.3f} s"
    )
    assert hold <= opened < hold + 3.0
    assert comments[0] - head_at < 3.0, "the head came without the opening comment"
    assert 0.85 <= statistics.median(gaps) <= 1.3 and max(gaps) < 3.0
    assert (seconds - hold) * 0.7 <= len(comments) <= last_at - head_at + 1.5
    said: List[str] = []
    assert SSEDecoder(on_comment=said.append).feed(body) == [
        Event('{"text":"at last"}'), Event('{"reason":"stop","usage":null}', "done")
    ]
    assert said == ["open"] + ["hb"] * (len(comments) - 1)
    assert body.count(b"\n\n") == 2, "a blank line after a comment upsets some clients"


@pytest.mark.timing
def test_first_bytes_come_at_once_without_a_hold(
    server: LiveServer, measured: Callable[..., None]
) -> None:
    waits: List[float] = []
    for _ in range(20):
        asked_at = time.monotonic()
        reader = produce(server, "silent", new_key(), {"status_hold": 0}, seconds=0.05)
        with leaving(reader):
            (first_at, first), *_ = reader.read_until(b"\n")
            waits.append(first_at - asked_at)
            assert first == b": open\n"
            assert text_of(reader.read()) == "at last"
    measured("request → first bytes, status_hold=0", waits)
    assert min(waits) < 0.05 and statistics.median(waits) < 0.25


def test_item_within_the_hold_needs_no_comment(server: LiveServer) -> None:
    reader = produce(server, "silent", new_key(), {"status_hold": 5}, seconds=0.1)
    with leaving(reader):
        body = reader.read()
    assert b"\n:" not in b"\n" + body
    assert text_of(body) == "at last"


def test_heartbeats_do_not_wait_for_the_end_of_a_long_hold(server: LiveServer) -> None:
    """A stream that was opened by its first item is not looked at when its hold would have ended."""
    options = {"heartbeat_interval": 0.5, "status_hold": 30}
    reader = produce(server, "lone", new_key(), options, count=2, pause=4)
    with leaving(reader):
        started_at = time.monotonic()
        reader.read_until(b": hb\n")
        assert time.monotonic() - started_at < 3.9
        assert reader.read().endswith(b'"usage":null}\n\n')


def test_padding_opens_the_stream_whoever_opens_it(server: LiveServer) -> None:
    for name, options, arguments in [
        ("silent", {"status_hold": 0}, {"seconds": 0.01}),
        ("silent", {"status_hold": 5}, {"seconds": 0.01}),
        ("silent", {"status_hold": 0.05}, {"seconds": 0.3}),
        ("sending", {}, {"seconds": 0.01}),
        ("lone", {}, {"count": 2, "pause": 0.01}),
    ]:
        settings: Any = dict(options, padding=2048)
        with leaving(produce(server, name, new_key(), settings, **arguments)) as reader:
            body = reader.read()
        assert body.startswith(b": open\n:"), (name, options, body[:60])
        assert 2048 <= body.index(b"data:") < 2300
        assert body.count(b"open") == 1


def test_heartbeats_can_be_turned_off(server: LiveServer) -> None:
    options = {"heartbeat_interval": 0, "status_hold": 0}
    key = new_key()
    with leaving(produce(server, "silent", key, options, seconds=1.2)) as reader:
        assert b"hb" not in reader.read()
    assert ended(server, key)["ends"][0]["reason"] == "finish"
