"""Time limits: a source that falls silent, a stream that takes too long, a client that does not read."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any, Callable, Iterator, Tuple
from urllib.parse import quote

import pytest
from asking import APPS, events_of

from flask_llmstream.testing import LiveServer, gunicorn_server, send_request, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, done, silence, tokens

pytestmark = [pytest.mark.live, pytest.mark.slow]

#: Seconds.
IDLE, LONGEST, SLOW = 1.0, 4.0, 1.2
Served = Tuple[LiveServer, Path]


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    notes = tmp_path_factory.mktemp("limits") / "notes"
    notes.touch()
    settings = {
        "idle_timeout": IDLE, "max_duration": LONGEST, "slow_reader_timeout": SLOW, "heartbeat_interval": 0.1,
    }
    env = {"NOTES": str(notes), "SETTINGS": json.dumps(settings)}
    with gunicorn_server(
        APPS / "lasting.py", request.param, threads=8, env=env, config_lines="accesslog = None"
    ) as server:
        yield server, notes


def ask(server: LiveServer, route: str, upstream: ScriptedUpstream) -> Tuple[bytes, bool, float]:
    """Return the body, whether it ended in order, and how long it took."""
    began = time.monotonic()
    reader = server.request(f"{route}?url={quote(upstream.url + '/chat/completions')}")
    with contextlib.closing(reader.sock):
        return reader.read(), reader.complete, time.monotonic() - began


def failure(body: bytes) -> Any:
    last = events_of(body)[-1]
    assert last.event == "failed", body[-300:]
    return json.loads(last.data)["code"]


@pytest.mark.parametrize("style", ["stream", "legacy"])
def test_source_that_falls_silent_is_given_up(
    served: Served, style: str, noticed: Callable[[str], None]
) -> None:
    server, notes = served
    with ScriptedUpstream([tokens("a"), silence()]) as upstream:
        body, complete, took = ask(server, f"/{style}/silent", upstream)
        assert failure(body) == "upstream_timeout"
        assert complete is (style == "stream")
        assert body.count(b": hb\n") >= 1, "heartbeats are no sign of life of the source"
        upstream.wait_closed()
    noticed(f"given up after {took:.2f} s, the limit is {IDLE}")
    assert IDLE <= took < IDLE + 4


def test_source_that_never_falls_silent_for_that_long_is_let_be(served: Served) -> None:
    server, notes = served
    script = [tokens(*"abcdefghi", interval=0.15), done()]
    with ScriptedUpstream(script) as upstream:
        body, complete, took = ask(server, "/stream/silent", upstream)
    assert events_of(body)[-1].event == "done" and took > IDLE


@pytest.mark.parametrize("style", ["stream", "legacy"])
def test_stream_that_takes_too_long_is_ended(served: Served, style: str) -> None:
    server, notes = served
    with ScriptedUpstream() as upstream:
        body, complete, took = ask(server, f"/{style}/ticking", upstream)
    assert failure(body) == "timeout"
    assert LONGEST <= took < LONGEST + 4


@pytest.mark.parametrize("route", ["/flood", "/legacy-flood"])
def test_client_that_does_not_read_is_cut_off(
    served: Served, route: str, noticed: Callable[[str], None]
) -> None:
    server, notes = served
    before = len(notes.read_text().splitlines())
    began = time.monotonic()
    with server.connect(receive_buffer=4096) as sock:
        send_request(sock, f"{route}?count=100000")
        wait_until(lambda: len(notes.read_text().splitlines()) > before, 10, server.log)
        took = time.monotonic() - began
    line = notes.read_text().splitlines()[-1]
    assert "disconnect" in line or route.startswith("/legacy"), line
    server.wait_for_log("has read nothing")
    noticed(f"cut off after {took:.2f} s, the limit is {SLOW}")
    # max_duration would have ended it too, later and with another reason.
    assert SLOW <= took < LONGEST
    assert "Traceback" not in server.log()


def test_client_that_reads_slowly_is_served_to_the_end(served: Served) -> None:
    """It takes longer than the limit, and its buffer is full all the time."""
    server, notes = served
    with server.connect(receive_buffer=4096) as sock:
        send_request(sock, "/flood?count=500")
        began = time.monotonic()
        received = []
        while not received or received[-1]:
            received.append(sock.recv(8192))
            if time.monotonic() - began < 2 * SLOW:
                time.sleep(0.02)  # what makes it a slow reader
            elif received[-1].endswith(b"0\r\n\r\n"):
                break
    body = b"".join(received)
    assert body.count(b"x") >= 500 * 10000 and b"event: done" in body[-300:]
