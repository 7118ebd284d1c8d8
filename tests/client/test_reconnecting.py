"""A GET that breaks goes on where it was, if the server's ids allow that."""

from __future__ import annotations

import contextlib
import threading
import time
from email.utils import formatdate
from typing import Any, Callable, List, Optional

import pytest
from scripted import PATIENCE, Exchange, ScriptedServer, Serve

from flask_llmstream.client import StreamClient
from flask_llmstream.exceptions import StreamFailed, StreamInterrupted, StreamRefused

DONE = b'event: done\ndata: {"reason":"stop"}\n\n'


def event(number: int) -> bytes:
    return b'id: %d\ndata: {"text":"%d"}\n\n' % (number, number)


class Waits:
    """Takes the place of sleeping, and keeps how long it would have been."""

    def __init__(self) -> None:
        self.seconds: List[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


@pytest.fixture
def waits() -> Waits:
    return Waits()


@pytest.fixture
def connect(waits: Waits) -> Callable[..., StreamClient]:
    """Return a function that makes a client which neither waits nor leaves anything to chance."""

    def make(server: ScriptedServer, **options: Any) -> StreamClient:
        options.setdefault("retries", 3)
        return StreamClient(server.url, random=lambda: 0.0, sleep=waits, **options)

    return make


def scripted(*scripts: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Return a script that plays the given ones, one per request."""
    return lambda exchange: scripts[exchange.number](exchange)


def cut_after(*data: bytes) -> Callable[[Exchange], None]:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(b"".join(data))

    return script


def complete(*data: bytes) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(b"".join(data) + DONE)


def refusing(status: str, **headers: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.head(status, Content_Length="0", **headers)


def ids(server: ScriptedServer) -> List[Optional[str]]:
    return [request.headers.get("last-event-id") for request in server.requests]


def test_it_goes_on_after_the_last_event(serve: Serve, connect: Any, waits: Waits) -> None:
    server = serve(
        scripted(cut_after(event(1), event(2), b"id: 3\ndata: hal"), cut_after(), complete(event(3)))
    )
    with connect(server) as stream:
        assert "".join(stream.text()) == "123"
        assert stream.finish_reason == "stop"
    assert ids(server) == [None, "2", "2"]
    assert waits.seconds == [1.0, 2.0]


def test_it_waits_as_long_as_the_server_says(serve: Serve, connect: Any, waits: Waits) -> None:
    server = serve(scripted(cut_after(b"retry: 250\n", event(1)), cut_after(), complete()))
    with connect(server) as stream:
        assert "".join(stream.text()) == "1"
        assert stream.retry == 250
    assert waits.seconds == [0.25, 0.5]


def test_progress_makes_the_next_wait_short_again(serve: Serve, connect: Any, waits: Waits) -> None:
    server = serve(
        scripted(cut_after(event(1)), cut_after(), cut_after(event(2)), cut_after(b": hb\n"), complete())
    )
    with connect(server, retries=2) as stream:
        assert "".join(stream.text()) == "12"
    assert waits.seconds == [1.0, 2.0, 1.0, 2.0]


def test_it_gives_up_with_the_last_failure(serve: Serve, connect: Any, waits: Waits) -> None:
    server = serve(scripted(cut_after(event(1)), cut_after(), lambda exchange: None))
    got = []
    with connect(server, retries=2) as stream:
        with pytest.raises(StreamInterrupted, match="closed the connection without an answer"):
            for piece in stream.text():
                got.append(piece)
        assert stream.closed
    assert got == ["1"]
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "script, options",
    [
        pytest.param(cut_after(b"data: x\n\n"), {}, id="the server gives no ids"),
        pytest.param(cut_after(event(1), b"id\ndata: x\n\n"), {}, id="the server has taken its id back"),
        pytest.param(cut_after(event(1)), {"retries": 0}, id="nobody asked for it"),
        pytest.param(cut_after(event(1)), {"json": {}}, id="a POST"),
    ],
)
def test_a_request_that_would_begin_anew_is_not_repeated(
    serve: Serve, connect: Any, script: Callable[[Exchange], None], options: Any
) -> None:
    server = serve(script)
    with connect(server, **options) as stream:
        with pytest.raises(StreamInterrupted):
            list(stream)
    assert len(server.requests) == 1


def test_a_post_that_was_not_answered_is_not_repeated(serve: Serve, connect: Any) -> None:
    server = serve(lambda exchange: None)
    with pytest.raises(StreamInterrupted):
        connect(server, json={}).open()
    assert len(server.requests) == 1


def named(*data: bytes, place: str = "/llmstream/streams/ab-cd") -> Callable[[Exchange], None]:
    """Return a script that names the stream, sends *data* and breaks off."""

    def script(exchange: Exchange) -> None:
        exchange.head(Content_Location=place)
        exchange.body(b"".join(data))

    return script


def test_a_post_is_followed_where_the_server_has_named_its_stream(serve: Serve, connect: Any) -> None:
    server = serve(scripted(named(), cut_after(event(1), b"id: 2\ndata: ha"), complete(event(2))))
    with connect(server, json={"question": 1}, headers={"Authorization": "Bearer x"}) as stream:
        assert "".join(stream.text()) == "12"
        assert stream.stream_id == "ab-cd"
    asked = [(each.method, each.target, each.body) for each in server.requests]
    assert [each[0] for each in asked] == ["POST", "GET", "GET"]
    assert [each[1] for each in asked[1:]] == ["/llmstream/streams/ab-cd"] * 2
    assert [each[2] for each in asked[1:]] == [b"", b""]
    assert ids(server) == [None, None, "1"]
    for each in server.requests:
        assert each.headers["authorization"] == "Bearer x"
        assert ("content-type" in each.headers) == (each.method == "POST")


def test_credentials_go_to_nobody_else(serve: Serve, connect: Any) -> None:
    other = serve(complete(event(2)))
    server = serve(named(event(1), place=f"{other.url}/llmstream/streams/ab-cd"))
    with connect(server, json={}) as stream:
        with pytest.raises(StreamInterrupted):
            list(stream)
    assert not other.requests and len(server.requests) == 1


def test_a_stream_that_the_server_has_lost_is_not_followed(serve: Serve, connect: Any) -> None:
    lost = b'event: stream\ndata: {"url":null}\n\n'
    server = serve(named(event(1), lost, b'data: {"text":"2"}\n\n'))
    with connect(server, json={}) as stream:
        with pytest.raises(StreamInterrupted):
            list(stream)
    assert len(server.requests) == 1


def test_a_head_that_is_cut_is_no_refusal(serve: Serve, connect: Any) -> None:
    def cut_head(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\nServer: x\r\nTransf")

    server = serve(scripted(cut_after(event(1)), cut_head, complete(event(2))))
    with connect(server) as stream:
        assert "".join(stream.text()) == "12"
    assert ids(server) == [None, "1", "1"]


def test_an_id_from_an_earlier_run_is_enough(serve: Serve, connect: Any, waits: Waits) -> None:
    server = serve(scripted(lambda exchange: None, complete(event(8))))
    with connect(server, last_event_id="7") as stream:
        assert "".join(stream.text()) == "8"
    assert ids(server) == ["7", "7"]


def test_a_busy_server_is_given_the_time_it_asks_for(serve: Serve, connect: Any, waits: Waits) -> None:
    server = serve(
        scripted(
            cut_after(event(1)),
            refusing("503 Service Unavailable", Retry_After="40"),
            refusing("502 Bad Gateway"),
            complete(event(2)),
        )
    )
    with connect(server) as stream:
        assert "".join(stream.text()) == "12"
    assert waits.seconds == [1.0, 40.0, 4.0]


BUSY = "503 Service Unavailable"


@pytest.mark.parametrize("options", [{}, {"json": {"q": 1}}, {"method": "PUT"}], ids=["GET", "POST", "PUT"])
def test_who_is_refused_before_anything_began_asks_again(
    serve: Serve, connect: Any, waits: Waits, options: Any
) -> None:
    later = formatdate(time.time() + 20, usegmt=True)
    server = serve(scripted(
        refusing(BUSY, Retry_After="3"), refusing("429 Too Many Requests", Retry_After=later),
        refusing(BUSY, Retry_After="0"), complete(event(1)),
    ))
    told: List[Any] = []

    def tell(exc: Any, delay: float) -> None:
        told.append((exc.status, delay))

    with connect(server, on_reconnect=tell, **options) as stream:
        assert "".join(stream.text()) == "1"
    first, *others = [(each.method, each.target, each.body) for each in server.requests]
    assert others == [first] * 3 and ids(server) == [None] * 4
    assert waits.seconds[::2] == [3.0, 4.0] and 15 < waits.seconds[1] <= 20
    assert told == list(zip([503, 429, 503], waits.seconds))


@pytest.mark.parametrize(
    "status, headers, options",
    [
        pytest.param(BUSY, {"Retry_After": "3"}, {"retries": 0}, id="nobody asked for it"),
        pytest.param(BUSY, {"Retry_After": "61"}, {}, id="longer than anybody waits"),
        pytest.param(BUSY, {"Retry_After": "9"}, {"max_retry_after": 8}, id="longer than this one waits"),
        pytest.param(BUSY, {}, {}, id="it does not say when"),
        pytest.param(BUSY, {"Retry_After": "soon"}, {}, id="nobody understands when"),
        pytest.param("502 Bad Gateway", {"Retry_After": "3"}, {}, id="something may have begun"),
        pytest.param("400 Bad Request", {"Retry_After": "3"}, {}, id="it is refused for good"),
    ],
)
def test_other_refusals_are_raised_at_once(
    serve: Serve, connect: Any, waits: Waits, status: str, headers: Any, options: Any
) -> None:
    server = serve(refusing(status, **headers))
    with pytest.raises(StreamRefused) as caught:
        connect(server, json={}, **options).open()
    assert str(caught.value.status) == status[:3]
    assert (len(server.requests), waits.seconds) == (1, [])


@pytest.mark.parametrize("status, asked", [("303 See Other", 1), ("307 Temporary Redirect", 2)])
def test_a_post_that_somebody_has_acted_on_is_not_repeated(
    serve: Serve, connect: Any, status: str, asked: int
) -> None:
    busy = serve(scripted(refusing(BUSY, Retry_After="0"), complete(event(1))))
    server = serve(lambda exchange: exchange.head(status, Content_Length="0", Location=busy.url))
    with contextlib.suppress(StreamRefused), connect(server, json={}) as stream:
        assert "".join(stream.text()) == "1"
    assert len(server.requests) == len(busy.requests) == asked


def test_a_server_that_stays_busy_is_raised_at_last(serve: Serve, connect: Any, waits: Waits) -> None:
    server = serve(refusing(BUSY, Retry_After="2"))
    with pytest.raises(StreamRefused) as caught:
        connect(server, json={}, retries=2).open()
    assert caught.value.retry_after == 2 and waits.seconds == [2.0, 2.0] and len(server.requests) == 3


def test_a_refusal_for_good_is_raised(serve: Serve, connect: Any) -> None:
    server = serve(scripted(cut_after(event(1)), refusing("404 Not Found")))
    with connect(server) as stream:
        with pytest.raises(StreamRefused) as caught:
            list(stream)
    assert caught.value.status == 404
    assert len(server.requests) == 2


def test_204_says_that_all_was_seen(serve: Serve, connect: Any) -> None:
    server = serve(scripted(cut_after(event(1)), refusing("204 No Content")))
    with connect(server) as stream:
        assert "".join(stream.text()) == "1"
    assert ids(server) == [None, "1"]


def test_a_failure_that_the_server_reports_is_no_reason_to_come_back(serve: Serve, connect: Any) -> None:
    server = serve(cut_after(event(1), b'event: failed\ndata: {"retryable":true}\n\n'))
    with connect(server) as stream:
        with pytest.raises(StreamFailed):
            list(stream)
    assert len(server.requests) == 1


def test_a_foreign_stream_is_complete_when_it_ends(serve: Serve, connect: Any) -> None:
    server = serve(lambda exchange: exchange.answer(event(1)))
    with connect(server, terminal=None) as stream:
        assert len(list(stream)) == 1
    assert len(server.requests) == 1


def test_silence_is_a_reason_to_come_back(serve: Serve, connect: Any) -> None:
    def silent(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(event(1))
        assert exchange.wait_closed()

    server = serve(scripted(silent, complete(event(2))))
    with connect(server, idle_timeout=1.0) as stream:
        assert "".join(stream.text()) == "12"
    assert ids(server) == [None, "1"]


def refusing_slowly(exchange: Exchange) -> None:
    exchange.head("404 Not Found")
    exchange.body(b"because ")
    exchange.wait_closed()


@pytest.mark.parametrize("script, read", [
    pytest.param(cut_after(b"retry: 60000\n", event(1)), ["1"], id="cut"),
    pytest.param(refusing(BUSY, Retry_After="60"), [], id="refused"),
    pytest.param(refusing_slowly, [], id="being refused"),
])
def test_close_ends_whatever_is_waited_for(
    serve: Serve, script: Callable[[Exchange], None], read: List[str]
) -> None:
    server = serve(script)
    waiting = threading.Event()
    got: List[str] = []

    def answered(response: Any) -> None:
        if script is refusing_slowly:
            waiting.set()

    stream = StreamClient(
        server.url, retries=5, on_reconnect=lambda exc, delay: waiting.set(), on_response=answered
    )
    failed: List[BaseException] = []

    def read_all() -> None:
        try:
            got.extend(stream.text())
        except BaseException as exc:
            failed.append(exc)

    reader = threading.Thread(target=read_all, daemon=True)
    reader.start()
    assert waiting.wait(PATIENCE)
    stream.close()
    reader.join(PATIENCE)
    assert not reader.is_alive() and not failed and got == read
    assert len(server.requests) == 1
