"""A relayed stream is the provider's, byte for byte, and ours in everything else."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import statistics
import threading
import time
from functools import partial
from typing import Any, Callable, Dict, Iterator, List
from urllib.parse import urlencode

import pytest
from asking import APPS, ask, ended, events_of, leaving, new_key

from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import (
    ScriptedUpstream,
    cut,
    delay_headers,
    done,
    headers,
    hold,
    raw,
    silence,
    status,
    tokens,
    wait,
)

pytestmark = pytest.mark.live

HTTPX = pytest.param(
    "httpx",
    marks=pytest.mark.skipif(importlib.util.find_spec("httpx") is None, reason="this stack has no httpx"),
)
#: Odd in every way in which an event stream may be.
ODD = (
    ': welcome\n\nid: 7\nretry: 10\ndata: {"a": "é"}\r\n\r\ndata:no space\ndata\n\nevent: x\ndata: 🙂🙂\n\n'
    "data: last, and no end"
).encode()
HEARTBEAT = b": hb\n"
KEY = "sk-live-0123456789abcdef"


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with gunicorn_server(
        APPS / "relaying.py", worker=request.param, threads=8, config_lines="accesslog = None"
    ) as server:
        yield server


def start(
    server: LiveServer, upstream: ScriptedUpstream, key: str, way: str = "requests", **query: Any
) -> StreamReader:
    address = urlencode(dict(query, key=key, url=upstream.url + "/chat/completions"))
    return server.request(f"/relay/{way}?{address}", json={"stream_options": {"include_usage": True}})


@pytest.mark.parametrize("way", ["requests", "opened", HTTPX])
def test_bytes_are_those_of_the_provider(server: LiveServer, way: str) -> None:
    chance = random.Random(way)
    for _ in range(5):
        cuts = sorted(chance.sample(range(1, len(ODD)), 6))
        pieces = [ODD[i:j] for i, j in zip([0] + cuts, cuts + [len(ODD)])]
        with ScriptedUpstream([raw(piece) for piece in pieces]) as upstream:
            with leaving(start(server, upstream, new_key(), way)) as reader:
                assert reader.read() == ODD
                assert reader.complete
                assert reader.headers["content-type"] == "text/event-stream"
                assert reader.headers["x-mine"] == "kept"
                assert reader.headers["x-accel-buffering"] == "no"


def test_heartbeats_stand_between_events_only(server: LiveServer) -> None:
    whole = b'data: {"a": 1}\n\n'
    half = b'data: {"b": "' + b"x" * 70000  # more than is held back
    rest = b'"}\n\n'
    more, over = threading.Event(), threading.Event()
    script = [raw(whole), hold(more), raw(half), wait(0.1), raw(rest), hold(over)]
    with ScriptedUpstream(script) as upstream:
        with leaving(start(server, upstream, new_key(), heartbeat_interval=0.01)) as reader:
            parts = reader.read_until(b"}\n\n" + HEARTBEAT)
            more.set()
            parts += reader.read_until(b"}\n\n" + HEARTBEAT)
            over.set()
            body = b"".join(data for _, data in parts) + reader.read()
    assert half + rest in body, "nothing stands inside an event"
    first, last = body.split(half + rest)
    assert first.startswith(whole) and len(first) > len(whole) and len(last) > 0
    assert body.replace(HEARTBEAT, b"") == whole + half + rest


def test_silent_provider_is_waited_for_with_comments(server: LiveServer) -> None:
    flag = threading.Event()
    with ScriptedUpstream([hold(flag), tokens("a"), done()]) as upstream:
        options = {"heartbeat_interval": 0.1, "status_hold": 0.2}
        with leaving(start(server, upstream, new_key(), **options)) as reader:
            body = b"".join(data for _, data in reader.read_until(HEARTBEAT))
            flag.set()
            body += reader.read()
    assert body.startswith(b": open\n: hb\n")
    assert [event.data for event in events_of(body)][-1] == "[DONE]"


@pytest.mark.timing
@pytest.mark.parametrize("way", ["requests", "opened", HTTPX])
def test_client_that_leaves_closes_the_provider(
    server: LiveServer, way: str, measured: Callable[..., None]
) -> None:
    latencies: List[float] = []
    with ScriptedUpstream([tokens("a", "b"), silence()]) as upstream:
        for _ in range(10):
            key = new_key()
            reader = start(server, upstream, key, way)
            reader.read_until(b'"b"')
            exchange = upstream.exchanges[-1]
            left_at = time.monotonic()
            reader.close()
            wait_until(lambda: exchange.closed_at is not None, 10)
            latencies.append((exchange.closed_at or 0) - left_at)
            (end,) = ended(server, key)["ends"]
            assert end["reason"] == "disconnect"
            assert end["tokens"] == 2 and end["estimated"] is True
    measured("client leaves → upstream sees it", latencies)
    assert statistics.median(latencies) <= 0.1 and max(latencies) <= 2.0


def test_client_that_leaves_before_the_provider_answers_closes_it(server: LiveServer) -> None:
    with ScriptedUpstream([delay_headers()]) as upstream:
        key = new_key()
        address = urlencode({"key": key, "url": upstream.url})
        with contextlib.closing(server.connect()) as sock:
            sock.sendall(f"GET /relay/requests?{address} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            exchange = upstream.wait_for(lambda u: u.exchanges and u.exchanges[0])
            assert exchange is not None
        wait_until(lambda: exchange.closed_at is not None, 5)
        (end,) = ended(server, key)["ends"]
        assert (end["reason"], end["tokens"]) == ("disconnect", None)


def test_usage_is_read_on_the_side(server: LiveServer) -> None:
    with ScriptedUpstream([tokens("a", "b", "c"), done()]) as upstream:
        key = new_key()
        with leaving(start(server, upstream, key)) as reader:
            assert b'"completion_tokens":3' in reader.read()
    (end,) = ended(server, key)["ends"]
    assert (end["reason"], end["input_tokens"], end["tokens"], end["estimated"]) == ("finish", 7, 3, False)


def test_usage_can_be_hidden_from_clients_that_did_not_ask(server: LiveServer) -> None:
    with ScriptedUpstream([tokens("a", "b", "c"), done()]) as upstream:
        key = new_key()
        with leaving(start(server, upstream, key, hide=1)) as reader:
            body = reader.read()
    said = [event.data for event in events_of(body)]
    assert said[-1] == "[DONE]" and len(said) == 5
    assert all(json.loads(data)["choices"] for data in said[:-1])
    (end,) = ended(server, key)["ends"]
    assert (end["input_tokens"], end["tokens"], end["estimated"]) == (7, 3, False)


def test_answer_in_one_piece_passes_too(server: LiveServer) -> None:
    answer = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6},
    }
    with ScriptedUpstream([status(200, json=answer)]) as upstream:
        key = new_key()
        with leaving(start(server, upstream, key, heartbeat_interval=0.01)) as reader:
            assert json.loads(reader.read()) == answer
            assert reader.headers["content-type"] == "application/json"
    (end,) = ended(server, key)["ends"]
    assert (end["input_tokens"], end["tokens"], end["estimated"]) == (5, 1, False)


REFUSALS: Dict[str, Any] = {
    "400": ([status(400, json={"error": {"message": "no such model"}})], 400, b"no such model"),
    "429": ([status(429, headers={"Retry-After": "7", "X-Should-Retry": "true"})], 429, b"scripted 429"),
    "500": ([status(500, headers={"Content-Type": "text/plain"}, body=b"oops")], 500, b"oops"),
    "401": ([status(401, json={"error": {"message": f"Incorrect API key {KEY}"}})], 502, b"upstream_auth"),
    "403": ([status(403)], 502, b"upstream_auth"),
    "302": ([status(302, headers={"Location": "http://127.0.0.1:1/"})], 502, b"upstream_rejected"),
    "nothing": ([cut()], 502, b"upstream_unavailable"),
}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_refusals_are_the_providers_unless_they_are_about_the_key(server: LiveServer, name: str) -> None:
    script, code, said = REFUSALS[name]
    secret = headers({"Set-Cookie": "id=1", "X-RateLimit-Remaining": "3", "X-Request-Id": "r1"})
    with ScriptedUpstream([secret] + script) as upstream:
        key = new_key()
        with leaving(start(server, upstream, key, way="requests")) as reader:
            body = reader.read()
    assert reader.status == code, body
    assert said in body
    assert KEY.encode() not in body and KEY not in str(reader.headers)
    assert "set-cookie" not in reader.headers and "x-ratelimit-remaining" not in reader.headers
    if name == "429":
        assert reader.headers["retry-after"] == "7" and reader.headers["x-should-retry"] == "true"
        assert reader.headers["x-request-id"] == "r1"
    (end,) = ended(server, key)["ends"]
    assert end["reason"] == "error" and end["error"]
    assert KEY not in server.log()


@pytest.mark.parametrize("script, query, code", [
    ([tokens("a"), raw(b'data: {"half'), cut()], {}, "upstream_interrupted"),
    ([tokens("a"), silence()], {"max_duration": 0.5}, "timeout"),
], ids=["cut", "timeout"])
def test_what_breaks_off_is_said_as_the_provider_would(
    server: LiveServer, script: Any, query: Any, code: str
) -> None:
    with ScriptedUpstream(script) as upstream:
        key = new_key()
        with leaving(start(server, upstream, key, **query)) as reader:
            body = reader.read()
    assert not reader.complete, "the connection breaks off as well"
    last = events_of(body)[-1]
    assert last.event == "error"
    said = json.loads(last.data)
    assert b"half" not in body, "half an event is of no use"
    assert said["type"] == "error" and said["error"]["code"] == code and said["error"]["message"]
    ended(server, key)


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_sdk_of_the_provider_raises_what_has_broken_off(server: LiveServer, package: str) -> None:
    sdk = pytest.importorskip(package)
    query = {"key": new_key()}
    begin = {"type": "message_start", "message": {
        "id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 1},
    }}
    script = [tokens("a")] if package == "openai" else [
        raw(b"event: message_start\ndata: " + json.dumps(begin).encode() + b"\n\n")
    ]
    with ScriptedUpstream(script + [raw(b"event: half"), cut()]) as upstream:
        query["url"] = upstream.url
        address = server.url + "/relay/requests"
        messages = [{"role": "user", "content": "Hi"}]
        seen = []
        if package == "openai":
            client = sdk.OpenAI(base_url=address, api_key="k", default_query=query, max_retries=0)
            call = partial(client.chat.completions.create, model="m", messages=messages, stream=True)
        else:
            client = sdk.Anthropic(base_url=address, api_key="k", default_query=query, max_retries=0)
            call = partial(client.messages.create, model="m", messages=messages, max_tokens=5, stream=True)
        with client, pytest.raises(sdk.APIError, match="cut off"):
            for each in call():
                seen.append(each)
    assert len(seen) == 1
    (end,) = ended(server, query["key"])["ends"]
    assert end["reason"] == "error" and "upstream_interrupted" not in end["text"]
    if package == "anthropic":
        assert (end["input_tokens"], end["estimated"]) == (7, True)


def test_head_opens_nothing(server: LiveServer) -> None:
    with ScriptedUpstream() as upstream:
        address = urlencode({"key": new_key(), "url": upstream.url})
        with leaving(server.request(f"/relay/requests?{address}", method="HEAD")) as reader:
            assert reader.status == 200
        assert upstream.requests == 0


def test_connections_are_used_again(server: LiveServer) -> None:
    with ScriptedUpstream([tokens("a"), done()]) as upstream:
        for _ in range(5):
            with leaving(start(server, upstream, new_key())) as reader:
                reader.read()
                assert reader.complete
        assert (upstream.requests, upstream.connections) == (5, 1)


def test_what_is_no_answer_is_named(server: LiveServer) -> None:
    with leaving(server.request("/wrong")) as reader:
        assert reader.status == 500
        reader.read()
    server.wait_for_log("expected a requests.Response made with stream=True")


def test_nothing_is_left_over(server: LiveServer) -> None:
    before = ask(server, "/counts")
    with ScriptedUpstream([tokens("a"), silence()]) as upstream:
        readers = [start(server, upstream, new_key()) for _ in range(6)]
        for reader in readers:
            reader.read_until(b'"a"')
            reader.close()
        wait_until(lambda: upstream.open_connections == 0, 5)

    def left() -> Dict[str, int]:
        after = ask(server, "/counts")
        # Fewer is what the tests before have left to be tidied up.
        names = ("streams", "bound", "running", "watched")
        return {name: after[name] - before[name] for name in names if after[name] > before[name]}

    wait_until(lambda: not left(), 5, left)
