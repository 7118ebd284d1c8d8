"""When things leave: a lone token at once, a burst in few writes, held text in time, nobody starved."""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from typing import Callable, Iterator, List

import pytest
from asking import APPS, address, ask, ended, events_of, leaving, new_key, produce, text_of

from flask_llmstream.testing import LiveServer, gunicorn_server, read_stream, send_request
from flask_llmstream.testing.upstreams import ScriptedUpstream, done, flood

pytestmark = pytest.mark.live


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    quiet = "accesslog = None"
    with gunicorn_server(
        APPS / "producers.py", worker=request.param, threads=8, config_lines=quiet
    ) as server:
        yield server


@pytest.mark.timing
def test_lone_token_is_never_delayed(server: LiveServer, measured: Callable[..., None]) -> None:
    """Each token says when it was yielded; the next one takes its time."""
    for count, pause in [(3, 1.0), (50, 0.02)]:
        delays: List[float] = []
        with leaving(produce(server, "lone", new_key(), count=count, pause=pause)) as reader:
            for at, data in reader:
                for event in events_of(data):
                    if event.event is None:
                        delays.append(at - float(json.loads(event.data)["text"]))
        assert len(delays) == count
        measured(f"yield → arrival of a token every {pause:g} s", delays)
        assert min(delays) < 0.05 and statistics.median(delays) < pause / 2


@pytest.mark.parametrize("name", ["burst", "delegated_burst"])
def test_items_that_are_ready_together_leave_together(
    server: LiveServer, name: str, noticed: Callable[[str], None]
) -> None:
    with leaving(produce(server, name, new_key(), count=320)) as reader:
        pieces = [data for _, data in reader]
    assert text_of(b"".join(pieces[:-1])) + text_of(pieces[-1].partition(b"event:")[0]) == "x" * 320
    noticed(f"320 items in {len(pieces)} writes")
    assert len(pieces) <= 30


def test_burst_of_an_upstream_leaves_in_few_writes(
    server: LiveServer, noticed: Callable[[str], None]
) -> None:
    with ScriptedUpstream([flood(256, "token ", burst=256), done()]) as upstream:
        reader = produce(server, "upstream_burst", new_key(), base_url=upstream.url)
        with leaving(reader):
            pieces = [data for _, data in reader]
    body = b"".join(pieces)
    assert body.count(b'"token "') == 256
    noticed(f"256 tokens that arrived together in {len(pieces)} writes")
    assert len(pieces) <= 64


@pytest.mark.timing
@pytest.mark.slow
def test_generator_that_never_blocks_starves_nobody(
    server: LiveServer, measured: Callable[..., None], noticed: Callable[[str], None]
) -> None:
    count = 150_000
    path = address("flood", new_key(), count=count)
    taken = threading.Event()
    sizes: List[int] = []

    def drain(sock: socket.socket) -> None:
        buffer = bytearray(1 << 20)
        sock.settimeout(60)
        last = b""
        while b"0\r\n\r\n" not in last:
            size = sock.recv_into(buffer)
            sizes.append(size)
            last = last[-4:] + bytes(buffer[max(0, size - 5) : size])
            if not size:
                break
        taken.set()

    waits: List[float] = []
    with server.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        started_at = time.monotonic()
        send_request(sock, path)
        thread = threading.Thread(target=drain, args=(sock,))
        thread.start()
        with server.connect() as other:
            while not taken.is_set():
                asked_at = time.monotonic()
                send_request(other, "/ping")
                assert read_stream(other).read() == b"pong"
                waits.append(time.monotonic() - asked_at)
        thread.join(60)
        took = time.monotonic() - started_at
    noticed(f"{count} items, {sum(sizes) / 1e6:.1f} MB in {took:.2f} s")
    measured("wait of another request meanwhile", waits)
    assert len(waits) > 3, "nobody else was served while the flood lasted"
    assert statistics.median(waits) < 0.25 and max(waits) < took / 2


@pytest.mark.timing
def test_generator_that_never_blocks_and_says_nothing_starves_nobody(
    server: LiveServer, measured: Callable[..., None]
) -> None:
    waits: List[float] = []
    with leaving_later(server) as is_over, server.connect() as other:
        while not is_over():
            asked_at = time.monotonic()
            send_request(other, "/ping")
            assert read_stream(other).read() == b"pong"
            waits.append(time.monotonic() - asked_at)
    measured("wait of another request meanwhile", waits)
    assert len(waits) > 3 and max(waits) < 1.4  # it lasts 1.5 s; that much is not a stall of the machine


class leaving_later:
    """Asks for the hasty generator and tells when it is over."""

    def __init__(self, server: LiveServer) -> None:
        self.sock = server.connect()
        send_request(self.sock, address("hasty", new_key(), seconds=1.5))

    def __enter__(self) -> Callable[[], bool]:
        self.sock.settimeout(0)
        return self.is_over

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def is_over(self) -> bool:
        try:
            return b"done" in self.sock.recv(65536)
        except BlockingIOError:
            return False


def arrival(server: LiveServer, name: str, marker: bytes, **options: object) -> float:
    """Return how many seconds after its head *marker* has come."""
    asked_at = time.monotonic()
    with leaving(produce(server, name, new_key(), options, seconds=2)) as reader:
        at = reader.read_until(marker)[-1][0] - asked_at
        body = reader.read()
        assert body.endswith(b"\n\n") and reader.complete
    return at


def test_what_is_sent_leaves_at_once(server: LiveServer) -> None:
    assert arrival(server, "sending", b"first ") < 1.8


def test_what_is_flushed_leaves_at_once(server: LiveServer) -> None:
    assert arrival(server, "flushing", b"half a li", chunk="line", max_delay=30) < 1.8


def test_held_text_leaves_after_max_delay_while_the_generator_blocks(server: LiveServer) -> None:
    at = arrival(server, "holding", b"half a li", chunk="line", max_delay=0.4)
    assert 0.35 <= at < 1.6


def test_held_text_waits_for_its_segment_within_max_delay(server: LiveServer) -> None:
    key = new_key()
    options = {"chunk": "line", "max_delay": 30}
    with leaving(produce(server, "holding", key, options, seconds=0.2)) as reader:
        events = events_of(reader.read())
    assert [event.data for event in events][:-1] == ['{"text":"half a line\\n"}']
    assert ended(server, key)["ends"][0]["text"] == "half a line\n"


def test_current_stream_is_refused_outside_of_a_stream(server: LiveServer) -> None:
    reader = server.request("/outside")
    with leaving(reader):
        said = reader.read().decode()
    assert said == (
        "False: current_stream.send was used where no stream is running; use it inside the"
        " generator, and in the same thread or greenlet"
    )


def test_contexts_are_there_and_are_torn_down_after_the_generator(server: LiveServer) -> None:
    with server.connect() as sock:
        rest = b""
        for word in ("first", "second"):  # on one connection, so in one greenlet or thread
            send_request(sock, f"/contexts?word={word}")
            reader = read_stream(sock, buffered=rest)
            body = reader.read()
            rest = reader.rest
            assert reader.complete
            assert text_of(body.partition(b"event:")[0]) == "".join(
                f"{word} {number} producers\n" for number in (1, 2, 3)
            )
            found = ask(server, "/order")
            assert found["leftover"] == []
            order = found["order"]
            cleaned_up = order.index(f"finally with {word} 3")
            # Flask 3.1.2 and newer tear down twice: behind the view, and behind the generator.
            behind = [each for each in order[cleaned_up:] if not each.startswith("teardown_app")]
            assert behind == [
                f"finally with {word} 3", "teardown_request", "on_end with producers"
            ]
            assert order.index("teardown_appcontext", cleaned_up) < order.index("on_end with producers")


def test_contexts_are_torn_down_when_the_client_leaves(server: LiveServer) -> None:
    with leaving(server.request("/contexts?word=gone")) as reader:
        reader.read_until(b"gone 1")
    deadline = time.monotonic() + 10
    while ask(server, "/order")["order"][-1:] != ["on_end with producers"]:
        assert time.monotonic() < deadline, ask(server, "/order")
        time.sleep(0.01)
    order = ask(server, "/order")["order"]
    assert [each for each in order if each.startswith("finally")] != []
    assert order.index("on_end with producers") == len(order) - 1
