"""Unmodified routes: one line in the app, and its old streams are as well off as new ones."""

from __future__ import annotations

import importlib.util
import json
import statistics
import threading
import time
from typing import Any, Callable, Dict, Iterator, List
from urllib.parse import quote

import pytest
from asking import APPS, ask, events_of, leaving, new_key

from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import (
    Exchange,
    ScriptedUpstream,
    delay_headers,
    done,
    hold,
    raw,
    silence,
    tokens,
    wait,
)

pytestmark = pytest.mark.live


def if_installed(name: str) -> Any:
    missing = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"this stack has no {name}"))


WAYS = ["requests", "session", "urllib3", "http_client", "urllib"]
WAYS += [if_installed(name) for name in ("httpx", "openai", "anthropic")]
#: As in test_leaving.
TARGET = 0.1
WORST = 5.0

#: What a model of Anthropic's says, as far as "abc".
ANTHROPIC = [
    {"type": "message_start", "message": {
        "id": "m", "type": "message", "role": "assistant", "content": [], "model": "scripted",
        "stop_reason": None, "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
    }},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "abc"}},
]


def script_for(way: str) -> List[Any]:
    if way != "anthropic":
        return [tokens("abc"), silence()]
    frames = [f"event: {each['type']}\ndata: {json.dumps(each)}\n\n" for each in ANTHROPIC]
    return [raw("".join(frames).encode()), silence()]


def address(upstream: ScriptedUpstream, way: str) -> str:
    return upstream.url + ("/messages" if way == "anthropic" else "/chat/completions")


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    config = "accesslog = None"
    with gunicorn_server(APPS / "legacy.py", request.param, threads=8, config_lines=config) as server:
        yield server


def start(server: LiveServer, way: str, key: str, upstream: ScriptedUpstream) -> StreamReader:
    return server.request(f"/legacy/{way}?key={key}&url={quote(address(upstream, way))}", timeout=30)


def note_of(server: LiveServer, key: str) -> Dict[str, Any]:
    """Return what was noted, once the generator is over."""
    last: Dict[str, Any] = {}

    def look() -> bool:
        last.clear()
        last.update(ask(server, f"/notes/{key}"))
        return bool(last["cleaned_up"])

    wait_until(look, 10, lambda: f"the generator {key} to end, it is {last}; the log:\n{server.log()}")
    return last


def closed(exchange: Exchange) -> float:
    wait_until(lambda: exchange.closed_at is not None, 10.0, "the upstream's connection to be closed")
    assert exchange.peer.closed_by == "peer"
    return exchange.closed_at or 0.0


@pytest.mark.timing
@pytest.mark.parametrize("way", WAYS)
def test_client_that_leaves_closes_what_the_route_has_called(
    server: LiveServer, way: str, measured: Callable[..., None]
) -> None:
    latencies: List[float] = []
    keys: List[str] = []
    with ScriptedUpstream(script_for(way)) as upstream:
        for _ in range(10):
            keys.append(new_key())
            reader = start(server, way, keys[-1], upstream)
            reader.read_until(b"abc")
            exchange = upstream.exchanges[-1]
            left_at = time.monotonic()
            reader.close()
            latencies.append(closed(exchange) - left_at)
        for key in keys:
            note = note_of(server, key)
            assert note["cleaned_up"] == 1 and note["raised"] == ["StreamCancelled"]
            assert note["same"] == [True, True, True], "the generator has lost its surroundings"
        assert len(upstream.exchanges) == 10, "somebody tried again for a client that had left"
    measured("client leaves → upstream sees it", latencies)
    assert statistics.median(latencies) <= TARGET and max(latencies) <= WORST


@pytest.mark.parametrize("way", WAYS)
def test_client_that_leaves_before_the_upstream_answers_is_noticed(server: LiveServer, way: str) -> None:
    key = new_key()
    with ScriptedUpstream([delay_headers()]) as upstream:
        reader = start(server, way, key, upstream)
        exchange = upstream.wait_for(lambda u: u.exchanges and u.exchanges[0])
        left_at = time.monotonic()
        reader.close()
        assert closed(exchange) - left_at < WORST
        assert note_of(server, key)["cleaned_up"] == 1
        assert len(upstream.exchanges) == 1


def test_call_that_does_not_stream_is_closed_too(server: LiveServer) -> None:
    key = new_key()
    with ScriptedUpstream([tokens("abc"), silence()]) as upstream:
        reader = start(server, "requests_json", key, upstream)
        exchange = upstream.wait_for(lambda u: u.exchanges and u.exchanges[0])
        left_at = time.monotonic()
        reader.close()
        assert closed(exchange) - left_at < WORST
        note_of(server, key)


def test_upstream_that_the_view_has_called_is_closed(server: LiveServer) -> None:
    key = new_key()
    with ScriptedUpstream([tokens("abc"), silence()]) as upstream:
        reader = server.request(f"/early/{key}?url={quote(address(upstream, 'requests'))}")
        reader.read_until(b"abc")
        left_at = time.monotonic()
        reader.close()
        assert closed(upstream.exchanges[0]) - left_at < WORST
        note_of(server, key)


def test_silence_is_filled_and_what_the_route_says_is_unchanged(server: LiveServer) -> None:
    key = new_key()
    first, second = threading.Event(), threading.Event()
    script = [hold(first), tokens("abc"), hold(second), tokens("def"), done()]
    with ScriptedUpstream(script) as upstream:
        reader = start(server, "requests", key, upstream)
        with leaving(reader):
            # Each silence lasts until there is a heartbeat in it.
            parts = reader.read_until(b": hb\n")
            first.set()
            parts += reader.read_until(b"abc")
            parts += reader.read_until(b": hb\n")
            second.set()
            body = b"".join(data for _, data in parts) + reader.read()
        assert reader.complete
    assert reader.headers["x-accel-buffering"] == "no"
    assert reader.headers["cache-control"] == "no-cache, no-transform"
    assert "content-length" not in reader.headers
    assert body.startswith(b": open\n") and body.count(b": hb\n") >= 2
    said = body.replace(b": hb\n", b"").replace(b": open\n", b"")
    assert b"llmstream" not in said and said.rstrip().endswith(b"[DONE]"), "no event is added at the end"
    said_by_the_model = [json.loads(event.data) for event in events_of(body) if event.data != "[DONE]"]
    texts = [each["choices"][0]["delta"].get("content") for each in said_by_the_model if each["choices"]]
    assert "".join(text or "" for text in texts) == "abcdef"
    wait_until(lambda: ask(server, f"/notes/{key}").get("closed") == 1, 5, "call_on_close, once")


def test_lines_of_json_get_headers_and_are_watched_but_nothing_is_added(server: LiveServer) -> None:
    key = new_key()
    with ScriptedUpstream([wait(0.8), tokens("abc"), wait(0.8), silence()]) as upstream:
        reader = server.request(f"/lines/{key}?url={quote(address(upstream, 'requests'))}")
        assert reader.headers["x-accel-buffering"] == "no"
        line = b"".join(data for _, data in reader.read_until(b"\n"))
        assert "abc" in json.loads(line.decode())
        left_at = time.monotonic()
        reader.close()
        assert closed(upstream.exchanges[0]) - left_at < WORST
        note_of(server, key)


def test_exception_goes_to_the_server_as_it_did(server: LiveServer) -> None:
    first = server.request("/broken?first=1")
    with leaving(first):
        assert first.status == 500
    later = server.request("/broken")
    with leaving(later):
        assert later.status == 200
        body = later.read()
        assert not later.complete, "who does not know our events must see that it was cut"
    assert [event.event for event in events_of(body)] == [None, "failed"]
    assert "told to" not in body.decode()
    wait_until(lambda: server.log().count("RuntimeError: told to") >= 2, 5, server.log)


def test_plain_answers_pass_untouched(server: LiveServer) -> None:
    reader = server.request("/hello")
    with leaving(reader):
        assert reader.read() == b"hello"
    assert reader.headers["content-length"] == "5"
    assert "x-accel-buffering" not in reader.headers
