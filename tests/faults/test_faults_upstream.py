"""A model that dies, vanishes, breaks off or crawls: what its reader is told, and when."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator, List

import pytest
from raw_model import RawModel, chunked
from seeing import (
    begin,
    ended,
    free_port,
    logged,
    model_process,
    new_key,
    notes,
    path_of,
    see,
    serving,
    unharmed,
)

from flask_llmstream.testing import LiveServer, ScriptedUpstream, wait_until
from flask_llmstream.testing.scripts import Step
from flask_llmstream.testing.upstreams import done, hold, reset, silence, tokens, wait

pytestmark = [pytest.mark.faults, pytest.mark.live]

#: Seconds; what the tests set, where the defaults would take minutes.
CONNECT, READ, IDLE = 1.0, 2.0, 1.0
TIMEOUTS = [CONNECT, READ]
#: How late anything may be on a busy machine.
LATE = 3.0


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def kind(request: Any) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str, network: Any) -> Iterator[LiveServer]:
    with serving(kind, status_hold=5.0) as running:
        yield running


@pytest.fixture(scope="module")
def impatient(kind: str, network: Any) -> Iterator[LiveServer]:
    """The same with an ``idle_timeout``, and heartbeats of which several are due before it."""
    with serving(kind, status_hold=5.0, idle_timeout=IDLE, heartbeat_interval=0.2) as running:
        yield running


def chat(key: str, url: str) -> str:
    return path_of("chat", key, model="any", upstream=url, timeouts=TIMEOUTS)


def test_a_model_that_is_killed_before_its_answer(server: LiveServer, record: Any) -> None:
    since = len(server.log())
    with unharmed(server), model_process("--delay", "60") as (process, url), ThreadPoolExecutor(1) as pool:
        key = new_key()
        asked = pool.submit(server.request, chat(key, url), timeout=20.0)
        wait_until(lambda: notes(server, key)["begun"], 5.0, "the call of the model")
        time.sleep(0.2)  # for the request to be on its way
        process.kill()
        seen = see(asked.result(), time.monotonic())
    assert seen.end == ("status", "upstream_unavailable") and seen.status == 502
    assert seen.took < LATE and ended(server, key) == "error"
    record(
        "killed-before", client=seen.words, model="is gone",
        log=logged(server, "failed after 0 pieces", since) + "; reason `error`",
    )


def test_a_model_that_is_killed_in_the_middle(server: LiveServer, record: Any) -> None:
    since = len(server.log())
    with unharmed(server), model_process("--interval", "0.05", "--tokens", "1000") as (process, url):
        key = new_key()
        reader, data = begin(server, chat(key, url))
        killed_at = time.monotonic()
        process.send_signal(signal.SIGKILL)
        seen = see(reader, killed_at, data)
    assert seen.complete and seen.end == ("failed", "upstream_interrupted") and " token" in seen.text
    assert seen.took < LATE and ended(server, key) == "error"
    record(
        "killed-middle", client="what had come, then " + seen.words, model="is gone",
        log=logged(server, "failed after [1-9]", since) + "; reason `error`",
    )


def test_a_model_that_resets_the_connection(server: LiveServer, model: ScriptedUpstream, record: Any) -> None:
    since = len(server.log())
    model.script = [tokens("Hel", "lo"), wait(0.3), reset()]
    with unharmed(server):
        key = new_key()
        reader, data = begin(server, chat(key, model.url))
        seen = see(reader, time.monotonic(), data)
    assert seen.text == "Hello" and seen.end == ("failed", "upstream_interrupted") and seen.took < LATE
    assert ended(server, key) == "error"
    record(
        "reset-middle", client="what had come, then " + seen.words.partition(" after")[0] + " at once",
        model="is gone", log=logged(server, "failed after 2 pieces", since) + "; reason `error`",
    )


def test_a_black_hole_before_the_connection(server: LiveServer, network: Any, record: Any) -> None:
    """Nobody answers the SYN; the kernel would try for two minutes."""
    port, since = free_port(), len(server.log())
    network.black_hole(port)
    with unharmed(server):
        key, began = new_key(), time.monotonic()
        seen = see(server.request(chat(key, f"http://127.0.0.1:{port}/v1"), timeout=20.0), began)
    assert seen.end == ("status", "upstream_timeout") and seen.status == 504
    assert CONNECT <= seen.took < CONNECT + LATE and ended(server, key) == "error"
    record(
        "hole-before", client=f"{seen.words}; `timeout[0]` is {CONNECT:g} s", model="none",
        log=logged(server, "failed after 0 pieces", since) + "; reason `error`",
    )


def hold_headers(flag: threading.Event) -> Step:
    """Send nothing at all until *flag* is set, not even the status."""

    async def run(answer: Any) -> None:
        while not flag.is_set():
            await asyncio.sleep(0.01)

    return Step("hold_headers(…)", run)


def test_a_black_hole_after_the_request(
    server: LiveServer, network: Any, model: ScriptedUpstream, record: Any
) -> None:
    cut_off = threading.Event()
    model.script = [hold_headers(cut_off), tokens("never seen"), done()]
    since, known = len(server.log()), model.requests
    with unharmed(server), ThreadPoolExecutor(1) as pool:
        key = new_key()
        asked = pool.submit(server.request, chat(key, model.url), timeout=20.0)
        model.wait_for(lambda each: each.requests > known)
        network.black_hole(model.port)
        cut_off.set()
        seen = see(asked.result(), time.monotonic() - READ)  # from the request, nearly
        exchange = model.exchanges[-1]
        assert ended(server, key) == "error" and seen.end == ("status", "upstream_timeout")
        assert seen.status == 504
        assert not exchange.closed_at, "no packet can tell it"
        network.heal()
        model.wait_for(lambda _: exchange.closed_at, 30.0)
    record(
        "hole-after", client=f"504, `upstream_timeout`, after `timeout[1]` ({READ:g} s)",
        model="closed here; the model hears of it when packets pass again",
        log=logged(server, "failed after 0 pieces", since) + "; reason `error`",
    )


@pytest.mark.parametrize("limit", ["read", "idle"])
def test_a_black_hole_in_the_middle(
    request: Any, kind: str, network: Any, model: ScriptedUpstream, record: Any, limit: str
) -> None:
    """Heartbeats go on meanwhile; what ends it is ``timeout[1]`` of the call, or ``idle_timeout``."""
    cut_off, more = threading.Event(), tokens(*map(str, range(100)), interval=0.05)
    model.script = [tokens("Hel", "lo"), hold(cut_off), more, silence()]
    server: LiveServer = request.getfixturevalue("impatient" if limit == "idle" else "server")
    since, bound = len(server.log()), IDLE if limit == "idle" else READ
    with unharmed(server):
        key, asked = new_key(), time.monotonic()
        reader, data = begin(server, chat(key, model.url))
        exchange = model.exchanges[-1]
        network.black_hole(model.port)
        cut_off.set()
        seen = see(reader, time.monotonic(), data)
        assert time.monotonic() - asked >= bound, "no sooner than after that long without a piece"
        assert seen.complete and seen.end == ("failed", "upstream_timeout")
        assert seen.took < bound * 1.25 + LATE
        assert seen.body.count(b": hb\n") >= 1
        reason = ended(server, key)
        assert reason == ("timeout" if limit == "idle" else "error")
        assert not exchange.closed_at
        network.heal()
        model.wait_for(lambda _: exchange.closed_at, 30.0)
    record(
        f"hole-middle-{limit}",
        client=f"what had come, heartbeats, then {seen.words}; the limit is {bound:g} s",
        model="closed here; the model hears of it when packets pass again",
        log=logged(server, "failed after 2 pieces|ended: timeout", since) + f"; reason `{reason}`",
    )


def test_a_model_that_sends_a_byte_a_second(
    server: LiveServer, impatient: LiveServer, record: Any
) -> None:
    """Neither framing nor heartbeats suffer; ``idle_timeout`` asks for items, not for bytes."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    first = b'data: {"choices":[{"index":0,"delta":{"content":"first "}}]}\n\n'
    second = b'data: {"choices":[{"index":0,"delta":{"content":"sec\xc3\xb6nd"},"finish_reason":"stop"}]}\n\n'
    at = second.index(b"\xc3") - 1
    wire = chunked(second)
    cut = wire.index(second) + at
    slow: List[Any] = []
    for number in range(cut, cut + 5):  # the two bytes of a letter are seconds apart, too
        slow += [1.0, wire[number : number + 1]]
    steps = [head, chunked(first), wire[:cut], *slow, wire[cut + 5 :], chunked(b"data: [DONE]\n\n", b"")]
    with unharmed(server), unharmed(impatient), RawModel(steps) as crawling, ThreadPoolExecutor(1) as pool:
        key, given_up, began = new_key(), new_key(), time.monotonic()
        # Longer than the pause of a byte even on a busy machine, and shorter than all of them.
        patient = path_of("chat", key, model="any", upstream=crawling.url, timeouts=[CONNECT, 2 * READ])
        reader, data = begin(server, patient)
        other, other_data = begin(impatient, chat(given_up, crawling.url))
        waiting = pool.submit(see, other, time.monotonic(), other_data)
        seen = see(reader, began, data)
        assert seen.text == "first secönd" and seen.end == ("done", "stop") and seen.took > 4.5
        beats = seen.body.count(b": hb\n")
        assert beats >= 4, "heartbeats come meanwhile"
        limited = waiting.result()
        assert limited.text == "first " and limited.end == ("failed", "upstream_timeout")
        assert limited.took < IDLE * 1.25 + LATE
        assert ended(server, key) == "finish" and ended(impatient, given_up) == "timeout"
        wait_until(lambda: crawling.broken == 1, 10.0, "the connection of the impatient one to end")
    print(f"{beats} heartbeats in {seen.took:.1f} s; the impatient one ended after {limited.took:.1f} s")
    record(
        "byte-a-second",
        client=f"every token when it is whole, heartbeats between, `done`; with `idle_timeout={IDLE:g}`"
        f" {limited.words}",
        model="open to its end; closed at once by `idle_timeout`",
        log="nothing; reason `finish`, or `timeout`",
    )
