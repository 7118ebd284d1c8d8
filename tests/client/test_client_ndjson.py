"""The client over NDJSON and frames, and the JSON values that streams build."""

from __future__ import annotations

import copy
from typing import Any, List

import pytest
from scripted import Exchange, Serve

from flask_llmstream.client import StreamClient
from flask_llmstream.client.progress import Progress
from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError, StreamFailed, StreamInterrupted
from flask_llmstream.sansio.channels import Tagged
from flask_llmstream.sansio.events import JsonDelta, ReasoningDelta, Usage
from flask_llmstream.sansio.frames import FramesFormat, with_cursor
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.ndjson import NDJSONFormat

NDJSON = {"Content_Type": "application/x-ndjson"}
FRAMES = {"Content_Type": "application/vnd.llmstream.frames"}
FORMATS = [
    pytest.param(SSEFormat, {}, id="sse"),
    pytest.param(NDJSONFormat, NDJSON, id="ndjson"),
    pytest.param(FramesFormat, FRAMES, id="frames"),
]
CHANGES = [
    JsonDelta("", "add", {}), JsonDelta("/title", "add", "He"), JsonDelta("/title", "append", "llo"),
    JsonDelta("/title", "complete"), JsonDelta("/tags", "add", []), JsonDelta("/tags/0", "add", 1),
]
SNAPSHOTS = [
    {}, {"title": "He"}, {"title": "Hello"}, {"title": "Hello", "tags": []}, {"title": "Hello", "tags": [1]},
]


def wire(format: Any, *items: Any) -> bytes:
    return b"".join(format.encode(item) for item in items)


@pytest.mark.parametrize("format, headers", FORMATS)
def test_json_is_built_as_it_comes(serve: Serve, format: Any, headers: Any) -> None:
    of = format()
    data = wire(of, "text", *CHANGES) + of.done("stop")
    server = serve(lambda exchange: exchange.answer(data, **headers))
    with StreamClient(server.url) as stream:
        assert [copy.deepcopy(value) for value in stream.snapshots()] == SNAPSHOTS
    assert stream.finish_reason == "stop"


@pytest.mark.parametrize("format, headers", FORMATS)
def test_channels_build_values_of_their_own(serve: Serve, format: Any, headers: Any) -> None:
    of = format()
    items = [Tagged(name, change) for change in CHANGES for name in ("a", "b")]
    data = wire(of, *items) + of.done("stop")
    server = serve(lambda exchange: exchange.answer(data, **headers))
    with StreamClient(server.url) as stream:
        found = [(name, copy.deepcopy(value)) for name, value in stream.channel_snapshots()]
    assert found == [(name, value) for value in SNAPSHOTS for name in ("a", "b")]
    with StreamClient(server.url) as stream:
        assert [copy.deepcopy(value) for value in stream.snapshots("b")] == SNAPSHOTS


@pytest.mark.parametrize(
    "data",
    [
        b'{"path":"/a","op":"append","value":"x"}', b'{"path":"","op":"tweak"}',
        b'{"path":"","op":"append","value":1}', b'{"path":5,"op":"add"}', b"[]",
    ],
)
def test_a_change_that_fits_nothing_is_an_error(serve: Serve, data: bytes) -> None:
    server = serve(lambda exchange: exchange.answer(b"event: json\ndata: " + data + b"\n\n"))
    with StreamClient(server.url) as stream:
        with pytest.raises(StreamInterrupted, match="does not fit what came before it"):
            list(stream.snapshots())


@pytest.mark.parametrize("size", [1, 10, 10000])
@pytest.mark.parametrize("format, headers", FORMATS[1:])
def test_text_is_exact(serve: Serve, format: Any, headers: Any, size: int) -> None:
    pieces = ["Hel", "lo\n", "\ud83d", "\ude00", "\u2028"]
    heard: List[str] = []
    of = format()
    data = of.opening(0) + wire(of, *pieces, ReasoningDelta("hm"), Usage(1, 9)) + of.done("length")

    def script(exchange: Exchange) -> None:
        exchange.head(**headers)
        for start in range(0, len(data), size):
            exchange.body(data[start : start + size])
        exchange.end()

    server = serve(script)
    with StreamClient(server.url, on_heartbeat=heard.append) as stream:
        assert "".join(stream.text()) == "Hello\n\U0001f600\u2028"
    assert (stream.finish_reason, stream.usage) == ("length", Usage(1, 9))
    assert heard == ["" if format is FramesFormat else "open"]


def test_a_last_line_without_its_end_counts(serve: Serve) -> None:
    data = b'{"type":"text","text":"a"}\n{"type":"done","reason":"stop"}'
    server = serve(lambda exchange: exchange.answer(data, **NDJSON))
    with StreamClient(server.url) as stream:
        assert list(stream.text()) == ["a"]
    assert stream.finish_reason == "stop"


@pytest.mark.parametrize(
    "data, error, words",
    [
        (b'{"type":"text","text":"a"}\n{"type":"do', StreamInterrupted, "after 1 events without one of done"),
        (NDJSONFormat().failed("no", "busy", True), StreamFailed, "busy: no"),
        (b"data: x\n", DecodeError, "line 1: not JSON"),
        (FramesFormat().encode("a") + b"\0\0\0\2", StreamInterrupted, "after 1 events without one of done"),
        (FramesFormat().failed("no", "busy", True), StreamFailed, "busy: no"),
        (b"\0\0\0\1\1\0\xff", DecodeError, "text frame is not UTF-8"),
        (b"\0\x10\0\1\1\0", BufferLimitExceeded, "has 1048577 bytes"),
    ],
    ids=["cut", "failed", "not JSON", "cut frame", "failed frame", "no UTF-8", "long frame"],
)
def test_what_goes_wrong_is_an_error(serve: Serve, data: bytes, error: Any, words: str) -> None:
    headers = NDJSON if data[:1] != b"\0" else FRAMES
    server = serve(lambda exchange: exchange.answer(data, **headers))
    with StreamClient(server.url) as stream:
        with pytest.raises(error, match=words):
            list(stream)


LINES = [
    b'{"type":"text","text":"a","cursor":"c-1"}\n{"type":"text","te',
    b'{"type":"text","text":"b","cursor":"c-2"}\n{"type":"done","reason":"stop","cursor":"c-end"}\n',
]
AS_FRAMES = [
    with_cursor(FramesFormat().encode("a"), "c-1") + with_cursor(FramesFormat().encode("b"), "c-2")[:-1],
    with_cursor(FramesFormat().encode("b"), "c-2") + with_cursor(FramesFormat().done("stop"), "c-end"),
]


@pytest.mark.parametrize("bodies, headers", [(LINES, NDJSON), (AS_FRAMES, FRAMES)], ids=["ndjson", "frames"])
def test_a_stream_is_followed_where_it_broke_off(serve: Serve, bodies: List[bytes], headers: Any) -> None:
    first, rest = bodies

    def script(exchange: Exchange) -> None:
        exchange.head(Content_Location="/llmstream/streams/x", **headers)
        exchange.body(rest if exchange.number else first)
        if exchange.number:
            exchange.end()

    server = serve(script)
    lost: List[Any] = []
    with StreamClient(
        server.url, json={}, retries=1, random=lambda: 0.0, sleep=lambda seconds: None,
        on_reconnect=lambda exc, delay: lost.append((type(exc), delay)),
    ) as stream:
        assert "".join(stream.text()) == "ab"
    assert server.requests[1].headers["last-event-id"] == "c-1" and stream.last_event_id == "c-end"
    assert lost == [(StreamInterrupted, 1.0)]


def test_where_to_go_on_is_known_before_the_first_line(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head(**NDJSON)
        if exchange.number:
            exchange.body(b'{"type":"done"}\n')
            exchange.end()

    server = serve(script)
    options: Any = {"retries": 1, "random": lambda: 0.0, "sleep": lambda seconds: None}
    with StreamClient(server.url, last_event_id="c-7", **options) as stream:
        assert [event.event for event in stream] == ["done"]
    assert [request.headers["last-event-id"] for request in server.requests] == ["c-7", "c-7"]


def test_progress_counts_what_has_come(serve: Serve) -> None:
    of = SSEFormat()
    data = of.opening(0) + wire(of, "abc", "d", ReasoningDelta("hm")) + of.done("stop", Usage(1, 7))
    server = serve(lambda exchange: exchange.answer(data))
    told: List[Any] = []

    def note(progress: Progress) -> None:
        told.append((progress.events, progress.tokens))

    stream = StreamClient(server.url, expected_tokens=9, on_progress=note)
    progress = stream.progress
    assert (progress.seconds, progress.rate, progress.tokens) == (0.0, 0.0, 0)
    with stream:
        assert "".join(stream.text()) == "abcd"
    assert told == [(1, 1), (2, 2), (3, 2), (4, 7)]
    assert (progress.pieces, progress.characters, progress.bytes) == (2, 4, len(data))
    assert (progress.expected, progress.counted) == (9, 7)
    took = progress.seconds
    assert 0 < took < 5 and progress.rate == 7 / took
    assert progress.seconds == took, "the time stands still after the end"


def test_each_answer_is_seen_by_its_callback(serve: Serve) -> None:
    def script(exchange: Exchange) -> None:
        exchange.head("503 Service Unavailable", Content_Length="0", X_Request="7")

    seen: List[Any] = []
    server = serve(script)
    with pytest.raises(Exception, match="503"):
        StreamClient(server.url, on_response=lambda answer: seen.append(answer.headers["X-Request"])).open()
    assert seen == ["7"]
