"""Clients that vanish, that do not read, that say nothing, and crowds of them."""

from __future__ import annotations

import contextlib
import resource
import socket
import statistics
import threading
import time
from typing import Any, Dict, Iterator, List

import pytest
from procfs import peak_growth, reset_peak
from seeing import begin, ended, logged, new_key, notes, path_of, serving, unharmed

from flask_llmstream.testing import LiveServer, ScriptedUpstream, send_request
from flask_llmstream.testing.upstreams import flood, silence, tokens

pytestmark = [pytest.mark.faults, pytest.mark.live]

#: ``slow_reader_timeout`` of the tests, in seconds, and how late a busy machine may be.
SLOW, LATE = 2.0, 4.0
#: Clients that say nothing, as many as gunicorn is told to take and some more.
CONNECTIONS, IDLE = 40, 45
#: gunicorn's ``keepalive`` in those tests, in seconds.
KEEPALIVE = 2.0
#: A crowd: connections, in seconds.
CROWD, WITHIN = 10_000, 10.0


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: Any, network: Any) -> Iterator[LiveServer]:
    with serving(request.param, slow_reader_timeout=SLOW) as running:
        yield running


#: What the model does when its reader vanishes.
MODELS: Dict[str, List[Any]] = {
    "is silent": [tokens("a"), silence()],
    "goes on": [tokens(*map(str, range(1000)), interval=0.05)],
    "floods": [flood(2_000_000)],
}


@pytest.mark.parametrize("what", sorted(MODELS))
def test_a_client_that_vanishes(
    server: LiveServer, network: Any, model: ScriptedUpstream, record: Any, what: str
) -> None:
    """No FIN, no RST: the kernel alone would send again for a quarter of an hour."""
    model.script = MODELS[what]
    since = len(server.log())
    with unharmed(server):
        key, asked = new_key(), time.monotonic()
        reader, _ = begin(server, path_of("chat", key, model="any", upstream=model.url))
        with reader:
            network.black_hole(reader.sock.getsockname()[1])
            began = time.monotonic()
            reason = ended(server, key, 30.0)
            took = time.monotonic() - began
            # The first rule is in force before the second is made, and a reader's buffer may be full before.
            assert began - asked + took >= SLOW
            exchange = model.exchanges[-1]
            model.wait_for(lambda _: exchange.closed_at)
    print(f"a model that {what}: over after {took:.1f} s")
    assert reason == "disconnect" and took < 1.5 * SLOW + LATE
    said = logged(server, "has acknowledged nothing|has read nothing", since)
    if what == "goes on":
        record(
            "client-hole", client="nothing: no packet reaches it",
            model=f"closed {took:.1f} s after the last packet", log=said + "; reason `disconnect`",
        )


def test_a_client_that_never_reads(server: LiveServer, model: ScriptedUpstream, record: Any) -> None:
    model.script = MODELS["floods"]
    since = len(server.log())
    [worker] = server.worker_pids()
    with unharmed(server), server.connect(receive_buffer=4096) as sock:
        key, memory, began = new_key(), reset_peak(worker), time.monotonic()
        send_request(sock, path_of("chat", key, model="any", upstream=model.url))
        reason = ended(server, key, 30.0)
        took, exchange = time.monotonic() - began, model.exchanges[-1]
        model.wait_for(lambda _: exchange.closed_at)
        growth = peak_growth(worker, memory) / 2**20
    print(f"over after {took:.1f} s, memory grew by {growth:.1f} MiB")
    assert reason == "disconnect" and SLOW <= took < 1.5 * SLOW + LATE and growth < 32
    record(
        "never-reads", client="what its own buffers hold; then the connection is cut",
        model=f"held back, and closed after {took:.1f} s",
        log=logged(server, "has read nothing", since) + "; reason `disconnect`",
    )


#: What clients send that never finish their request.
STARTS = {
    "heads": (b"", b"GET /plain HTTP/1.1\r\nHost: half"),
    "bodies": (
        b"POST /chat/x HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
    ),
}


@pytest.mark.parametrize("what", sorted(STARTS))
def test_requests_that_are_never_finished(record: Any, what: str) -> None:
    """gunicorn's gevent worker serves ``worker_connections`` at once, silent ones included."""
    lines = f"worker_connections = {CONNECTIONS}\nkeepalive = {KEEPALIVE:g}"
    with serving(config_lines=lines) as server, contextlib.ExitStack() as stack:
        reader, _ = begin(server, path_of("words", new_key(), count=1000, pause=0.1))
        stack.enter_context(reader)
        idle = [stack.enter_context(server.connect()) for _ in range(IDLE)]
        for number, sock in enumerate(idle):
            sock.sendall(STARTS[what][number % len(STARTS[what])])
        began = time.monotonic()
        late = stack.enter_context(server.connect(timeout=KEEPALIVE + LATE))
        send_request(late, "/plain")
        if what == "bodies":
            with pytest.raises(socket.timeout):
                late.recv(1)
            for sock in idle[: IDLE // 2]:
                sock.close()
        assert late.recv(12) == b"HTTP/1.1 200"
        waited = time.monotonic() - began
        assert reader.read_until(b'"text"'), "the stream that runs goes on"
    print(f"{what}: the next request waited {waited:.1f} s")
    if what == "heads":
        assert waited < KEEPALIVE + LATE
        record(
            "half-heads",
            client=f"closed without a word after gunicorn's `keepalive` ({KEEPALIVE:g} s here); running"
            f" streams go on; behind `worker_connections` of them a new request waited {waited:.1f} s",
            model="none", log="nothing",
        )
    else:
        record(
            "half-bodies",
            client="nothing: gunicorn has no time limit for a body. Running streams go on; behind"
            " `worker_connections` of them new requests wait until one leaves",
            model="none", log="nothing",
        )


@pytest.mark.timing
def test_a_crowd(record: Any) -> None:
    """Ten thousand connections in ten seconds: idle ones, half requests, streams, and people who leave."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CROWD + 2000
    with contextlib.ExitStack() as limits:
        before = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, before[0]), max(hard, wanted)))
        limits.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        # Nobody is sent away for being silent, so that all are there at once.
        lines = f"worker_connections = {CROWD + 1000}\nbacklog = 4096\nkeepalive = 60"
        env = {"COVERAGE_PROCESS_START": None, "COVERAGE_PROCESS_CONFIG": None}
        with serving(config_lines=lines, env=env) as server, unharmed(server):
            crowd(server, record)


def crowd(server: LiveServer, record: Any) -> None:
    key, over = new_key(), threading.Event()
    took: List[float] = []
    faults: List[BaseException] = []

    def ask_on() -> None:
        try:
            while not over.wait(0.1):
                began = time.monotonic()
                with server.request("/plain", timeout=30.0) as reader:
                    assert reader.status == 200 and reader.read()
                took.append(time.monotonic() - began)
        except BaseException as error:
            faults.append(error)

    asking = threading.Thread(target=ask_on)
    stream = path_of("words", key, count=4, pause=0.5)
    streams: List[socket.socket] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(asking.join)
        stack.callback(over.set)
        asking.start()
        for number in range(CROWD):
            due = began + number * WITHIN / CROWD
            time.sleep(max(0.0, due - time.monotonic()))
            sock = stack.enter_context(server.connect(timeout=30.0))
            if number % 10 == 0:
                send_request(sock, stream, headers={"Connection": "close"})
                streams.append(sock)
            elif number % 10 == 1:
                sock.sendall(b"POST /chat/x HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            elif number % 10 == 2:
                sock.close()
        opened = time.monotonic() - began
        assert notes(server)["fds"] > CROWD // 2
        whole = sum(_rest(sock).count(b"event: done\n") for sock in streams)
    assert not faults, faults
    assert whole == len(streams) == len(notes(server, key)["ends"])
    took.sort()
    said = (
        f"{len(took)} ordinary requests meanwhile: median {1000 * statistics.median(took):.0f} ms,"
        f" longest {1000 * took[-1]:.0f} ms"
    )
    print(f"{CROWD} connections in {opened:.1f} s; {said}")
    assert statistics.median(took) < 1.0 and took[-1] < 15.0
    record(
        "crowd",
        client=f"all {whole:,} streams among them whole; {said}", model="none",
        log="nothing; all descriptors are back when the crowd has gone",
    )


def _rest(sock: socket.socket) -> bytes:
    pieces = [b"?"]
    while pieces[-1]:
        pieces.append(sock.recv(65536))
    return b"".join(pieces)
