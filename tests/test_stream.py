"""One stream's life on threads: who ends it, what is still said, and what is left alone."""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import socket
import threading
import time
from typing import Any, Callable, Iterator, List, Optional

import pytest
from serving import Served, events_of

from flask_llmstream import Comment, Event, Finish, StreamCancelled, TextDelta, Usage, current_stream, signals
from flask_llmstream.disconnect import Peer
from flask_llmstream.sansio.chunkers import LineChunker, make_chunker
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream
from flask_llmstream.testing import wait_until


class Gate:
    """Holds up whoever passes, in a read that a cancellation can interrupt."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.settimeout(20)
        self._file = self._reader.makefile("rb", buffering=0)
        self.reached = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self._file.read(1)

    def open(self) -> None:
        self._writer.send(b"x")

    def close(self) -> None:
        self._file.close()
        self._reader.close()
        self._writer.close()


@pytest.fixture
def gates() -> Iterator[Callable[[], Gate]]:
    made: List[Gate] = []

    def make() -> Gate:
        made.append(Gate())
        return made[-1]

    yield make
    for gate in made:
        gate.close()


def failing_write() -> None:
    raise BrokenPipeError(32, "the client has left")


class Hold:
    """Holds up a write of the server's, which cannot be interrupted."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.released.wait(20)


def texts(body: bytes) -> List[str]:
    return [event.data for event in events_of(body) if event.event is None]


# -- what goes out -------------------------------------------------------------------------


def test_items_of_all_kinds_go_out_in_order_and_one_done_follows() -> None:
    items: List[Any] = [
        "a", TextDelta("b"), b"c", "", Comment("hello"), Usage(1, 2), {"k": 1}, Event("x", event="own"),
        Finish("length"),
    ]
    with Served(items) as served:
        body = served.read()
    end = served.end()
    assert [event.event for event in events_of(body)] == [None] * 3 + ["usage", "json", "own", "done"]
    assert b": hello\n" in body
    assert events_of(body)[-1].data == (
        '{"reason":"length","usage":{"input_tokens":1,"output_tokens":2}}'
    )
    assert (end.reason, end.text, end.usage, end.estimated) == ("finish", "abc", Usage(1, 2), False)
    assert end.time_to_first_token is not None and end.time_to_first_token <= end.duration
    assert served.heads == [("200 OK", [])] and served.closed == 1 and served.error is None


def test_str_subclass_is_text() -> None:
    class Token(str):
        pass

    with Served([Token("a")]) as served:
        assert texts(served.read()) == ['{"text":"a"}']


def test_empty_source_is_an_empty_answer() -> None:
    with Served([]) as served:
        assert [event.event for event in events_of(served.read())] == ["done"]
    end = served.end()
    assert (end.text, end.usage, end.estimated, end.time_to_first_token) == ("", None, False, None)


def test_usage_that_nobody_reported_is_estimated() -> None:
    with Served(["a", "b"]) as served:
        assert b'"usage":null' in served.read()
    assert served.end().usage == Usage(output_tokens=2) and served.end().estimated


def test_text_in_a_chunker_goes_out_before_other_items_and_at_the_end() -> None:
    items = ["one ", "line\nand ", Usage(1, 1), "a rest"]
    with Served(items, chunker=LineChunker()) as served:
        events = events_of(served.read())
    assert [event.data for event in events if event.event is None] == [
        '{"text":"one line\\n"}', '{"text":"and "}', '{"text":"a rest"}'
    ]
    assert [event.event for event in events] == [None, None, "usage", None, "done"]


def test_text_in_a_chunker_goes_out_when_the_source_fails() -> None:
    def source() -> Iterator[str]:
        yield "a line\nhalf a li"
        raise ValueError("boom")

    with Served(source(), chunker=LineChunker()) as served:
        events = events_of(served.read())
    assert [event.event for event in events] == [None, None, "failed"]


def test_chunker_that_fails_fails_the_stream() -> None:
    class Broken:
        def feed(self, text: str) -> List[str]:
            return [text]

        def flush(self) -> List[str]:
            raise ValueError("boom")

    with Served(["text"], chunker=Broken()) as served:
        events = events_of(served.read())
    assert [event.event for event in events] == [None, "failed"]
    assert served.end().reason == "error"


def test_item_that_cannot_be_sent_fails_the_stream_and_closes_the_source() -> None:
    closed = []

    def source() -> Iterator[Any]:
        try:
            yield "a"
            yield object()
        finally:
            current_stream.send("from its clean-up")
            closed.append(True)

    with Served(source()) as served:
        events = events_of(served.read())
    assert [event.event for event in events] == [None, None, "failed"]
    assert closed == [True]
    assert isinstance(served.end().error, TypeError)


def test_failure_before_the_first_byte_is_a_real_status() -> None:
    def source() -> Iterator[str]:
        raise ValueError("the secret")
        yield ""

    with Served(source()) as served:
        body = served.read()
    (status, headers), = served.heads
    assert status == "500 Internal Server Error"
    assert dict(headers)["Content-Type"] == "application/json"
    assert dict(headers)["Content-Length"] == str(len(body)) and b"secret" not in body
    assert served.end().reason == "error"


def test_padding_opens_the_stream_when_the_source_sends_first() -> None:
    def source() -> Iterator[str]:
        current_stream.send("a")
        yield "b"

    with Served(source(), padding=1024) as served:
        body = served.read()
    assert body.startswith(b": open\n") and 1024 <= body.index(b"data") < 1300
    assert body.count(b": open") == 1


def test_ready_items_are_collected_up_to_a_bound() -> None:
    class Ready:
        ready = 100

        def __iter__(self) -> Ready:
            return self

        def __next__(self) -> str:
            if not self.ready:
                raise StopIteration
            self.ready -= 1
            return "x"

    writes = []
    with Served(Ready(), before_write=lambda: writes.append(1)) as served:
        assert len(texts(served.read())) == 100
    assert len(writes) <= 6


def test_stream_can_be_sent_once() -> None:
    stream = Stream(["a"], format=SSEFormat(), settings=Settings())
    with pytest.raises(RuntimeError, match="before it was attached"):
        next(stream)
    peer = Peer("test", None, False, False)
    stream.attach(peer, lambda *args: None, "200 OK", [])
    with pytest.raises(RuntimeError, match="sent once"):
        stream.attach(peer, lambda *args: None, "200 OK", [])
    assert repr(stream) == f"<Stream {stream.id} attached>"
    assert b'"a"' in b"".join(stream)
    stream.close()
    stream.close()
    assert "over" in repr(stream)
    with pytest.raises(StopIteration):
        next(stream)


def test_server_without_a_usable_write_gets_items_and_no_heartbeat(gates: Callable[[], Gate]) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        current_stream.send("a ")
        gate()
        yield "b"

    stream = Stream(
        source(), format=SSEFormat(), settings=Settings(heartbeat_interval=0.01, status_hold=0.01)
    )
    stream.attach(Peer("unknown", None, False, False), lambda *args: None, "200 OK", [])
    threading.Timer(0.1, gate.open).start()
    body = b"".join(stream)
    stream.close()
    assert b": hb" not in body and len(texts(body)) == 2


def test_write_that_is_a_fake_stops_heartbeats_and_loses_nothing(
    gates: Callable[[], Gate], caplog: pytest.LogCaptureFixture
) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        gate()
        yield "a"

    def fake(data: bytes) -> None:
        raise NotImplementedError("no write() here")

    stream = Stream(source(), format=SSEFormat(), settings=Settings(status_hold=0.02))
    stream.attach(Peer("test", None, True, True), lambda *args: fake, "200 OK", [])

    def go_on() -> None:
        try:  # however late the ticker comes
            wait_until(lambda: "heartbeats stop" in caplog.text, 10)
        finally:
            gate.open()

    threading.Thread(target=go_on).start()
    body = b"".join(stream)
    stream.close()
    assert body.startswith(b": open\n") and texts(body) == ['{"text":"a"}']
    assert "heartbeats stop" in caplog.text and stream.id in caplog.text


# -- leaving -------------------------------------------------------------------------------


def test_client_that_closes_cancels_a_blocked_source(gates: Callable[[], Gate]) -> None:
    gate = gates()
    seen: List[Any] = []

    def source() -> Iterator[str]:
        yield "a"
        try:
            gate()
        except BaseException as error:
            seen.append((type(error), error.args, current_stream.cancelled))
            raise

    with Served(source()) as served:
        gate.reached.wait(10)
        served.client.close()
        assert served.end().reason == "disconnect"
    ((kind, args, cancelled),) = seen
    assert issubclass(kind, StreamCancelled) and args == ("disconnect",) and cancelled == "disconnect"
    assert isinstance(served.error, ConnectionResetError), "the server ends the request quietly"


def test_half_closed_client_is_probed_and_served(gates: Callable[[], Gate]) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        yield "a"
        gate()
        yield "b"

    with Served(source()) as served:
        served.client.shutdown(socket.SHUT_WR)
        served.read_until(b": hb\n")
        gate.open()
        assert b'"b"' in served.read()
    assert served.end().reason == "finish"


def test_client_that_half_closes_while_the_server_writes_is_probed_afterwards(
    gates: Callable[[], Gate]
) -> None:
    hold, gate = Hold(), gates()

    def source() -> Iterator[str]:
        yield "a"
        gate()

    with Served(source(), before_write=hold, heartbeat_interval=60) as served:
        hold.reached.wait(10)
        served.client.shutdown(socket.SHUT_WR)
        wait_until(lambda: served.stream._probing)
        hold.released.set()
        served.read_until(b": hb\n")
        gate.open()
        served.read()


def test_client_that_leaves_while_the_server_writes_cancels_the_source() -> None:
    hold = Hold()
    raised: List[str] = []

    def source() -> Iterator[str]:
        try:
            while True:
                yield "a"
        except StreamCancelled as error:
            raised.append(error.reason)
            raise

    with Served(source(), before_write=hold) as served:
        hold.reached.wait(10)
        served.client.close()
        wait_until(lambda: served.stream.cancelled)
        hold.released.set()
        assert served.end().reason == "disconnect"
    assert raised == ["disconnect"]


def test_write_that_fails_cancels_the_source_with_the_same_exception() -> None:
    raised: List[Any] = []

    def source() -> Iterator[str]:
        try:
            yield "a"
        except BaseException as error:
            raised.append((type(error), current_stream.cancelled))
            raise

    with Served(source(), before_write=failing_write) as served:
        assert served.end().reason == "disconnect"
    assert raised == [(StreamCancelled, "disconnect")]


def test_write_that_fails_leaves_a_detached_source_alone() -> None:
    with Served((each for each in "abc"), before_write=failing_write, on_disconnect="detach") as served:
        end = served.end()
    assert (end.reason, end.text) == ("finish", "abc")


def test_grace_counts_from_a_write_that_fails(gates: Callable[[], Gate]) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        yield "a"
        gate()
        yield "b"

    with Served(source(), before_write=failing_write, on_disconnect=0.3) as served:
        end = served.end()
    assert (end.reason, end.text) == ("disconnect", "a") and end.duration >= 0.3


@pytest.mark.parametrize("leaving", ["blocked", "writing"])
def test_detached_source_that_fails_is_reported(
    leaving: str, gates: Callable[[], Gate], caplog: pytest.LogCaptureFixture
) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        yield "a"
        gate()
        raise ValueError("boom")

    before_write = failing_write if leaving == "writing" else None
    with Served(source(), before_write=before_write, on_disconnect="detach") as served:
        if leaving == "blocked":
            served.read_until(b'"a"')
            served.client.close()
        wait_until(lambda: served.stream._gone)
        gate.open()
        end = served.end()
    assert end.reason == "error" and isinstance(end.error, ValueError)
    lines = [record.getMessage() for record in caplog.records if served.stream.id in record.getMessage()]
    assert len(lines) == 1 and "boom" in lines[0]


def test_detached_source_that_sends_gathers_nothing(gates: Callable[[], Gate]) -> None:
    gate = gates()
    gathered: List[int] = []

    def source() -> Iterator[str]:
        yield "a"
        gate()
        for _ in range(100):
            current_stream.send("x")
        gathered.append(len(current_stream._frames))

    with Served(source(), on_disconnect="detach") as served:
        served.read_until(b'"a"')
        served.client.close()
        wait_until(lambda: served.stream._gone)
        gate.open()
        assert served.end().text == "a" + "x" * 100
    assert gathered == [0]


def test_worker_that_goes_down_ends_the_stream_as_shutdown() -> None:
    def going_down() -> None:
        raise SystemExit(1)

    closed: List[Optional[str]] = []

    def source() -> Iterator[str]:
        try:
            yield "a"
        finally:
            closed.append(current_stream.cancelled)

    with Served(source(), before_write=going_down, on_disconnect="detach") as served:
        assert served.end().reason == "shutdown"
    assert isinstance(served.error, SystemExit) and len(closed) == 1


@pytest.mark.parametrize("detached", [False, True])
def test_worker_that_goes_down_inside_the_source_takes_the_stream_along(
    detached: bool, gates: Callable[[], Gate]
) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        yield "a"
        gate()
        raise SystemExit(1)

    with Served(source(), before_write=failing_write if detached else None, on_disconnect="detach") as served:
        if detached:
            wait_until(lambda: served.stream._gone)
        gate.open()
        assert served.end().reason == "shutdown"
    assert isinstance(served.error, SystemExit)


# -- cancelling ----------------------------------------------------------------------------


def test_stop_ends_in_done_and_keeps_the_connection(gates: Callable[[], Gate]) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        yield "a"
        gate()

    with Served(source()) as served:
        served.read_until(b'"a"')
        served.stream.cancel("stop")
        body = served.read()
    assert events_of(body)[-1].data == '{"reason":"cancelled","usage":null}'
    assert served.end().reason == "stop" and served.error is None
    served.stream.cancel("stop")  # too late, and harmless


def test_stopped_source_may_send_and_flush_in_its_clean_up() -> None:
    hold = Hold()

    def source() -> Iterator[str]:
        try:
            while True:
                yield "a"
        finally:
            current_stream.send("last")
            current_stream.flush()

    with Served(source(), before_write=hold, chunker=LineChunker(), max_delay=0.01) as served:
        wait_until(lambda: len(served.stream._texts) > 100)
        served.stream.cancel("stop")
        hold.released.set()
        body = served.read()
    assert texts(body)[-1].endswith('last"}') and events_of(body)[-1].event == "done"


def test_shielded_block_ends_with_the_cancellation_and_clean_up_has_its_grace(
    gates: Callable[[], Gate]
) -> None:
    inside, cleaning = gates(), gates()
    marks: List[str] = []

    def source() -> Iterator[str]:
        yield "a"
        try:
            with current_stream.shield():
                inside()
                marks.append("inside")
        except StreamCancelled:
            cleaning()
            marks.append("cleaned up")
            raise

    with Served(source()) as served:
        served.read_until(b'"a"')
        inside.reached.wait(10)
        served.stream.cancel("stop")
        time.sleep(0.2)  # several attempts would have been made by now
        inside.open()
        assert cleaning.reached.wait(10)
        time.sleep(0.7)  # longer than the longest pause between two attempts
        cleaning.open()
        assert served.end().reason == "stop"
    assert marks == ["inside", "cleaned up"]


def test_clean_up_between_two_items_has_its_grace_too(gates: Callable[[], Gate]) -> None:
    hold, cleaning = Hold(), gates()
    marks: List[str] = []

    def source() -> Iterator[str]:
        try:
            while True:
                yield "a"
        finally:
            cleaning()
            marks.append("cleaned up")

    with Served(source(), before_write=hold) as served:
        hold.reached.wait(10)
        served.stream.cancel("stop")
        hold.released.set()
        assert cleaning.reached.wait(10)
        time.sleep(0.7)
        cleaning.open()
        assert served.end().reason == "stop"
    assert marks == ["cleaned up"]


def test_clean_up_that_hangs_is_interrupted_after_the_grace(
    gates: Callable[[], Gate], caplog: pytest.LogCaptureFixture
) -> None:
    hold, cleaning = Hold(), gates()

    def source() -> Iterator[str]:
        try:
            while True:
                yield "a"
        finally:
            cleaning()

    with Served(source(), before_write=hold, cancel_grace=0.3) as served:
        hold.reached.wait(10)
        served.stream.cancel("stop")
        hold.released.set()
        end = served.end()
    assert end.reason == "stop" and end.duration < 10
    # The thread that interrupts says so after it has let go of the stream.
    wait_until(lambda: "goes on 0.3 s after it was cancelled (stop)" in caplog.text, 5, "no warning")


def test_cancelled_source_that_fails_meanwhile_is_still_cancelled(gates: Callable[[], Gate]) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        yield "a"
        try:
            gate()
        except StreamCancelled:
            raise ValueError("boom") from None

    with Served(source()) as served:
        gate.reached.wait(10)
        served.stream.cancel("timeout")
        body = served.read()
    assert events_of(body)[-1].event == "failed" and b"boom" not in body
    assert served.end().reason == "timeout"


def test_source_that_cancels_itself_is_stopped() -> None:
    def source() -> Iterator[str]:
        yield "a"
        raise StreamCancelled("stop")

    with Served(source()) as served:
        assert b'"reason":"cancelled"' in served.read()
    assert served.end().reason == "stop"


def test_clean_up_that_fails_is_reported_and_the_wrapper_is_closed_all_the_same(
    caplog: pytest.LogCaptureFixture
) -> None:
    hold = Hold()
    closed: List[str] = []

    def inner() -> Iterator[str]:
        try:
            while True:
                yield "a"
        finally:
            raise RuntimeError("boom")

    def wrapper(each: Iterator[str]) -> Iterator[str]:
        try:
            yield from each
        finally:
            closed.append("wrapper")

    source = inner()
    with Served(wrapper(source), inner=source, before_write=hold) as served:
        hold.reached.wait(10)
        served.stream.cancel("stop")
        hold.released.set()
        served.read()
    assert closed == ["wrapper"]
    assert f"stream {served.stream.id}: its source failed while it was closed" in caplog.text


@pytest.mark.parametrize("when", ["before the wire is taken", "behind it"])
def test_exception_that_comes_out_behind_the_source_does_not_reach_the_server(when: str) -> None:
    """CPython raises in another thread when it suits it; in the server it would end the worker."""
    closed: List[Optional[str]] = []

    class Late:
        """A wire in whose place the exception is raised, once, and only in the server's thread."""

        def __init__(self) -> None:
            self.armed = 0
            self._lock = threading.Lock()
            self._lock.acquire()

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if self.armed == threading.get_ident():
                self.armed = 0
                if when == "behind it":
                    self._lock.acquire()
                raise StreamCancelled("disconnect")
            return self._lock.acquire(blocking, timeout)

        def release(self) -> None:
            self._lock.release()

    def source() -> Iterator[str]:
        try:
            late = stream.wire = Late()
            yield "a"
            stream.cancel("disconnect")
            late.armed = threading.get_ident()
            yield "b"
        finally:
            closed.append(current_stream.cancelled)

    served = Served(source())
    stream = served.stream
    with served:
        assert served.end().reason == "disconnect"
    assert closed == ["disconnect"]
    assert isinstance(served.error, ConnectionResetError)


def test_time_limit_ends_a_stream_that_blocks(gates: Callable[[], Gate]) -> None:
    gate = gates()

    def source() -> Iterator[str]:
        gate()
        yield "never"

    with Served(source(), max_duration=0.2) as served:
        body = served.read()
    assert served.heads[0][0].startswith("504") and b'"timeout"' in body
    assert served.end().reason == "timeout"


@pytest.mark.parametrize("item, chunk", [
    ("word ", None), (b"word ", None), ({"a": 1}, None), (TextDelta("word "), None),
    ("A few words. ", "sentence"),
], ids=["text", "bytes", "dict", "delta", "sentences"])
def test_stream_that_becomes_too_long_is_ended(item: Any, chunk: Any, caplog: Any) -> None:
    taken: List[int] = []

    def source() -> Iterator[Any]:
        try:
            for number in range(10000):
                taken.append(number)
                yield item
        finally:
            taken.append(-1)

    with Served(source(), max_bytes=500, chunker=make_chunker(chunk), max_delay=0.0) as served:
        body = served.read()
    *before, last = events_of(body)
    said = body[:body.index(b"event: failed")]
    assert json.loads(last.data) == {
        "message": "The answer is longer than it may be.", "code": "too_long", "retryable": False,
    }
    assert before and 500 <= len(said.replace(b": open\n", b"")) < 600
    assert taken[-1] == -1 and len(taken) < 1000, "the source is closed"
    end = served.end()
    assert end.reason == "error" and "the 500 bytes that max_bytes allows" in str(end.error)
    assert "500 bytes" in caplog.text and "Traceback" not in caplog.text


def test_stream_as_long_as_it_may_be_is_whole() -> None:
    with Served(["a"] * 4, heartbeat_interval=0, max_bytes=4 * len(b'data: {"text":"a"}\n\n')) as served:
        assert [event.event for event in events_of(served.read())][-1] == "done"


# -- what belongs to it --------------------------------------------------------------------


def test_bound_objects_are_closed_at_the_end_and_released_ones_are_not(
    caplog: pytest.LogCaptureFixture
) -> None:
    closes: List[str] = []

    class Closable:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closes.append(self.name)
            if self.name == "broken":
                raise OSError("boom")

    def source() -> Iterator[str]:
        current_stream.bind(Closable("broken"))
        assert current_stream.bind(Closable("bound")).name == "bound"
        current_stream.release(current_stream.bind(Closable("released")))
        current_stream.release(Closable("unknown"))
        with pytest.raises(TypeError, match="close"):
            current_stream.bind("text")
        yield "a"
        assert closes == []

    with Served(source()) as served:
        served.read()
    assert closes == ["broken", "bound"]
    assert "could not be closed" in caplog.text
    served.stream.bind(Closable("late"))
    assert closes[-1] == "late"


def test_nothing_can_be_sent_when_it_is_over() -> None:
    with Served(["a"]) as served:
        served.read()
    for use in (lambda: served.stream.send("b"), served.stream.flush):
        with pytest.raises(RuntimeError, match="the stream is over"):
            use()


def test_callbacks_run_in_order_and_one_that_fails_stops_no_other(
    caplog: pytest.LogCaptureFixture
) -> None:
    called: List[Any] = []

    def source() -> Iterator[str]:
        @current_stream.on_end
        def first(end: Any) -> None:
            called.append(("first", end.reason))
            raise ValueError("boom")

        current_stream.on_end(lambda end: called.append(("second", end.reason)))
        yield "a"

    around: List[str] = []

    def around_end(run: Callable[[], None]) -> None:
        around.append("before")
        run()
        around.append("after")

    with Served(source(), around_end=around_end) as served:
        served.read()
    assert called == [("first", "finish"), ("second", "finish")] and len(served.ends) == 1
    assert around == ["before", "after"]
    assert "an on_end callback failed" in caplog.text


def test_what_follows_the_end_may_fail_and_the_place_is_free_again(
    caplog: pytest.LogCaptureFixture
) -> None:
    def around_end(run: Callable[[], None]) -> None:
        raise ValueError("a teardown function failed")

    with Served(["a"], around_end=around_end) as served:
        assert b"done" in served.read()
    assert "what follows its end has failed" in caplog.text
    assert served.error is None


@pytest.mark.skipif(
    importlib.util.find_spec("blinker") is None, reason="Flask before 2.3 comes without blinker"
)
def test_signals_tell_the_life_of_a_stream(
    gates: Callable[[], Gate], caplog: pytest.LogCaptureFixture
) -> None:
    """Each of them fails, and neither the stream nor the next one notices."""
    told: List[Any] = []
    gate = gates()

    def failing(name: str) -> Callable[..., None]:
        def receiver(sender: Any, stream: Any, end: Any = None) -> None:
            told.append((name if end is None else end.reason, stream))
            raise ValueError("boom")

        return receiver

    def source() -> Iterator[str]:
        yield "a"
        gate()

    names = ["stream_started", "first_token", "client_disconnected", "stream_finished"]
    receivers = {getattr(signals, name): failing(name) for name in names}
    for signal, receiver in receivers.items():
        signal.connect(receiver)
    try:
        with Served(source()) as served:
            served.read_until(b'"a"')
            served.client.close()
            served.end()
    finally:
        for signal, receiver in receivers.items():
            signal.disconnect(receiver)
    assert told == [(name, served.stream) for name in [*names[:3], "disconnect"]]
    failures = re.findall(r"stream (\S+): a receiver of (\w+) failed", caplog.text)
    assert failures == [(served.stream.id, name) for name in names]


def test_end_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Served(["a"], before_write=failing_write) as served:
        served.end()
    (line,) = [each.getMessage() for each in caplog.records if served.stream.id in each.getMessage()]
    assert line.startswith(f"stream {served.stream.id} ended: disconnect, after 1 pieces of text")


def test_chunker_is_used_by_one_at_a_time() -> None:
    """The ticker flushes it from its own thread; whoever has the wire may use it."""
    locked: List[bool] = []

    class Watching:
        def feed(self, text: str) -> List[str]:
            locked.append(served.stream.wire.locked())
            return [text]

        def flush(self) -> List[str]:
            locked.append(served.stream.wire.locked())
            return []

    def source() -> Iterator[str]:
        yield "a"
        current_stream.send("b")
        current_stream.flush()
        yield "c"

    served = Served(source(), chunker=Watching())
    with served:
        texts = [event.data for event in events_of(served.read()) if event.event is None]
    assert texts == ['{"text":"a"}', '{"text":"b"}', '{"text":"c"}']
    assert len(locked) >= 4 and all(locked)
