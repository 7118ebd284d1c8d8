"""Several sources in one stream, on threads: who waits for whom, and how each of them ends."""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import time
import weakref
from typing import Any, Dict, Iterator, List, Optional

import pytest
from flask import Flask
from serving import Served, events_of

from flask_llmstream import (
    Custom,
    Finish,
    LLMStream,
    StreamCancelled,
    UpstreamError,
    Usage,
    current_stream,
    json_deltas,
    multiplex,
    stream,
    stream_response,
)
from flask_llmstream.sansio.channels import ChannelDone, Channels
from flask_llmstream.sansio.chunkers import LineChunker, WordChunker
from flask_llmstream.sansio.events import Event
from flask_llmstream.testing import wait_until


def fields(event: Event) -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads(event.data)
    return found


def read(body: bytes) -> Dict[Optional[str], List[Any]]:
    """Return by channel what came: texts as they are, all else as (name of the event, its fields)."""
    found: Dict[Optional[str], List[Any]] = {}
    for event in events_of(body):
        values = fields(event)
        channel = values.pop("channel", None)
        item = values["text"] if event.event is None else (event.event, values)
        found.setdefault(channel, []).append(item)
    return found


def serve(sources: Dict[str, Any], **options: Any) -> Served:
    return Served(multiplex(sources, max_pending=options.pop("max_pending", 32)), **options)


def names(items: List[Any]) -> List[str]:
    return [item if isinstance(item, str) else item[0] for item in items]


# -- outside of a stream -------------------------------------------------------------------


def test_items_come_in_turn_each_with_its_channel() -> None:
    with multiplex({"a": ["1", Usage(1, 2), Finish("length")], "b": iter("xy")}) as items:
        found = list(items)
    assert found[0] == Channels(["a", "b"])
    by_channel = {name: [each.item for each in found[1:] if each.channel == name] for name in "ab"}
    assert by_channel["a"] == ["1", Usage(1, 2), Finish("length"), ChannelDone("length", Usage(1, 2))]
    assert by_channel["b"] == ["x", "y", ChannelDone()]
    assert list(items) == []


def test_where_all_fail_the_first_error_is_raised() -> None:
    def failing(error: Exception) -> Iterator[str]:
        raise error
        yield ""

    sources = {"a": failing(KeyError("a")), "b": failing(KeyError("b"))}
    with pytest.raises(KeyError), multiplex(sources) as items:
        list(items)


def test_sources_that_were_never_started_are_closed() -> None:
    closed = []

    class Source:
        def __iter__(self) -> Iterator[str]:
            raise AssertionError("it was started")

        def close(self) -> None:
            closed.append(self)

    items = multiplex({"a": Source(), "b": Source(), "c": ["no close()"]})
    items.close()
    assert len(closed) == 2 and list(items) == []


def test_leaving_the_block_ends_the_sources() -> None:
    ended = []

    def endless(name: str) -> Iterator[str]:
        try:
            while True:
                yield name
        except StreamCancelled as error:
            ended.append((name, error.reason))
            raise

    with multiplex({"a": endless("a"), "b": endless("b")}) as items:
        for _ in range(5):
            next(items)
    assert sorted(ended) == [("a", "stop"), ("b", "stop")]


def test_a_source_that_is_ahead_waits() -> None:
    yielded = []

    def eager() -> Iterator[str]:
        for number in range(100):
            yielded.append(number)
            yield str(number)

    with multiplex({"a": eager(), "b": ["x"]}, max_pending=4) as items:
        next(items)
        wait_until(lambda: len(yielded) >= 4)
        time.sleep(0.05)
        assert len(yielded) <= 8
        assert [each.item for each in items if each.channel == "a"][:-1] == [str(n) for n in range(100)]


@pytest.mark.parametrize(
    "sources, error",
    [
        pytest.param([("a", "b")], TypeError, id="no-mapping"),
        pytest.param({}, ValueError, id="empty"),
        pytest.param({"": ["x"]}, ValueError, id="no-name"),
        pytest.param({"a": "text"}, TypeError, id="text"),
        pytest.param({"a": None}, TypeError, id="none"),
    ],
)
def test_what_cannot_be_multiplexed_is_refused_at_once(sources: Any, error: Any) -> None:
    with pytest.raises(error):
        multiplex(sources)


def test_channels_of_channels_are_refused() -> None:
    inner = multiplex({"b": ["x"]})
    with pytest.raises(TypeError, match="channel 'a'"):
        multiplex({"a": inner})
    with pytest.raises(ValueError, match="max_pending"):
        multiplex({"a": ["x"]}, max_pending=0)


# -- in a stream ---------------------------------------------------------------------------


def test_each_channel_ends_once_and_the_stream_after_them() -> None:
    def failing() -> Iterator[str]:
        yield "half"
        raise ValueError("the secret")

    with serve({"a": ["whole", Usage(3, 4)], "b": failing(), "c": [Usage(1, None)]}) as served:
        body = served.read()
    found = read(body)
    assert names(found["a"]) == ["whole", "usage", "done"]
    assert names(found["b"]) == ["half", "failed"] and "secret" not in str(found)
    assert found[None] == [
        ("done", {"reason": "stop", "usage": {"input_tokens": 4, "output_tokens": 4}})
    ]
    assert events_of(body)[-1].event == "done"
    [end] = served.ends
    assert (end.reason, end.text) == ("finish", "whole\n\nhalf")
    assert end.usage == Usage(4, 5) and end.estimated
    assert list(end.channels) == ["a", "b", "c"]
    assert end.channels["a"][:4] == ("finish", "whole", Usage(3, 4), False)
    assert end.channels["b"][:4] == ("error", "half", Usage(None, 1), True)
    assert isinstance(end.channels["b"].error, ValueError)


def test_nothing_of_a_failed_channel_stays_in_a_cycle(caplog: Any) -> None:
    class Held:
        pass

    seen = []

    def failing() -> Iterator[str]:
        held = Held()
        seen.append(weakref.ref(held))
        yield "x"
        raise UpstreamError("the secret")

    caplog.set_level(logging.CRITICAL, "flask_llmstream.stream")  # pytest keeps what was logged
    gc.collect()
    gc.disable()
    try:
        with serve({"a": failing(), "b": ["y"]}) as served:
            served.read()
        del served
        if sys.version_info >= (3, 13):
            gc.collect()  # the frame of a generator that has ended keeps those of its callers
        wait_until(lambda: seen[0]() is None, 5.0, "the frames of the source to go")
    finally:
        gc.enable()


def test_what_cannot_be_sent_ends_its_channel_alone() -> None:
    def wrong() -> Iterator[Any]:
        yield "good"
        yield {"of": object()}
        while True:
            yield "never seen"

    with serve({"a": wrong(), "b": ["x", "y"]}) as served:
        found = read(served.read())
    assert names(found["a"]) == ["good", "failed"]
    assert names(found["b"]) == ["x", "y", "done"]
    assert names(found[None]) == ["done"]
    assert isinstance(served.ends[0].channels["a"].error, TypeError)


def test_a_failure_before_all_waits_for_the_status_and_no_longer() -> None:
    gate = threading.Event()

    def failing() -> Iterator[str]:
        raise ValueError("at once")
        yield ""

    def slow() -> Iterator[str]:
        gate.wait(10)
        yield "late"

    with serve({"a": failing(), "b": slow()}, status_hold=0.1) as served:
        began = time.monotonic()
        assert b"failed" in served.read_until(b"failed")
        assert time.monotonic() - began < 5
        gate.set()
        assert served.heads[0][0] == "200 OK"
        served.read()
    assert served.ends[0].reason == "finish"


def test_where_all_fail_before_the_first_item_it_is_no_200() -> None:
    def failing() -> Iterator[str]:
        raise UpstreamError("the secret", code="upstream_timeout")
        yield ""

    with serve({"a": failing(), "b": failing()}) as served:
        assert b"secret" not in served.read()
    assert [status for status, _ in served.heads] == ["504 Gateway Timeout"]
    assert served.ends[0].reason == "error"


def test_where_all_have_failed_the_stream_has_failed() -> None:
    def failing(text: str) -> Iterator[str]:
        yield text
        raise ValueError("the secret")

    with serve({"a": failing("x"), "b": failing("y")}) as served:
        found = read(served.read())
    assert names(found["a"]) == ["x", "failed"] and names(found["b"]) == ["y", "failed"]
    assert names(found[None]) == ["failed"]
    assert served.ends[0].reason == "error"


def test_current_stream_is_that_of_the_response() -> None:
    seen: Dict[str, Any] = {}
    closed: List[str] = []

    class Bound:
        def close(self) -> None:
            closed.append("bound")

    def source() -> Iterator[Any]:
        seen["id"] = current_stream.id
        seen["cancelled"] = current_stream.cancelled
        current_stream.on_end(lambda end: seen.update(end=end.reason))
        current_stream.bind(Bound())
        yield "one "
        current_stream.send(Custom("two"))
        yield "three"
        current_stream.flush()
        current_stream.send("four")

    with serve({"a": source()}, chunker=LineChunker()) as served:
        found = read(served.read())
    assert found["a"][0] == "one " and names(found["a"])[1:4] == ["custom", "three", "four"]
    assert seen == {"id": served.stream.id, "cancelled": None, "end": "finish"}
    assert closed == ["bound"]


def test_each_channel_has_a_chunker_of_its_own() -> None:
    with serve({"a": ["Hel", "lo wo", "rld"], "b": ["Gr", "üße all", "en"]}, chunker=WordChunker()) as served:
        found = read(served.read())
    assert found["a"][:-1] == ["Hello ", "world"] and found["b"][:-1] == ["Grüße ", "allen"]


def test_text_that_a_chunker_holds_for_long_goes_out() -> None:
    gate = threading.Event()

    def holding() -> Iterator[str]:
        yield "beg"
        gate.wait(10)
        yield "un"

    with serve({"a": holding()}, chunker=LineChunker(), max_delay=0.05) as served:
        assert b"beg" in served.read_until(b'"beg"')
        gate.set()
        assert [item for item in read(served.read()).get("a", []) if isinstance(item, str)] == ["un"]


@pytest.mark.parametrize("reason", ["stop", "timeout", "shutdown"])
def test_cancelling_the_stream_ends_all_sources(reason: str) -> None:
    ended = []

    def waiting(name: str) -> Iterator[str]:
        try:
            yield name
            while not current_stream.cancelled:
                time.sleep(0.005)
            yield "lost"
        except StreamCancelled as error:
            ended.append((name, error.reason))
            raise

    def view() -> Iterator[Any]:
        yield from multiplex({"a": waiting("a"), "b": waiting("b")})

    with Served(view()) as served:
        said = b""
        while b'"a","text"' not in said or b'"b","text"' not in said:  # each in its own time
            said += served.read_until(b"\n\n")
        began = time.monotonic()
        served.stream.cancel(reason)
        found = read(served.read())
        took = time.monotonic() - began
    assert sorted(ended) == [("a", reason), ("b", reason)]
    assert names(found[None]) == ["done" if reason == "stop" else "failed"]
    assert served.ends[0].reason == reason
    assert {name: end.reason for name, end in served.ends[0].channels.items()} == {"a": reason, "b": reason}
    assert took < 5.0


def test_a_source_that_goes_on_is_not_waited_for_for_ever(caplog: Any) -> None:
    gate = threading.Event()

    def stubborn() -> Iterator[str]:
        yield "x"
        while not gate.is_set():
            gate.wait(10)
        yield "lost"

    with serve({"a": stubborn()}, cancel_grace=0.0) as served:
        served.read_until(b'"x"')
        served.stream.cancel("stop")
        served.read()
        gate.set()
    assert "the sources of its channels 'a' go on" in caplog.text


# -- in Flask ------------------------------------------------------------------------------


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    LLMStream(app)
    return app


def test_a_form_and_its_chat(app: Flask) -> None:
    @app.route("/")
    @stream
    def view() -> Any:
        return multiplex({"form": json_deltas(iter(['{"a', '": 1}'])), "chat": ["Here", " it is"]})

    found = read(app.test_client().get("/").data)
    assert found["chat"][:-1] == ["Here", " it is"]
    changes = [each for name, each in found["form"][:-1] if name == "json"]
    assert {"path": "/a", "op": "add", "value": 1} in changes
    assert names(found[None]) == ["done"]


def test_structured_reads_each_channel_by_itself(app: Flask) -> None:
    ends: List[Any] = []

    @app.route("/")
    def view() -> Any:
        sources = {"a": ['{"x": ', "1}"], "b": ["[2", ", 3]"]}
        response = stream_response(multiplex(sources), structured=True)
        response.llmstream.on_end(ends.append)
        return response

    found = read(app.test_client().get("/").data)
    assert names(found["a"])[-1] == names(found["b"])[-1] == "done"
    assert {name: end.value for name, end in ends[0].channels.items()} == {"a": {"x": 1}, "b": [2, 3]}


def test_formats_without_channels_refuse_before_the_first_byte(app: Flask) -> None:
    closed = []

    def source() -> Iterator[str]:
        try:
            yield "x"
            yield "y"
        finally:
            closed.append(True)

    @app.route("/")
    def view() -> Any:
        return stream_response(multiplex({"a": source()}), format="text")

    assert app.test_client().get("/").status_code == 500
    assert closed == [True]


def test_head_starts_nothing(app: Flask) -> None:
    started = []

    def source() -> Iterator[str]:
        started.append(True)
        yield "x"

    @app.route("/")
    def view() -> Any:
        return stream_response(multiplex({"a": source()}))

    assert app.test_client().head("/").status_code == 200
    assert not started
