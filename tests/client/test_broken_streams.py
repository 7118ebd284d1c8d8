"""Streams that are refused, cut or silent: each is said, in words that hold no secret."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any, Callable, Dict, List, Optional

import pytest
import requests
from scripted import Exchange, Serve, chunk

from flask_llmstream.client import StreamClient, faults
from flask_llmstream.exceptions import StreamInterrupted, StreamRefused

TEXT = b'data: {"text":"a"}\n\n'
DONE = b'event: done\ndata: {"reason":"stop"}\n\n'


def read(url: str, **options: Any) -> List[str]:
    """Return the text of the stream, and raise what it raises, with the text so far in the error."""
    got: List[str] = []
    try:
        with StreamClient(url, **options) as stream:
            for piece in stream.text():
                got.append(piece)
    except StreamInterrupted as exc:
        exc.got = got  # type: ignore[attr-defined]
        raise
    return got


def ends_cleanly(exchange: Exchange) -> None:
    exchange.head()
    exchange.body(TEXT)
    exchange.end()


def ends_inside_an_event(exchange: Exchange) -> None:
    exchange.head()
    exchange.body(TEXT + b"event: done\ndata: {}\n")
    exchange.end()


def closes(exchange: Exchange) -> None:
    exchange.head(Connection="close")
    exchange.body(TEXT)


def closes_a_chunked_body(exchange: Exchange) -> None:
    exchange.head()
    exchange.body(TEXT)


def closes_inside_a_chunk(exchange: Exchange) -> None:
    exchange.head()
    exchange.send(chunk(TEXT + DONE)[: len(TEXT) + 6])


def closes_before_its_length(exchange: Exchange) -> None:
    exchange.head(Content_Length="500")
    exchange.body(TEXT)


def resets(exchange: Exchange) -> None:
    exchange.head()
    exchange.body(TEXT)
    time.sleep(0.05)  # a RST throws away what the client has not read yet
    exchange.reset()


@pytest.mark.parametrize(
    "script, words",
    [
        pytest.param(ends_cleanly, "without one of done, failed", id="clean end"),
        pytest.param(ends_inside_an_event, "without one of done, failed", id="inside an event"),
        pytest.param(closes, "without one of done, failed", id="close-delimited"),
        pytest.param(closes_a_chunked_body, "the connection ended inside the body", id="between chunks"),
        pytest.param(closes_inside_a_chunk, "the connection ended inside the body", id="inside a chunk"),
        pytest.param(closes_before_its_length, "the connection ended inside the body", id="short"),
        pytest.param(resets, "reset by peer", id="RST"),
    ],
)
def test_a_cut_stream_is_interrupted_after_what_had_arrived(
    serve: Serve, script: Callable[[Exchange], None], words: str
) -> None:
    server = serve(script)
    with pytest.raises(StreamInterrupted) as caught:
        read(server.url + "?key=secret")
    assert caught.value.got == ["a"]  # type: ignore[attr-defined]
    message = str(caught.value)
    assert words in message and "1 events" in message
    assert f"127.0.0.1:{server.port}/stream " in message and "secret" not in message
    assert len(server.requests) == 1


def test_a_post_is_never_sent_twice(serve: Serve) -> None:
    server = serve(resets)
    with pytest.raises(StreamInterrupted):
        read(server.url, json={})
    assert len(server.requests) == 1


def test_a_damaged_content_encoding_is_an_interruption(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(b"\x1f\x8b" + b"?" * 50, Content_Encoding="gzip"))
    with pytest.raises(StreamInterrupted, match="not compressed as its Content-Encoding says"):
        read(server.url)


def test_a_server_that_cannot_be_reached_is_an_interruption() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://user:secret@127.0.0.1:{sock.getsockname()[1]}/x?key=secret"
        with pytest.raises(StreamInterrupted) as caught:
            read(url)
    assert str(caught.value).startswith("no answer from http://127.0.0.1:")
    assert "refused" in str(caught.value) and "secret" not in str(caught.value)


def test_a_server_that_closes_without_an_answer_is_an_interruption(serve: Serve) -> None:
    server = serve(lambda exchange: None)
    with pytest.raises(StreamInterrupted, match="closed the connection without an answer"):
        read(server.url)


def test_a_server_that_accepts_no_connection_in_time_is_an_interruption() -> None:
    """A full queue of connections: what a machine that drops packets looks like."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        try:
            with pytest.raises(StreamInterrupted, match=r"no connection in 0\.2 s"):
                read(f"http://127.0.0.1:{port}/", connect_timeout=0.2)
        finally:
            for sock in waiting:
                sock.close()


def test_a_redirect_to_itself_is_an_interruption(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head("302 Found", Location="/stream", Content_Length="0")
        exchange.keep_alive = True

    server = serve(script)
    with pytest.raises(StreamInterrupted, match="redirects again and again"):
        read(server.url)


@pytest.mark.parametrize("begun", [False, True], ids=["before the head", "after an event"])
def test_silence_is_an_interruption(serve: Serve, begun: bool) -> None:
    closed: List[bool] = []

    def script(exchange: Exchange) -> None:
        if begun:
            exchange.head()
            exchange.body(TEXT)
        closed.append(exchange.wait_closed())

    server = serve(script)
    with pytest.raises(StreamInterrupted, match=r"not a byte in 1\.0 s, no heartbeat either") as caught:
        read(server.url, idle_timeout=1.0)
    assert caught.value.got == ["a"] * begun  # type: ignore[attr-defined]
    server.stop()
    assert closed == [True]


def test_heartbeats_keep_a_silent_stream_alive(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        for _ in range(12):
            exchange.body(b": hb\n")
            time.sleep(0.15)
        exchange.body(TEXT + DONE)
        exchange.end()

    server = serve(script)
    assert read(server.url, idle_timeout=1.5) == ["a"]


def test_204_means_that_there_is_nothing_more(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head("204 No Content")
        exchange.keep_alive = True

    server = serve(script)
    with StreamClient(server.url) as stream:
        assert list(stream) == []
        assert stream.finish_reason is None
        assert stream.response is not None and stream.response.status_code == 204


@pytest.mark.parametrize(
    "content_type",
    ["text/event-stream", "text/event-stream; charset=utf-8", "Text/Event-Stream ;x=y"],
)
def test_only_the_essence_of_the_type_counts(serve: Serve, content_type: str) -> None:
    server = serve(lambda exchange: exchange.answer(TEXT + DONE, Content_Type=content_type))
    assert read(server.url) == ["a"]


@pytest.mark.parametrize(
    "status, content_type, words",
    [
        pytest.param("200 OK", "text/html", "200 with Content-Type 'text/html'", id="html"),
        pytest.param("200 OK", "text/event-streams", "expected 'text/event-stream'", id="near miss"),
        pytest.param("200 OK", "", "200 with Content-Type", id="no type"),
        pytest.param("201 Created", "text/event-stream", "201 Created", id="another success"),
        pytest.param("401 Unauthorized", "application/json", "401 Unauthorized", id="401"),
        pytest.param("404 Not Found", "text/event-stream", "404 Not Found", id="404 of the right type"),
        pytest.param("500 Internal Server Error", "text/html", "500 Internal Server Error", id="500"),
        pytest.param("599", "text/plain", "599", id="no reason"),
    ],
)
def test_anything_but_an_event_stream_is_refused(
    serve: Serve, status: str, content_type: str, words: str
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head(status, Content_Type=content_type, X_Which="this")
        exchange.body(b"<h1>" + TEXT)
        exchange.end()

    server = serve(script)
    with pytest.raises(StreamRefused) as caught:
        read(server.url + "?key=secret")
    refused = caught.value
    assert words in str(refused)
    assert "secret" not in str(refused) and "<h1>" not in str(refused)
    assert refused.status == int(status[:3])
    assert refused.headers["x-which"] == "this"
    assert refused.body == '<h1>data: {"text":"a"}\n\n'
    assert refused.retry_after is None


@pytest.mark.parametrize(
    "value, seconds",
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param("0", 0.0, id="now"),
        pytest.param("soon", None, id="nonsense"),
        pytest.param("-1", None, id="negative"),
        pytest.param("Wed, 21 Oct 2015 07:28:00 GMT", 0.0, id="a date in the past"),
        pytest.param("\u00b2", None, id="a digit that is none"),
    ],
)
def test_retry_after_is_in_the_refusal(serve: Serve, value: str, seconds: Optional[float]) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head("503 Service Unavailable", Retry_After=value, Content_Length="0")

    server = serve(script)
    with pytest.raises(StreamRefused) as caught:
        read(server.url)
    assert caught.value.retry_after == seconds
    assert ("it asks to come back after" in str(caught.value)) == (seconds is not None)
    assert caught.value.body == ""


@pytest.mark.parametrize(
    "content_type, data, body",
    [
        pytest.param("text/html; charset=latin-1", b"\xfc", "\u00fc", id="charset"),
        pytest.param("application/json", "\u00fc".encode(), "\u00fc", id="utf-8 by default"),
        pytest.param("text/plain; charset=nonsense", "\u00fc".encode(), "\u00fc", id="no such charset"),
        pytest.param("application/json", b"\xff", "\ufffd", id="invalid"),
        pytest.param("text/plain", b"x" * 5000, "x" * 1024, id="at most a KiB"),
    ],
)
def test_the_body_of_a_refusal_is_decoded(
    serve: Serve, content_type: str, data: bytes, body: str
) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head("400 Bad Request", Content_Type=content_type)
        exchange.body(data)
        exchange.end()

    server = serve(script)
    with pytest.raises(StreamRefused) as caught:
        read(server.url)
    assert caught.value.body == body


def test_the_body_of_a_refusal_may_be_cut(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head("400 Bad Request", Content_Length="10")
        exchange.body(b"some")

    server = serve(script)
    with pytest.raises(StreamRefused) as caught:
        read(server.url)
    assert caught.value.body == "some"


def test_a_refusal_without_end_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_EXCERPT_TIMEOUT", 1.0)
    closed: List[bool] = []

    def script(exchange: Exchange) -> None:
        exchange.head("400 Bad Request")
        exchange.body(b"some")
        closed.append(exchange.wait_closed())

    server = serve(script)
    with pytest.raises(StreamRefused) as caught:
        read(server.url)
    assert caught.value.body == "some"
    server.stop()
    assert closed == [True]


def test_a_session_survives_a_refusal(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.head("400 Bad Request")
            exchange.body(b"some")
            exchange.end()
        else:
            exchange.answer(DONE)

    server = serve(script)
    with requests.Session() as session:
        with pytest.raises(StreamRefused):
            read(server.url, session=session)
        assert read(server.url, session=session) == []
    assert len(server.requests) == 2


def test_what_a_callback_raises_closes_the_stream(serve: Serve) -> None:
    closed = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(TEXT)
        if exchange.wait_closed():
            closed.set()

    def fail(data: bytes) -> None:
        raise LookupError("mine")

    server = serve(script)
    stream = StreamClient(server.url, on_bytes=fail)
    with pytest.raises(LookupError, match="mine"):
        next(stream)
    assert closed.wait(5)
    assert stream.closed


def test_a_wait_that_has_no_end_is_possible(serve: Serve) -> None:
    options: Dict[str, Any] = {"idle_timeout": None, "connect_timeout": None}
    server = serve(lambda exchange: exchange.answer(TEXT + DONE))
    assert read(server.url, **options) == ["a"]
