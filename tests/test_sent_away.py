"""What a stream does whose reader is sent elsewhere, at the level of WSGI."""

from __future__ import annotations

import threading
from typing import Any, Iterator, List

import pytest
from serving import Served, events_of

from flask_llmstream.disconnect import Peer
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream
from flask_llmstream.testing import wait_until


class Source:
    """Says ``a``, waits to be let go on, and says ``b``."""

    def __init__(self) -> None:
        self.waits, self.go_on = threading.Event(), threading.Event()
        self.said: List[str] = []

    def __iter__(self) -> Iterator[str]:
        for text in "ab":
            self.said.append(text)
            yield text
            if text == "a":
                self.waits.set()
                self.go_on.wait(10)


def received(reader: Served) -> bytes:
    """Return what has come until the connection was ended; the request goes on behind it."""
    return b"".join(iter(lambda: reader.client.recv(65536), b""))


def served(source: Source, **options: Any) -> Served:
    found = Served(iter(source), **options)
    found.stream.returning = lambda: True
    return found


def test_connection_ends_at_once_and_the_source_goes_on() -> None:
    source = Source()
    with served(source, on_disconnect=30.0) as reader:
        assert source.waits.wait(10)
        assert reader.stream.hand_over()
        assert [event.data for event in events_of(received(reader))] == ['{"text":"a"}']
        assert not reader.ends and not reader.stream.hand_over(), "it is sent away once"
        source.go_on.set()
        assert reader.end().reason == "finish" and reader.end().text == "ab"


def test_reader_on_its_way_back_is_waited_for_though_others_leave() -> None:
    source = Source()
    with served(source, on_disconnect=0.2) as reader:
        assert source.waits.wait(10)
        assert reader.stream.hand_over()
        stream = reader.stream
        now = stream._runtime.now()
        stream.end_at(now)
        assert stream.tick(now + 5.0) > now and not stream.cancelled
        stream.tick(now + 20.0)
        assert stream.cancelled == "disconnect"
        source.go_on.set()
        assert reader.end().reason == "disconnect"


def test_stream_that_cannot_be_resumed_stays() -> None:
    source = Source()
    with Served(iter(source), on_disconnect=30.0) as reader:
        assert source.waits.wait(10)
        assert not reader.stream.hand_over()
        reader.stream.returning = lambda: False
        assert not reader.stream.hand_over()
        source.go_on.set()
        assert events_of(reader.read())[-1].event == "done"


def test_follower_just_ends() -> None:
    source = Source()
    with served(source, on_disconnect="cancel") as reader:
        assert source.waits.wait(10)
        assert reader.stream.hand_over()
        assert len(events_of(received(reader))) == 1
        source.go_on.set()
        assert reader.end().reason == "disconnect"


def test_reader_learns_of_its_stream_before_it_is_sent_away() -> None:
    """Nothing was sent yet: status, headers and the opening are."""
    waits, go_on = threading.Event(), threading.Event()

    def source() -> Iterator[str]:
        waits.set()
        go_on.wait(10)
        yield "a"

    with Served(source(), on_disconnect=30.0, status_hold=60.0) as reader:
        reader.stream.returning = lambda: True
        assert waits.wait(10)
        assert reader.stream.hand_over()
        assert received(reader) == SSEFormat().opening(0)
        assert [status for status, _ in reader.heads] == ["200 OK"]
        go_on.set()
        assert reader.end().text == "a"


def test_connection_that_has_reached_its_age_ends() -> None:
    source = Source()
    found = served(source, on_disconnect=30.0)
    found.stream.lasts = 0.2
    with found as reader:
        assert len(events_of(received(reader))) == 1
        source.go_on.set()
        assert reader.end().reason == "finish"


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(Peer("unknown", None, False, False), id="without-a-socket"),
        pytest.param(Peer("gunicorn HTTP/2", 99, True, False), id="shared-connection"),
    ],
)
def test_server_ends_the_body_where_nobody_else_can(peer: Peer) -> None:
    """With the next item; what follows that is taken when the server closes."""
    source = Source()
    ends: List[Any] = []
    stream = Stream(iter(source), format=SSEFormat(), settings=Settings(on_disconnect=30.0, status_hold=0.0))
    stream.returning = lambda: True
    stream.on_end(ends.append)
    body: List[bytes] = []

    def serve() -> None:
        stream.attach(peer._replace(fd=None), lambda *args: body.append, "200 OK", [])
        for data in stream:
            body.append(data)
        body.append(b"END")
        stream.close()

    server = threading.Thread(target=serve)
    server.start()
    assert source.waits.wait(10)
    assert stream.hand_over(going=True)
    assert b"END" not in body
    source.go_on.set()
    server.join(10)
    assert body[-1] == b"END" and b"done" not in b"".join(body)
    wait_until(lambda: ends, 5)
    assert ends[0].reason == "finish" and ends[0].text == "ab"


def test_source_goes_on_though_the_reader_takes_nothing() -> None:
    """The server is inside its write, which nobody may join: the connection is broken under it."""
    more = ["x" * 100000] * 100
    found = Served(iter(more), on_disconnect=30.0)
    found.stream.returning = lambda: True
    found.stream.lasts = 0.2
    with found as reader:
        wait_until(lambda: reader.ends, 10)
        assert reader.ends[0].reason == "finish" and len(reader.ends[0].text) == 10000000
