"""What a client hears when the model fails: a status before the first byte, an event after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional

import pytest
from procfs import peak_growth, reset_peak
from strict_http import Answer, Events, parse_answer, parse_events, read_all, request_bytes

from flask_llmstream.testing import LiveServer, gunicorn_server
from flask_llmstream.testing.upstreams import (
    Exchange,
    Script,
    ScriptedUpstream,
    Step,
    chunk,
    close_delimited,
    cut,
    delay_headers,
    done,
    headers,
    invalid_utf8,
    raw,
    reset,
    silence,
    status,
    tokens,
)

pytestmark = pytest.mark.live

#: As in the app; what the provider quotes back.
KEY = "sk-live-0123456789abcdef0123456789"
PROMPT = "what the patient told the doctor in confidence"

APP = Path(__file__).with_name("apps_faults") / "relay.py"

#: What the provider says, and what the app sends to it; none of it is for clients.
SECRETS = (b"sk-live", b"patient", b"confidence", b"scripted 4", b"scripted 5", b"Traceback", b"127.0.0.1")

LONG_LINE = 20 * 1024 * 1024


class Fault(NamedTuple):
    """How an upstream fails, and what a client is told."""

    script: Script
    http_status: int
    code: str
    retryable: bool
    retry_after: Optional[str] = None
    #: Read timeout of the upstream call, in seconds.
    timeout: float = 10


REFUSALS: Dict[str, Fault] = {
    "401": Fault([status(401)], 502, "upstream_auth", False),
    "403": Fault([status(403)], 502, "upstream_auth", False),
    "400": Fault([status(400)], 502, "upstream_rejected", False),
    "429": Fault([status(429, headers={"Retry-After": "7"})], 429, "upstream_rate_limited", True, "7"),
    "429-without-retry-after": Fault([status(429)], 429, "upstream_rate_limited", True),
    "500": Fault([status(500)], 502, "upstream_unavailable", True),
    "503": Fault([status(503, headers={"Retry-After": "3"})], 502, "upstream_unavailable", True, "3"),
    "500-with-a-page": Fault(
        [status(500, headers={"Content-Type": "text/html"}, body=f"<h1>{KEY} {PROMPT}</h1>".encode())],
        502, "upstream_unavailable", True,
    ),
    "401-that-quotes": Fault(
        [status(401, json={"error": {"message": f"Incorrect API key {KEY}; you asked: {PROMPT}"}})],
        502, "upstream_auth", False,
    ),
    "no-headers": Fault([delay_headers()], 504, "upstream_timeout", True, timeout=0.2),
    "no-first-token": Fault([silence()], 504, "upstream_timeout", True, timeout=0.2),
    "cut-before-first-token": Fault([raw(b"da"), cut()], 502, "upstream_interrupted", True),
    "reset-before-first-token": Fault([raw(b"da"), reset()], 502, "upstream_interrupted", True),
}

_MIDDLE = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"nev'

BREAKS: Dict[str, Fault] = {
    "cut-mid-event": Fault([raw(_MIDDLE), cut()], 0, "upstream_interrupted", True),
    "reset-mid-event": Fault([raw(_MIDDLE), reset()], 0, "upstream_interrupted", True),
    "ends-without-done": Fault([], 0, "upstream_interrupted", True),
    "close-delimited-ends": Fault([cut()], 0, "upstream_interrupted", True),
    "short-content-length": Fault([cut()], 0, "upstream_interrupted", True),
    # Time enough for the two tokens in any case.
    "goes-silent": Fault([silence()], 0, "upstream_timeout", True, timeout=0.6),
    "invalid-utf8": Fault([invalid_utf8(), done()], 0, "upstream_invalid", False),
    "invalid-json": Fault([raw(b'data: {"choices": [}\n\n'), done()], 0, "upstream_invalid", False),
    "json-of-another-shape": Fault([raw(b'data: ["sk-live"]\n\n'), done()], 0, "upstream_invalid", False),
    "long-line": Fault([raw(b"data: " + b"x" * LONG_LINE + b"\n\n"), done()], 0, "upstream_invalid", False),
    "endless-line": Fault([raw(b"x" * 65536)] * 320 + [silence()], 0, "upstream_invalid", False),
    "endless-event": Fault(
        [raw(b"data: 0123456789\n" * 4096)] * 320 + [silence()], 0, "upstream_invalid", False
    ),
    "error-in-band": Fault(
        [chunk({"error": {"message": f"{KEY} may not ask {PROMPT!r}", "type": "server_error"}})],
        0, "upstream_unavailable", True,
    ),
}
#: What precedes the two tokens that every broken answer begins with.
FRAMING: Dict[str, Script] = {
    "close-delimited-ends": [close_delimited],
    "short-content-length": [headers({"Content-Length": "100000"})],
}


#: Set when the client has the opening of its stream.
opened = threading.Event()


async def _until_opened(answer: Any) -> None:
    while not opened.is_set():
        await asyncio.sleep(0.002)


def script_of(exchange: Exchange) -> Script:
    """Play the script that the request names as its model."""
    name, _, late = exchange.json["model"].partition("+")
    if name in BREAKS:
        return [*FRAMING.get(name, []), tokens("Hel", "lo"), *BREAKS[name].script]
    if name in REFUSALS:
        return [*([Step("until opened", _until_opened)] if late else []), *REFUSALS[name].script]
    return [tokens("Good", " morning"), done()]


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(script_of) as running:
        yield running
        assert not running.errors


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: Any) -> Iterator[LiveServer]:
    with gunicorn_server(APP, request.param, threads=8) as running:
        yield running


Ask = Callable[..., Answer]


@pytest.fixture
def ask(server: LiveServer, upstream: ScriptedUpstream) -> Ask:
    """Return a function that makes one request; whatever comes must be whole and hold no secret."""

    def ask(path: str, base_url: str = "", late: bool = False, **query: Any) -> Answer:
        query["upstream"] = base_url or upstream.url
        target = path + "?" + "&".join(f"{name}={value}" for name, value in query.items())
        with contextlib.closing(server.connect()) as sock:
            opened.clear()
            sock.sendall(request_bytes(target))
            received = b""
            while late and b": open\n" not in received:
                piece = sock.recv(65536)
                assert piece, received
                received += piece
            opened.set()
            received += read_all(sock, 20.0)
        for secret in SECRETS:
            assert secret not in received
        answer = parse_answer(received)
        assert not answer.rest
        return answer

    return ask


@pytest.fixture(autouse=True)
def unharmed(server: LiveServer, upstream: ScriptedUpstream, ask: Ask) -> Iterator[None]:
    """Afterwards the same worker serves, and no connection to the upstream is left half-read."""
    workers = server.worker_pids()
    log_before = len(server.log())
    yield
    answer = ask("/chat/good")
    assert parse_events(answer.body).text == "Good morning"
    assert server.worker_pids() == workers
    # One may be kept for the next call.
    upstream.wait_for(lambda each: each.open_connections <= 1)
    log = server.log()[log_before:]
    assert "Traceback" not in log
    assert "sk-live" not in log and "patient" not in log


def failed(events: Events) -> Any:
    name, value = events.terminal()
    assert name == "failed"
    return value


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_upstream_failing_before_first_token_becomes_a_status(ask: Ask, name: str) -> None:
    fault = REFUSALS[name]
    answer = ask("/chat/" + name, timeout=fault.timeout)
    assert answer.status == fault.http_status
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers.get("retry-after") == fault.retry_after
    assert int(answer.headers["content-length"]) == len(answer.body)
    error = json.loads(answer.body.decode())["error"]
    assert error.pop("message")
    assert error == {"code": fault.code, "retryable": fault.retryable}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_upstream_failing_after_the_hold_becomes_one_event(ask: Ask, name: str) -> None:
    fault = REFUSALS[name]
    answer = ask(f"/chat/{name}+late", late=True, hold=0.02, timeout=fault.timeout + 0.4)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "retry-after" not in answer.headers
    events = parse_events(answer.body)
    assert events.comments[0] == " open"
    assert len(events.events) == 1
    failure = failed(events)
    assert (failure["code"], failure["retryable"]) == (fault.code, fault.retryable)


@pytest.mark.parametrize("hold,http_status", [(5, 502), (0, 200)])
def test_upstream_refusing_the_connection(ask: Ask, hold: float, http_status: int) -> None:
    with contextlib.closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))  # nobody listens there, and nobody else can
        answer = ask("/chat/any", f"http://127.0.0.1:{bound.getsockname()[1]}/v1", hold=hold)
    assert answer.status == http_status
    if http_status == 200:
        error = failed(parse_events(answer.body))
    else:
        error = json.loads(answer.body.decode())["error"]
    assert (error["code"], error["retryable"]) == ("upstream_unavailable", True)


@pytest.mark.parametrize("path", ["/chat/", "/adapted/"])
@pytest.mark.parametrize("name", sorted(BREAKS))
def test_upstream_failing_after_first_token_becomes_one_event(ask: Ask, path: str, name: str) -> None:
    fault = BREAKS[name]
    answer = ask(path + name, timeout=fault.timeout)
    assert answer.status == 200
    events = parse_events(answer.body)
    assert events.text == "Hello"
    failure = failed(events)
    assert sorted(failure) == ["code", "message", "retryable"]
    assert (failure["code"], failure["retryable"]) == (fault.code, fault.retryable)


@pytest.mark.parametrize("name", ["long-line", "endless-line", "endless-event"])
def test_a_line_without_end_takes_bounded_memory(
    server: LiveServer, upstream: ScriptedUpstream, ask: Ask, name: str
) -> None:
    ask("/chat/" + name)  # what is only paid once
    [worker] = server.worker_pids()
    before = reset_peak(worker)
    for _ in range(3):
        ask("/chat/" + name)
    growth = peak_growth(worker, before)
    print(f"{name}: {growth / 2**20:.1f} MiB above {before / 2**20:.1f} MiB")
    assert growth < LONG_LINE / 2
    # It was hung up on, not read to its end.
    upstream.wait_for(lambda each: each.exchanges[-1].closed_at)
    assert not upstream.exchanges[-1].completed
