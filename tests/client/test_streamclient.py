"""What a stream says, and how its request looks."""

from __future__ import annotations

import gzip
import json
import threading
import zlib
from typing import Any, Callable, Dict, List, Optional

import pytest
import requests
from scripted import PATIENCE, Exchange, Serve

from flask_llmstream.client import StreamClient, streamclient
from flask_llmstream.exceptions import BufferLimitExceeded, StreamFailed
from flask_llmstream.sansio.events import (
    Custom,
    Event,
    Finish,
    JsonDelta,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.native import SSEFormat

DONE = SSEFormat().done("stop", Usage(input_tokens=7, output_tokens=3))


def texts(*pieces: str) -> bytes:
    wire = SSEFormat()
    return b"".join(wire.encode(piece) for piece in pieces)


def answering(data: bytes, **headers: str) -> Callable[[Exchange], None]:
    return lambda exchange: exchange.answer(data, **headers)


def test_events_come_in_order_and_the_terminal_one_is_the_last(serve: Serve) -> None:
    wire = SSEFormat()
    items: List[Any] = [
        ReasoningDelta("hm"), TextDelta("a"), ToolCallDelta(0, "c1", "add", "{"), JsonDelta("/x", "add", 1),
        Usage(1, 2), Custom("mood", "fine"), Event("plain", id="7"), Finish("stop"),
    ]
    data = wire.opening(0) + b"".join(wire.encode(item) + b": hb\n" for item in items)
    server = serve(answering(data + wire.done("stop") + texts("never seen")))
    with StreamClient(server.url) as stream:
        assert stream.finish_reason is None
        events = list(stream)
        assert list(stream) == []
    names = [event.event for event in events]
    assert names == ["reasoning", None, "tool", "json", "usage", "custom", None, "done"]
    assert events[1] == Event('{"text":"a"}')
    assert events[6] == Event("plain", id="7")
    assert stream.finish_reason == "stop"
    assert stream.last_event_id == "7"


def test_text_is_what_the_server_wrote(serve: Serve) -> None:
    pieces = ["Hel", "lo \n\r\n", " w\u00f6rld \U0001f600\u2028", '"quoted"', ""]
    wire = SSEFormat()
    between = wire.encode(ReasoningDelta("not this")) + wire.encode({"text": "nor this"})
    between += wire.encode(Event("{not json")) + wire.encode(Event("[1]")) + wire.encode(Event({"text": 5}))
    server = serve(answering(texts(*pieces[:2]) + between + texts(*pieces[2:]) + DONE))
    with StreamClient(server.url) as stream:
        assert list(stream.text()) == pieces[:-1]
        assert stream.finish_reason == "stop"
        assert stream.usage == Usage(input_tokens=7, output_tokens=3)


@pytest.mark.parametrize(
    "pieces, expect",
    [
        pytest.param(["a\ud83d", "\ude00b"], ["a", "\U0001f600b"], id="two halves"),
        pytest.param(["\ud83d", "\ude00"], ["\U0001f600"], id="nothing but halves"),
        pytest.param(["\ud83d", "x"], ["\ufffdx"], id="a half without its other"),
        pytest.param(["x\ude00"], ["x\ufffd"], id="a second half alone"),
        pytest.param(["x\ud83d"], ["x", "\ufffd"], id="a half at the end"),
    ],
)
def test_characters_cut_in_halves_are_joined(serve: Serve, pieces: List[str], expect: List[str]) -> None:
    """The wire has a half as a JSON escape; printed as it is, it would be an error."""
    server = serve(answering(texts(*pieces) + DONE))
    with StreamClient(server.url) as stream:
        assert list(stream.text()) == expect


@pytest.mark.parametrize(
    "data, usage, reason",
    [
        pytest.param(DONE, Usage(7, 3), "stop", id="in done"),
        pytest.param(
            SSEFormat().encode(Usage(1, 2, 3, 4)) + SSEFormat().done("length"), Usage(1, 2, 3, 4), "length",
            id="in an event of its own",
        ),
        pytest.param(SSEFormat().done("stop"), None, "stop", id="not said"),
        pytest.param(b"event: done\ndata: {}\n\n", None, None, id="done without fields"),
        pytest.param(b"event: done\ndata: x\n\n", None, None, id="done without JSON"),
        pytest.param(b'event: done\ndata: {"reason":1,"usage":{"input_tokens":"x"}}\n\n', None, None,
                     id="wrong types"),
    ],
)
def test_usage_and_reason_are_taken_from_the_events(
    serve: Serve, data: bytes, usage: Optional[Usage], reason: Optional[str]
) -> None:
    server = serve(answering(data))
    with StreamClient(server.url) as stream:
        assert [event.event for event in stream][-1] == "done"
        assert stream.usage == usage
        assert stream.finish_reason == reason


@pytest.mark.parametrize(
    "data, message, code, retryable",
    [
        pytest.param(SSEFormat().failed("too busy", "upstream_rate_limited", True), "too busy",
                     "upstream_rate_limited", True, id="as it should be"),
        pytest.param(b"event: failed\ndata: oh\n\n", "the server gave no reason", "error", False,
                     id="no JSON"),
        pytest.param(b'event: failed\ndata: {"retryable":"yes"}\n\n', "the server gave no reason", "error",
                     False, id="no fields"),
    ],
)
def test_failed_is_raised_after_what_came_before_it(
    serve: Serve, data: bytes, message: str, code: str, retryable: bool
) -> None:
    server = serve(answering(texts("some") + data))
    got = []
    with StreamClient(server.url) as stream:
        with pytest.raises(StreamFailed) as caught:
            for piece in stream.text():
                got.append(piece)
        assert list(stream) == []
    assert got == ["some"]
    assert (caught.value.message, caught.value.code, caught.value.retryable) == (message, code, retryable)


def test_heartbeats_are_seen_by_the_callback_and_are_no_events(serve: Serve) -> None:
    seen: List[str] = []
    raw: List[bytes] = []
    data = b": open\n" + texts("a") + b": hb\n: hb\n" + DONE
    server = serve(answering(data))
    with StreamClient(server.url, on_heartbeat=seen.append, on_bytes=raw.append) as stream:
        assert len(list(stream)) == 2
    assert seen == ["open", "hb", "hb"]
    assert b"".join(raw) == data


def compressing(kind: str) -> Any:
    return zlib.compressobj(wbits=31 if kind == "gzip" else 15)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({}, id="chunked"),
        pytest.param({"Connection": "close"}, id="close-delimited"),
        pytest.param({"Content_Length": "1000"}, id="sized"),
        pytest.param({"Content_Encoding": "gzip"}, id="chunked gzip"),
        pytest.param({"Content_Encoding": "gzip", "Connection": "close"}, id="close-delimited gzip"),
        pytest.param({"Content_Encoding": "deflate"}, id="chunked deflate"),
    ],
)
def test_each_event_is_there_before_the_next_is_sent(serve: Serve, headers: Dict[str, str]) -> None:
    """The server sends an event only when the client has seen the last: any delay would be for ever."""
    seen = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        exchange.head(**headers)
        compress = compressing(headers["Content_Encoding"]) if "Content_Encoding" in headers else None
        for number in range(5):
            data = texts(str(number))
            if compress is not None:
                data = compress.compress(data) + compress.flush(zlib.Z_SYNC_FLUSH)
            exchange.body(data)
            assert seen.acquire(timeout=PATIENCE), f"event {number} was held back"
        exchange.wait_closed()

    server = serve(script)
    with StreamClient(server.url) as stream:
        for number, piece in enumerate(stream.text()):
            assert piece == str(number)
            seen.release()
            if number == 4:
                break


def test_a_compressed_stream_is_read_to_its_end(serve: Serve) -> None:
    server = serve(answering(gzip.compress(texts("a", "b") + DONE), Content_Encoding="gzip"))
    with StreamClient(server.url) as stream:
        assert "".join(stream.text()) == "ab"


def test_a_get_asks_for_an_event_stream(serve: Serve) -> None:
    server = serve(answering(DONE))
    with StreamClient(server.url + "?q=1") as stream:
        assert stream.response is not None and stream.response.status_code == 200
        list(stream)
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("GET", "/stream?q=1", b"")
    assert request.headers["accept"] == "text/event-stream"
    assert request.headers["cache-control"] == "no-cache"
    assert "last-event-id" not in request.headers


def test_json_makes_it_a_post(serve: Serve) -> None:
    server = serve(answering(DONE))
    with StreamClient(server.url, json={"q": "\u00fc \ud83d"}) as stream:
        list(stream)
    (request,) = server.requests
    assert request.method == "POST"
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body.decode()) == {"q": "\u00fc \ud83d"}


def test_the_method_can_be_given(serve: Serve) -> None:
    server = serve(answering(DONE))
    for options in ({"method": "post"}, {"method": "put", "json": []}):
        with StreamClient(server.url, **options) as stream:
            list(stream)
    assert [request.method for request in server.requests] == ["POST", "PUT"]
    assert server.requests[1].body == b"[]"


def test_headers_of_the_caller_win_and_stay_as_they_are(serve: Serve) -> None:
    server = serve(answering(DONE))
    headers = {"authorization": "Bearer x", "ACCEPT": "text/event-stream, */*"}
    before = dict(headers)
    with StreamClient(server.url, headers=headers, last_event_id="5") as stream:
        list(stream)
    assert headers == before
    sent = server.requests[0].headers
    assert sent["authorization"] == "Bearer x"
    assert sent["accept"] == "text/event-stream, */*"


@pytest.mark.parametrize(
    "value, sent",
    [
        pytest.param("42", "42", id="ascii"),
        pytest.param(" 42 ", "42", id="outer spaces"),
        pytest.param("\u0416\U0001f600", "\u0416\U0001f600", id="not Latin-1"),
        pytest.param("", None, id="empty"),
        pytest.param(None, None, id="none"),
    ],
)
def test_last_event_id_is_sent_in_utf8(serve: Serve, value: Optional[str], sent: Optional[str]) -> None:
    server = serve(answering(DONE))
    with StreamClient(server.url, last_event_id=value) as stream:
        list(stream)
    found = server.requests[0].headers.get("last-event-id")
    assert (found and found.encode("latin-1").decode("utf-8")) == sent


def test_last_event_id_is_that_of_the_event_handed_out(serve: Serve) -> None:
    """All three arrive at once; who stores the id after the first must get the second next time."""
    data = b"id: 1\ndata: a\n\nid: 2\ndata: b\n\nid: 3\n\n" + DONE
    server = serve(answering(data))
    with StreamClient(server.url, last_event_id="0") as stream:
        assert stream.last_event_id == "0"
        seen = []
        for event in stream:
            seen.append((event.data[:1], stream.last_event_id))
    assert seen == [("a", "1"), ("b", "2"), ("{", "3")]


def test_an_id_without_data_counts_once_all_events_were_handed_out(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(b"id: 1\ndata: a\n\nid: 2\n\n")
        exchange.end()

    server = serve(script)
    with StreamClient(server.url, terminal=None) as stream:
        assert [stream.last_event_id for _ in stream] == ["1"]
        assert stream.last_event_id == "2"


def test_retry_is_told(serve: Serve) -> None:
    server = serve(answering(b"retry: 1500\ndata: x\n\n" + DONE))
    with StreamClient(server.url) as stream:
        assert stream.retry is None
        next(stream)
        assert stream.retry == 1500


@pytest.mark.parametrize(
    "location, stream_id",
    [
        pytest.param("/llmstream/streams/abc-1", "abc-1", id="ours"),
        pytest.param("http://h/x/streams/abc?y=1", "abc", id="absolute"),
        pytest.param("/documents/7", None, id="of something else"),
        pytest.param(None, None, id="none"),
    ],
)
def test_stream_id_is_the_servers_name_for_it(
    serve: Serve, location: Optional[str], stream_id: Optional[str]
) -> None:
    headers = {} if location is None else {"Content_Location": location}
    server = serve(answering(DONE, **headers))
    stream = StreamClient(server.url)
    assert stream.stream_id is None
    with stream:
        assert stream.stream_id == stream_id
        list(stream)


def test_it_can_be_used_without_a_with_block(serve: Serve) -> None:
    server = serve(answering(texts("a") + DONE))
    stream = StreamClient(server.url)
    assert server.requests == []
    assert [event.event for event in stream] == [None, "done"]
    assert stream.closed


def test_a_foreign_stream_ends_with_its_connection(serve: Serve) -> None:
    data = b"event: done\ndata: 1\n\nevent: failed\ndata: 2\n\n"
    data += b'event: usage\ndata: {"input_tokens":1}\n\ndata: [DONE]\n\n'
    for headers in ({}, {"Connection": "close"}):
        server = serve(answering(data, **headers))
        with StreamClient(server.url, terminal=None) as stream:
            assert [event.data for event in stream] == ["1", "2", '{"input_tokens":1}', "[DONE]"]
            assert stream.finish_reason is None and stream.usage is None


def test_terminal_events_can_have_other_names(serve: Serve) -> None:
    server = serve(answering(b"event: done\ndata: 1\n\nevent: bye\ndata: 2\n\ndata: 3\n\n"))
    with StreamClient(server.url, terminal=["bye"]) as stream:
        assert [event.data for event in stream] == ["1", "2"]


def test_an_event_without_end_is_given_up(serve: Serve) -> None:
    closed = threading.Event()

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(texts("a") + b"data: ")
        try:
            while True:
                exchange.body(b"x" * 1000)
        except OSError:
            closed.set()

    server = serve(script)
    with StreamClient(server.url, max_buffer=5000) as stream:
        with pytest.raises(BufferLimitExceeded):
            list(stream)
        assert closed.wait(PATIENCE)


def test_a_307_keeps_the_body(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.number == 0:
            exchange.head("307 Temporary Redirect", Location="/there", Content_Length="0")
            exchange.keep_alive = True
        else:
            exchange.answer(DONE)

    server = serve(script)
    with StreamClient(server.url, json=[1]) as stream:
        list(stream)
    assert [(one.method, one.target, one.body) for one in server.requests] == [
        ("POST", "/stream", b"[1]"),
        ("POST", "/there", b"[1]"),
    ]


def test_a_session_keeps_its_connection_from_stream_to_stream(serve: Serve) -> None:
    server = serve(answering(texts("a") + DONE))
    with requests.Session() as session:
        session.headers["X-Key"] = "k"
        for _ in range(3):
            with StreamClient(server.url, session=session) as stream:
                assert len(list(stream)) == 2
    assert len(server.requests) == 3
    assert server.connections == 1
    assert {request.headers["x-key"] for request in server.requests} == {"k"}


def test_a_server_may_take_a_moment_to_end_after_its_last_event(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that closes at ``done`` looks like one that has left before the end."""
    assert streamclient._FINISH_TIMEOUT >= 0.2
    # Whatever the machine makes of the moment of this server.
    monkeypatch.setattr(streamclient, "_FINISH_TIMEOUT", PATIENCE)
    left: List[bool] = []

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(DONE)
        left.append(exchange.wait_closed(0.05))
        exchange.end()

    server = serve(script)
    with requests.Session() as session:
        for _ in range(2):
            with StreamClient(server.url, session=session) as stream:
                for event in stream:
                    assert event.event == "done"
                    break
    assert left == [False, False]
    assert server.connections == 1


def test_a_server_that_never_ends_is_left_soon_after_its_last_event(serve: Serve) -> None:
    closed: List[bool] = []

    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(DONE)
        closed.append(exchange.wait_closed())

    server = serve(script)
    stream = StreamClient(server.url)
    assert len(list(stream)) == 1
    server.stop()
    assert closed == [True]


def test_what_cannot_work_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="NaN"):
        StreamClient("http://127.0.0.1:1/", json=float("nan"))


@pytest.mark.parametrize("url", ["127.0.0.1/x", "ftp://127.0.0.1/x", "http://[::1", "http:///x"])
def test_a_wrong_url_is_a_value_error(url: str) -> None:
    with pytest.raises(ValueError):
        StreamClient(url).open()
