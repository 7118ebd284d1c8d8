"""sseclient-py on our streams: as it is, and with its input put right."""

from __future__ import annotations

import threading
from typing import Any, List, Type

import pytest
import requests
import sseclient
from scripted import PATIENCE, Exchange, Serve, chunk

from flask_llmstream.client import sse_client
from flask_llmstream.exceptions import BufferLimitExceeded
from flask_llmstream.sansio.events import Custom, Event, ReasoningDelta, TextDelta, Usage
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.sse import HEARTBEAT

WIRE = SSEFormat()
FRAMES = [
    WIRE.encode(item)
    for item in (
        ReasoningDelta("hm"), TextDelta("a\n\r\u2028\u0085 \U0001f600"), TextDelta("\ud83d"),
        {"a": ["b"]}, Event("two\nlines\n", event="x", id="7", retry=1500), TextDelta(" b "),
        Custom("c", None), Usage(1, 2),
    )
] + [WIRE.done("stop", Usage(1, 2))]
EXPECT = [
    ("reasoning", '{"text":"hm"}', None),
    ("message", '{"text":"a\\n\\r\\u2028\\u0085 \U0001f600"}', None),
    ("message", '{"text":"\\ud83d"}', None),
    ("json", '{"path":"","op":"replace","value":{"a":["b"]}}', None),
    ("x", "two\nlines\n", "7"),
    ("message", '{"text":" b "}', None),
    ("custom", '{"name":"c","data":null}', None),
    ("usage", '{"input_tokens":1,"output_tokens":2}', None),
    ("done", '{"reason":"stop","usage":{"input_tokens":1,"output_tokens":2}}', None),
]


def framed(exchange: Exchange, data: bytes, size: int, **headers: str) -> None:
    exchange.head(**headers)
    for start in range(0, len(data), size):
        exchange.body(data[start : start + size])
    exchange.end()


@pytest.mark.parametrize("size", [1, 7, 128, 10000])
@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["chunked", "close-delimited"])
def test_a_script_that_changes_nothing_reads_our_streams(serve: Serve, size: int, headers: Any) -> None:
    """Comments, heartbeats, names, ids and retry go out in the one form that all clients read."""
    data = WIRE.opening(300) + b"".join(HEARTBEAT + frame + HEARTBEAT * 2 for frame in FRAMES)
    server = serve(lambda exchange: framed(exchange, data, size, **headers))
    response = requests.get(server.url, stream=True)
    events = list(sseclient.SSEClient(response).events())
    assert [(event.event, event.data, event.id) for event in events] == EXPECT
    assert [event.retry for event in events if event.retry] == ["1500"]


def test_a_script_that_changes_nothing_gets_each_event_at_once(serve: Serve) -> None:
    seen = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        exchange.head()
        for frame in FRAMES:
            exchange.body(frame)
            assert seen.acquire(timeout=PATIENCE), "an event was held back"
        exchange.end()

    server = serve(script)
    for _ in sseclient.SSEClient(requests.get(server.url, stream=True)).events():
        seen.release()


@pytest.mark.parametrize("headers", [{}, {"Connection": "close"}], ids=["chunked", "close-delimited"])
def test_each_event_is_handed_out_at_once(serve: Serve, headers: Any) -> None:
    """sseclient-py alone waits for 128 bytes where the body is not chunked."""
    seen = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        exchange.head(**headers)
        for number in range(5):
            exchange.body(b"data: %d\n\n" % number)
            assert seen.acquire(timeout=PATIENCE), "an event was held back"
        exchange.end()

    server = serve(script)
    got = []
    for event in sse_client(requests.get(server.url, stream=True)).events():
        got.append(event.data)
        seen.release()
    assert got == ["0", "1", "2", "3", "4"]


def test_it_is_the_real_class(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(b""))
    client = sse_client(requests.get(server.url, stream=True))
    assert isinstance(client, sseclient.SSEClient)
    assert list(client.events()) == []
    client.close()


def test_ids_stay_as_they_do_not_in_sseclient(serve: Serve) -> None:
    data = b"data: 0\n\nid: 1\n\ndata: 1\n\ndata: 2\n\nid\ndata: 3\n\n"
    server = serve(lambda exchange: exchange.answer(data))
    events = list(sse_client(requests.get(server.url, stream=True)).events())
    assert [event.id for event in events] == [None, "1", "1", ""]


def test_a_new_retry_is_on_the_next_event_once(serve: Serve) -> None:
    seen = threading.Semaphore(0)

    def script(exchange: Exchange) -> None:
        exchange.head()
        for data in (b"retry: 5\n\ndata: a", b"data: b", b"retry: 5\ndata: c", b"retry: 6\ndata: d"):
            exchange.body(data + b"\n\n")
            assert seen.acquire(timeout=PATIENCE)
        exchange.end()

    server = serve(script)
    retries: List[Any] = []
    for event in sse_client(requests.get(server.url, stream=True)).events():
        retries.append(event.retry)
        seen.release()
    assert retries == ["5", None, None, "6"]


@pytest.mark.parametrize(
    "body, headers, expect",
    [
        pytest.param(chunk(b"data: a\n\n") + b"20\r\ndata", {}, requests.exceptions.ChunkedEncodingError,
                     id="cut"),
        pytest.param(chunk(b"?" * 30), {"Content_Encoding": "gzip"}, requests.exceptions.ContentDecodingError,
                     id="damaged gzip"),
    ],
)
def test_errors_are_those_of_requests(
    serve: Serve, body: bytes, headers: Any, expect: Type[requests.RequestException]
) -> None:
    """Scripts have ``except requests.RequestException`` around their loops."""

    def script(exchange: Exchange) -> None:
        exchange.head(**headers)
        exchange.send(body)

    server = serve(script)
    with pytest.raises(expect):
        list(sse_client(requests.get(server.url, stream=True)).events())


def test_silence_is_the_error_of_requests(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head()
        exchange.body(b"data: a\n\n")
        assert exchange.wait_closed()

    server = serve(script)
    got = []
    with pytest.raises(requests.exceptions.ConnectionError):
        for event in sse_client(requests.get(server.url, stream=True, timeout=1.0)).events():
            got.append(event.data)
    assert got == ["a"]


def test_a_huge_event_is_given_up(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(b"data: " + b"x" * 3000 + b"\n\n"))
    with pytest.raises(BufferLimitExceeded):
        list(sse_client(requests.get(server.url, stream=True), max_buffer=1000).events())
    (event,) = sse_client(requests.get(server.url, stream=True), max_buffer=5000).events()
    assert len(event.data) == 3000
