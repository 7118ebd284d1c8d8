"""Leaving a stream early: at once, from anywhere, and so that the server sees it."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from typing import Any, Callable, List

import pytest
import requests
from scripted import PATIENCE, Exchange, Serve, wait_for

from flask_llmstream.blocked import reading_socket
from flask_llmstream.client import StreamClient, sse_client
from flask_llmstream.client.opening import Opening

#: Seconds in which what does not wait is done on any machine; the servers here fall silent for twice as long.
PROMPT = 5.0
TEXT = b'data: {"text":"a"}\n\n'
DONE = b'event: done\ndata: {"reason":"stop"}\n\n'


class SilentServer:
    """Sends a head (unless told not to) and one event, then waits until its client has gone."""

    def __init__(self, serve: Serve, head: bool = True, certificate: Any = None, **headers: str) -> None:
        self.asked = threading.Event()
        self.left = threading.Event()
        self._head = head
        self._headers = headers
        self._server = serve(self._script, certificate=certificate)
        self.url = self._server.url

    def _script(self, exchange: Exchange) -> None:
        if self._head:
            exchange.head(**self._headers)
            exchange.body(TEXT)
        self.asked.set()
        if exchange.wait_closed():
            self.left.set()


def timed(action: Callable[[], Any]) -> float:
    started = time.monotonic()
    action()
    return time.monotonic() - started


FRAMINGS = [
    pytest.param({}, id="chunked"),
    pytest.param({"Connection": "close"}, id="close-delimited"),
    pytest.param({"Content_Length": "500"}, id="sized"),
]


@pytest.mark.parametrize("headers", FRAMINGS)
def test_leaving_the_block_closes_the_connection(serve: Serve, headers: Any) -> None:
    server = SilentServer(serve, **headers)
    with StreamClient(server.url) as stream:
        assert next(stream).data == '{"text":"a"}'
        assert not server.left.is_set()
    assert server.left.wait(PATIENCE)
    assert stream.closed
    assert list(stream) == []


def test_an_exception_in_the_block_closes_the_connection(serve: Serve) -> None:
    server = SilentServer(serve)
    with pytest.raises(LookupError):
        with StreamClient(server.url) as stream:
            next(stream)
            raise LookupError
    assert server.left.wait(PATIENCE)


def test_a_stream_that_is_dropped_leaves_nothing_open(serve: Serve) -> None:
    """Whoever forgets both ``with`` and ``close`` is warned, as with any socket."""
    server = SilentServer(serve)
    stream = StreamClient(server.url)
    next(stream)
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        del stream
        gc.collect()
    assert server.left.wait(PATIENCE)


class Reader(threading.Thread):
    """Reads all of an iterable in a thread of its own, and keeps what came and how it ended."""

    def __init__(self, events: Any) -> None:
        super().__init__(daemon=True)
        self.got: List[Any] = []
        self.raised: List[BaseException] = []
        self._events = events
        self.start()

    def run(self) -> None:
        try:
            for event in self._events:
                self.got.append(event)
        except BaseException as exc:
            self.raised.append(exc)


@pytest.mark.parametrize("headers", FRAMINGS)
def test_close_from_another_thread_wakes_the_reader(serve: Serve, headers: Any) -> None:
    server = SilentServer(serve, **headers)
    stream = StreamClient(server.url)
    reader = Reader(stream)
    wait_for(lambda: reader.got)
    time.sleep(0.05)  # so that it waits for the next byte; also right if it does not yet
    assert timed(stream.close) < PROMPT
    assert server.left.wait(PATIENCE)
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert len(reader.got) == 1 and reader.raised == []
    assert stream.finish_reason is None
    assert stream.response is not None and stream.response.raw.closed


def test_close_from_another_thread_ends_the_wait_for_the_head(serve: Serve) -> None:
    """A server may be silent until the first token; that is when people press stop."""
    server = SilentServer(serve, head=False)
    stream = StreamClient(server.url, json={})
    reader = Reader(stream)
    assert server.asked.wait(PATIENCE)
    assert timed(stream.close) < PROMPT
    assert server.left.wait(PATIENCE)
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert reader.got == [] and reader.raised == []
    assert stream.response is None


@pytest.mark.parametrize("head", [True, False], ids=["after an event", "before the head"])
def test_close_from_another_thread_wakes_a_reader_of_tls(serve: Serve, certificate: Any, head: bool) -> None:
    """The socket is shut down below TLS: the reader is using the state of TLS."""
    server = SilentServer(serve, head, certificate)
    with requests.Session() as session:
        session.verify = certificate[0]
        session.trust_env = False  # it may name other authorities
        stream = StreamClient(server.url, session=session)
        reader = Reader(stream)
        assert server.asked.wait(PATIENCE)
        wait_for(lambda: len(reader.got) == head)
        time.sleep(0.05)
        assert timed(stream.close) < PROMPT
        assert server.left.wait(PATIENCE)
        reader.join(PATIENCE)
        assert not reader.is_alive()
        assert len(reader.got) == head and reader.raised == []


def test_close_while_the_connection_is_established_ends_it_later(serve: Serve) -> None:
    """Before there is a connection there is nothing to break; it is broken as soon as there is."""
    server = SilentServer(serve, head=False)
    connecting = threading.Event()
    go_on = threading.Event()

    class SlowSession(requests.Session):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            connecting.set()
            assert go_on.wait(PATIENCE)
            return super().send(*args, **kwargs)

    with SlowSession() as session:
        stream = StreamClient(server.url, session=session)
        reader = Reader(stream)
        assert connecting.wait(PATIENCE)
        assert timed(stream.close) < PROMPT
        go_on.set()
        reader.join(5.0)
        assert not reader.is_alive()
        assert reader.got == [] and reader.raised == []
    wait_for(lambda: not [one for one in threading.enumerate() if one.name == "llmstream-close"])


def test_close_breaks_no_connection_but_its_own(serve: Serve) -> None:
    """Between two looks at its stack the reader may have gone on to a socket of somebody else."""
    ours, theirs = socket.socketpair()
    opening = Opening()
    with ours, theirs, ours.makefile("rb") as file:
        reader = Reader(file)
        wait_for(lambda: reading_socket(sys._current_frames().get(reader.ident or 0)) is not None)
        opening._task = reader.ident
        opening._break()
        theirs.sendall(b"still there\n")
        theirs.shutdown(socket.SHUT_WR)
        reader.join(PATIENCE)
        assert reader.got == [b"still there\n"]


def test_a_closed_stream_sends_no_request(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(DONE))
    stream = StreamClient(server.url)
    stream.close()
    stream.close()
    with stream:
        assert list(stream) == []
    assert server.requests == []


def test_a_stream_closed_just_before_its_request_sends_none(serve: Serve) -> None:
    """close() may come when the reader has just seen that the stream is open."""
    server = serve(lambda exchange: exchange.answer(DONE))
    stream = StreamClient(server.url)
    stream.close()
    stream._connect()
    assert server.requests == [] and stream.response is None


def test_a_stream_closed_just_after_its_answer_leaves_no_connection(serve: Serve) -> None:
    """close() may come when the head has arrived and nobody has seen the response yet."""
    server = SilentServer(serve)
    streams: List[StreamClient] = []

    class ClosingSession(requests.Session):
        def send(self, *args: Any, **kwargs: Any) -> requests.Response:
            response = super().send(*args, **kwargs)
            streams[0].close()
            return response

    with ClosingSession() as session:
        streams.append(StreamClient(server.url, session=session))
        assert list(streams[0]) == []
    assert server.left.wait(PATIENCE)


def test_a_callback_may_close_the_stream(serve: Serve) -> None:
    server = SilentServer(serve)
    streams: List[StreamClient] = []
    streams.append(StreamClient(server.url, on_bytes=lambda data: streams[0].close()))
    assert list(streams[0]) == []
    assert server.left.wait(PATIENCE)


def test_sse_client_closed_between_two_events_hands_out_no_more(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(TEXT * 3))
    client = sse_client(requests.get(server.url, stream=True))
    got = []
    for event in client.events():
        got.append(event.data)
        client.close()
    assert got == ['{"text":"a"}']


def test_events_that_have_arrived_are_dropped_by_close(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(TEXT * 3 + DONE))
    with StreamClient(server.url) as stream:
        next(stream)
        stream.close()
        assert list(stream) == []


def test_close_leaves_a_session_usable(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(TEXT)
        if exchange.number == 0:
            assert exchange.wait_closed()
        else:
            exchange.end(DONE)

    server = serve(script)
    with requests.Session() as session:
        with StreamClient(server.url, session=session) as stream:
            next(stream)
        for _ in range(2):
            with StreamClient(server.url, session=session) as stream:
                assert "".join(stream.text()) == "a"
                stream.close()
    assert server.connections == 2


def test_close_after_the_end_does_not_touch_a_connection_in_use(serve: Serve) -> None:
    """The connection has gone back to the session's pool and serves the next stream."""
    def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.answer(TEXT + DONE)
        else:
            exchange.head()
            exchange.body(TEXT)
            assert not exchange.wait_closed(0.2)
            exchange.body(DONE)
            exchange.end()

    server = serve(script)
    with requests.Session() as session:
        first = StreamClient(server.url, session=session)
        assert next(first).data
        assert next(first).event == "done"
        with StreamClient(server.url, session=session) as second:
            next(second)
            first.close()
            assert [event.event for event in second] == ["done"]


@pytest.mark.parametrize("headers", FRAMINGS)
def test_sse_client_close_wakes_its_reader(serve: Serve, headers: Any) -> None:
    server = SilentServer(serve, **headers)
    response = requests.get(server.url, stream=True)
    client = sse_client(response)
    reader = Reader(client.events())
    wait_for(lambda: reader.got)
    time.sleep(0.05)
    assert timed(client.close) < PROMPT
    assert server.left.wait(PATIENCE)
    reader.join(PATIENCE)
    assert not reader.is_alive()
    assert len(reader.got) == 1 and reader.raised == []
    assert response.raw.closed


def test_sse_client_that_is_dropped_closes_the_response(serve: Serve) -> None:
    server = SilentServer(serve)
    for event in sse_client(requests.get(server.url, stream=True)).events():
        assert event.data == '{"text":"a"}'
        break
    gc.collect()
    assert server.left.wait(PATIENCE)


GREENLETS = """
from gevent import monkey; monkey.patch_all()
import sys, time
import gevent
from flask_llmstream.client import StreamClient

url = sys.argv[1]
got = []
stream = StreamClient(url)
reader = gevent.spawn(lambda: got.extend(stream.text()))
other = gevent.spawn(gevent.sleep, 60)
deadline = time.monotonic() + 10
while (sys.argv[2] not in "".join(got)) and time.monotonic() < deadline:
    gevent.sleep(0.01)
gevent.get_hub().threadpool.apply(sys.stdin.readline)  # the server has been asked
gevent.sleep(0.1)
started = time.monotonic()
stream.close()
assert time.monotonic() - started < 5
reader.join(10)
assert reader.successful(), reader.exception
assert not other.dead
other.kill()
print("closed", repr("".join(got)))
"""


@pytest.mark.parametrize("head", [True, False], ids=["after an event", "before the head"])
def test_close_from_another_greenlet_wakes_the_reader(serve: Serve, head: bool) -> None:
    server = SilentServer(serve, head=head)
    command = [sys.executable, "-c", GREENLETS, server.url, "a" if head else ""]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ)
    ) as process:
        assert server.asked.wait(3 * PATIENCE)
        said, complaint = process.communicate(b"\n", timeout=60)
    assert process.returncode == 0, complaint.decode()
    assert said.decode().split() == ["closed", "'a'" if head else "''"]
    assert server.left.wait(PATIENCE)
