"""Several sources in one response of real workers: at the same time, apart, and ended together."""

from __future__ import annotations

import json
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List, Optional
from urllib.parse import urlencode

import pytest
from asking import APPS, UNTRACED, ask, ended, events_of, leaving, new_key, note_when

from flask_llmstream.sansio.events import Event
from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, done, hold, silence, status, tokens, wait

pytestmark = pytest.mark.live

#: Upstreams must see that nobody listens any more within this; measured on a quiet machine: 3 ms.
TARGET = 0.1
WORST = 5.0


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with gunicorn_server(
        APPS / "several.py", worker=request.param, threads=8, config_lines="accesslog = None",
        env=UNTRACED if request.param == "gthread" else None,
    ) as server:
        yield server


def fields(event: Event) -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads(event.data)
    return found


def channel_of(event: Event) -> Optional[str]:
    return fields(event).get("channel")


def text_of(events: List[Event], channel: str) -> str:
    return "".join(
        fields(event)["text"] for event in events if event.event is None and channel_of(event) == channel
    )


def read(server: LiveServer, path: str) -> bytes:
    reader = server.request(path, timeout=30)
    with leaving(reader):
        body: bytes = reader.read()
    assert reader.complete
    return body


def ends(events: List[Event]) -> Dict[Optional[str], str]:
    """Return how each channel has ended, and the stream under ``None``; each only once."""
    terminal = [event for event in events if event.event in ("done", "failed")]
    found = {channel_of(event): str(event.event) for event in terminal}
    assert len(found) == len(terminal)
    assert terminal[-1] is events[-1] and channel_of(events[-1]) is None
    return found


def start(
    server: LiveServer, upstreams: Dict[str, ScriptedUpstream], key: str, **options: Any
) -> StreamReader:
    asked = {"key": key, "upstreams": {name: each.url for name, each in upstreams.items()}}
    return server.request("/upstreams", json=dict(asked, options=options))


def closed(upstream: ScriptedUpstream) -> float:
    exchange = upstream.exchanges[-1]
    wait_until(lambda: exchange.closed_at is not None, 10.0, "the upstream's connection to be closed")
    assert exchange.peer.closed_by == "peer"
    return exchange.closed_at or 0.0


def test_one_channel_arrives_while_another_is_silent(server: LiveServer) -> None:
    key, flag = new_key(), threading.Event()
    with ScriptedUpstream([tokens("a1"), hold(flag), tokens("a2"), done()]) as slow:
        with ScriptedUpstream([tokens("b1", "b2", "b3", interval=0.05), done()]) as quick:
            reader = start(server, {"a": slow, "b": quick}, key)
            with leaving(reader):
                early = b"".join(data for _, data in reader.read_until(b"b3"))
                flag.set()
                late = reader.read()
            assert reader.complete
    events = events_of(early + late)
    assert text_of(events, "a") == "a1a2" and text_of(events, "b") == "b1b2b3"
    assert ends(events) == {"a": "done", "b": "done", None: "done"}
    assert b"a2" in late
    note = ended(server, key)
    assert note["ends"][0]["reason"] == "finish"
    assert note["ends"][0]["text"] == "a1a2\n\nb1b2b3"


def test_one_that_fails_does_not_end_the_other(server: LiveServer) -> None:
    with ScriptedUpstream([status(429)]) as busy:
        with ScriptedUpstream([wait(0.2), tokens("whole"), done()]) as well:
            reader = start(server, {"a": busy, "b": well}, new_key())
            with leaving(reader):
                events = events_of(reader.read())
    assert reader.status == 200 and reader.complete
    assert text_of(events, "b") == "whole"
    assert ends(events) == {"a": "failed", "b": "done", None: "done"}
    [failed] = [fields(event) for event in events if event.event == "failed"]
    assert failed["code"] == "upstream_rate_limited" and failed["retryable"] is True


def test_where_all_fail_before_the_first_item_the_status_says_so(server: LiveServer) -> None:
    with ScriptedUpstream([status(429)]) as busy:
        reader = start(server, {"a": busy, "b": busy}, new_key())
        with leaving(reader):
            assert reader.status == 429
            assert reader.json()["error"]["code"] == "upstream_rate_limited"


@pytest.mark.timing
def test_client_that_leaves_closes_all_upstreams(
    server: LiveServer, measured: Callable[..., None]
) -> None:
    latencies: List[float] = []
    keys: List[str] = []
    script = [tokens("x", "y"), silence()]
    with ScriptedUpstream(script) as one, ScriptedUpstream(script) as two, ScriptedUpstream(script) as three:
        for _ in range(10):
            keys.append(new_key())
            upstreams = {"a": one, "b": two, "c": three}
            reader = start(server, upstreams, keys[-1])
            seen = b""
            while seen.count(b'"y"') < 3:
                seen += next(iter(reader))[1]
            left_at = time.monotonic()
            reader.close()
            latencies += [closed(upstream) - left_at for upstream in upstreams.values()]
        for key in keys:
            assert [end["reason"] for end in ended(server, key)["ends"]] == ["disconnect"]
            assert ended(server, key)["ends"][0]["text"] == "xy\n\nxy\n\nxy"
            for name in "abc":
                note = ended(server, f"{key}-{name}")
                assert note["cleaned_up"] == note["started"] == 1
                assert note["raised"] == ["StreamCancelled"]
    measured("client leaves → each of three upstreams sees it", latencies)
    assert statistics.median(latencies) <= TARGET, latencies
    assert max(latencies) <= WORST, latencies


def test_shielded_channel_is_waited_for(server: LiveServer) -> None:
    key = new_key()
    reader = server.request(f"/stubborn?key={key}")
    reader.read_until(b"begun")
    reader.close()
    note = note_when(server, f"{key}-shielded", lambda note: note["ends"])
    assert note["raised"] == ["StreamCancelled"] and note["cleaned_up"] == 1
    # The stream ends, and says so, once all of its sources have.
    assert ask(server, f"/notes/{key}")["marks"] == ["whole"]
    assert ask(server, f"/notes/{key}-silent")["cleaned_up"] == 1


def test_each_source_has_the_contexts_of_the_request(server: LiveServer) -> None:
    key = new_key()
    reader = server.request(f"/contexts?key={key}")
    with leaving(reader):
        events = events_of(reader.read())
    seen = [fields(event) for event in events if event.event == "json"]
    assert len(seen) == 6
    for each in seen:
        assert each["value"]["seen"] == [key, key, "me", "several", reader.headers["x-stream"]]
    assert ends(events) == {"a": "done", "b": "done", None: "done"}
    # Flask 3.1.2 and later tear down when the view returns, too: never once per source.
    torn = ask(server, "/torn").count(key)
    early = any(each["value"]["torn_down"] for each in seen)
    assert torn == (2 if early else 1)


@pytest.mark.timing
@pytest.mark.slow
def test_source_that_never_waits_starves_nobody(server: LiveServer, measured: Callable[..., None]) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, server, "/fairness?count=60000")
        pings: List[float] = []
        while not reading.done():
            asked_at = time.monotonic()
            ask(server, "/notes/none")
            pings.append(time.monotonic() - asked_at)
            time.sleep(0.01)
        events = events_of(reading.result())
    late = [fields(event)["value"]["late"] for event in events if event.event == "json"]
    assert len(late) == 20
    assert text_of(events, "hot") == "".join(f"{number} " for number in range(60000))
    places = [place for place, event in enumerate(events) if channel_of(event) == "slow"]
    assert places[0] < len(events) // 2, "the other channel came last"
    measured("waiting channel beside one that never waits, late by", late)
    measured("other requests meanwhile", pings)
    assert statistics.median(late) < 0.5 and statistics.median(pings) < 0.5


@pytest.mark.parametrize("chunk", [None, "word"])
def test_text_of_each_channel_is_whole_among_heartbeats(server: LiveServer, chunk: Optional[str]) -> None:
    options = json.dumps({"heartbeat_interval": 0.01, "chunk": chunk, "max_delay": 0.02})
    path = "/texts?" + urlencode({"count": 700, "options": options})

    with ThreadPoolExecutor(3) as pool:
        bodies = list(pool.map(lambda _: read(server, path), range(3)))
    for body in bodies:
        assert body.count(b": hb") > 0
        events = events_of(body)
        for name in "abc":
            assert text_of(events, name) == "".join(f"{name}{number} " for number in range(700))
        assert fields(events[-1])["usage"] == {"input_tokens": 3, "output_tokens": 2100}
        assert ends(events) == {"a": "done", "b": "done", "c": "done", None: "done"}


@pytest.mark.slow
def test_many_streams_leave_nothing_behind(server: LiveServer, noticed: Callable[[str], None]) -> None:
    path = "/texts?count=8"

    def run(number: int) -> None:
        reader = server.request(path, timeout=30)
        with leaving(reader):
            if number % 4:
                reader.read()
            else:
                reader.read_until(b"b0")

    def idle() -> Dict[str, int]:
        counts: Dict[str, int] = ask(server, "/counts")
        return counts

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(16)))  # the worker's own threads
        wait_until(lambda: idle()["streams"] == idle()["running"] == 0, 10.0, lambda: f"{idle()}")
        before = idle()
        list(pool.map(run, range(200)))
    names = ["streams", "running", "watched", "greenlets"]

    def settled() -> bool:
        # On threads the server has a pool, which may still have grown.
        after = idle()
        same = all(after.get(name, 0) <= before.get(name, 0) for name in names)
        return same and ask(server, "/channels") == []

    wait_until(settled, 10.0, lambda: f"before {before}, after {idle()}")
    noticed(f"before 200 streams of three channels {before}, after {idle()}")
    assert "Traceback" not in server.log()
