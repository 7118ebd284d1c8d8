"""A call belongs to the stream that runs it: it ends with it, and says so in the stream's words."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections import deque

import pytest

from flask_llmstream import current
from flask_llmstream.exceptions import StreamCancelled, UpstreamError
from flask_llmstream.runtime import current_runtime
from flask_llmstream.sansio.events import TextDelta
from flask_llmstream.testing.upstreams import cut, delay_headers, done, silence, tokens
from flask_llmstream.upstream import adapt
from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.sockets import sever


class Stream:
    """As much of a running stream as a call asks of it."""

    def __init__(self):
        self.cancelled = None
        self.bound = []
        self.released = []

    def bind(self, closable):
        self.bound.append(closable)
        return closable

    def release(self, closable):
        self.released.append(closable)


@pytest.fixture
def stream():
    """Return a stream that runs in this thread."""
    stream = Stream()
    ident = current_runtime().ident()
    current.enter(ident, stream)
    yield stream
    current.leave(ident, stream)


def test_a_call_is_bound_from_its_first_next_to_its_end(ask, stream):
    call = ask(tokens("a"), done())
    assert stream.bound == []
    next(call)
    assert stream.bound == [call] and stream.released == []
    list(call)
    assert stream.released == [call]
    call.close()
    assert stream.released == [call], "once"


def test_a_call_that_never_began_is_not_bound(ask, stream):
    ask(tokens("a"), done()).close()
    assert stream.bound == []


def test_a_failed_call_is_released(ask, stream):
    call = ask(tokens("a"), cut())
    with pytest.raises(UpstreamError):
        list(call)
    assert stream.released == [call]


def test_an_adapted_iterable_is_bound_too(stream):
    source = adapt(item for item in "ab")
    assert list(source) == ["a", "b"]
    assert stream.bound == stream.released == [source]


@pytest.mark.parametrize("reason", ["disconnect", "stop", "timeout", "shutdown"])
def test_a_broken_connection_of_a_cancelled_stream_is_its_cancellation(ask, upstream, stream, reason):
    """On threads it arrives as a connection that ends, which the provider did not do."""
    call = ask(tokens("a"), silence())
    assert next(call) == TextDelta("a")

    def cancel():
        stream.cancelled = reason
        sever(call)

    timer = threading.Timer(0.1, cancel)
    timer.start()
    with pytest.raises(StreamCancelled) as caught:
        next(call)
    timer.join()
    assert caught.value.reason == reason
    upstream.wait_closed()
    assert stream.released == [call]


def test_a_close_by_a_cancelled_stream_is_its_cancellation(ask, upstream, stream):
    call = ask(tokens("a"), silence())
    next(call)
    stream.cancelled = "disconnect"
    call.close()
    with pytest.raises(StreamCancelled):
        next(call)
    upstream.wait_closed()


def test_what_was_read_before_a_cancellation_is_still_an_answer(ask, stream):
    """A cancellation interrupts; it does not take back."""
    call = ask(tokens("a"), done())
    next(call)
    stream.cancelled = "disconnect"
    assert [type(delta).__name__ for delta in call][:1] == ["Finish"]


GEVENT = textwrap.dedent(
    """
    from gevent import monkey
    monkey.patch_all()
    import json, sys, time
    import gevent
    import gevent.os
    from flask_llmstream.exceptions import StreamCancelled
    from flask_llmstream.upstream import adapt, openai_chat
    from flask_llmstream.upstream.sockets import find_socket, sever

    url, how = sys.argv[1:]
    noted = []

    def make():
        if how == "adapted":
            import requests
            return adapt(requests.post(url + "/chat/completions", json={}, stream=True))
        if how == "sdk":
            import openai
            client = openai.OpenAI(base_url=url, api_key="none")
            return adapt(client.chat.completions.create(model="m", messages=[], stream=True))
        return openai_chat("m", [], base_url=url)

    def consume():
        source = make()
        noted.append(source)
        try:
            for delta in source:
                noted.append(delta.text)
            noted.append("end")
        except BaseException as exc:
            noted.append(type(exc).__name__)

    greenlet = gevent.spawn(consume)
    deadline = time.monotonic() + 100  # a busy machine takes long to import an SDK
    while len(noted) < (1 if how == "waiting" else 4) and time.monotonic() < deadline:
        gevent.sleep(0.01)
    gevent.os.tp_read(0, 1)  # until the request has come: what comes before that is not to be cut short
    gevent.sleep(0.2)  # until it blocks, in a read or in the wait for the status
    source = noted.pop(0)
    if how == "close":
        source.close()
    elif how == "sever":
        assert find_socket(source) is not None
        assert sever(source)
    else:
        # As the stream does it: from the hub, into the blocked greenlet.
        gevent.get_hub().loop.run_callback(greenlet.throw, StreamCancelled())
    greenlet.join(5)
    print(json.dumps([noted, greenlet.dead, source.closed]))
    sys.stdout.flush()
    sys.stdin.readline()  # the connection must be closed while this process lives
    """
)


@pytest.mark.parametrize(
    "how, script, expected",
    [
        ("throw", [tokens("a", "b", "c"), silence()], ["a", "b", "c", "StreamCancelled"]),
        ("waiting", [delay_headers()], ["StreamCancelled"]),
        ("adapted", [tokens("a", "b", "c"), silence()], ["a", "b", "c", "StreamCancelled"]),
        ("sdk", [tokens("a", "b", "c"), silence()], ["a", "b", "c", "StreamCancelled"]),
        ("close", [tokens("a", "b", "c"), silence()], ["a", "b", "c", "end"]),
        ("sever", [tokens("a", "b", "c"), silence()], ["a", "b", "c", "UpstreamInterrupted"]),
    ],
)
def test_on_gevent(upstream, how, script, expected):
    pytest.importorskip("gevent")
    if how == "sdk":
        pytest.importorskip("openai")
    upstream.script = script
    process = subprocess.Popen(
        [sys.executable, "-c", GEVENT, upstream.url, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        upstream.wait_for(lambda upstream: upstream.requests, 100)
        process.stdin.write(b"x")
        line = process.stdout.readline()
        assert line, process.wait(10)
        noted, ended, closed = json.loads(line)
        assert noted == expected
        assert ended and closed
        upstream.wait_closed()
        assert upstream.requests == 1, "nothing is asked for again on behalf of nobody"
    finally:
        process.communicate(b"\n", timeout=10)
    assert process.returncode == 0


def in_another_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


class Opened(DeltaSource):
    """Says whether it is open."""

    is_open = False

    def _pull(self):
        self.is_open = True
        self._add([TextDelta("a")])

    def _let_go(self):
        self.is_open = False


def test_what_is_closed_by_another_thread_while_it_opens_is_closed():
    class Closed(Opened):
        @property
        def _ended(self):  # is asked for behind whether it is closed
            if not self._closed:
                in_another_thread(self.close)
            return False

        @_ended.setter
        def _ended(self, value):
            pass

    source = Closed()
    assert list(source) == [] and source.closed
    assert not source.is_open


def test_what_is_closed_by_another_thread_while_it_hands_out_has_ended():
    class Pending(deque):
        def popleft(self):
            if self:
                in_another_thread(source.close)
            return super().popleft()

    source = Opened()
    source._pending = Pending()
    assert list(source) == [] and not source.is_open
