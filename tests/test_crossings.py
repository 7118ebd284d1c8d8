"""Two things that happen to a stream at the same moment: each test has the second come inside the first."""

from __future__ import annotations

import gc
import sys
import threading
from types import SimpleNamespace
from typing import Any, Callable, Iterator, List

import pytest
from flask import Flask
from serving import Served

from flask_llmstream import LLMStream, current, current_stream, runtime, watchdog
from flask_llmstream.disconnect import Peer
from flask_llmstream.ending import StreamEnd
from flask_llmstream.livefiles import LiveTable
from flask_llmstream.sansio.channels import Channels, Tagged
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream
from flask_llmstream.watchdog import Watchdog


class GreenletExit(BaseException):
    """Stands for greenlet's own, which is known by its name."""


class Begun:
    """A stream that has sent something and is driven by the test."""

    def __init__(self, source: Any) -> None:
        self.ends: List[StreamEnd] = []
        self.stream = Stream(source, format=SSEFormat(), settings=Settings(status_hold=0))
        self.stream.on_end(self.ends.append)
        self.stream.attach(Peer("test", None, False, False), lambda *head: None, "200 OK", [])
        assert b"open" in next(self.stream) and b'"a"' in next(self.stream)


def in_another_thread(function: Callable[[], Any]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


# -- the end -------------------------------------------------------------------------------


def test_worker_that_goes_while_a_source_cleans_up_ends_its_stream() -> None:
    def source() -> Iterator[str]:
        try:
            yield "a"
        finally:
            raise GreenletExit

    begun = Begun(source())
    with pytest.raises(GreenletExit):
        begun.stream.close()
    assert [end.reason for end in begun.ends] == ["disconnect"]
    assert begun.stream not in current.streams()


def test_worker_that_goes_while_a_detached_source_cleans_up_ends_its_stream() -> None:
    def source() -> Iterator[str]:
        yield "a"

    class Closing:
        def __init__(self) -> None:
            self._items = source()

        def __iter__(self) -> Iterator[str]:
            return self._items

        def close(self) -> None:
            raise GreenletExit

    begun = Begun(Closing())
    begun.stream._settings = Settings(on_disconnect="detach")
    with pytest.raises(GreenletExit):
        begun.stream.close()
    assert [end.reason for end in begun.ends] == ["finish"]
    assert begun.stream not in current.streams()


@pytest.mark.parametrize("raised", [None, GreenletExit])
def test_what_is_bound_may_be_shielded_or_killed_while_it_is_closed(raised: Any) -> None:
    class Reporting:
        def close(self) -> None:
            with current_stream.shield():
                closed.append(True)
            raise AssertionError("the cancellation comes at the end of the shield")

    class Killed:
        def close(self) -> None:
            raise GreenletExit

    closed: List[bool] = []
    begun = Begun(iter(["a", "b"]))  # what is no generator has not been told by an exception
    begun.stream.bind(Reporting() if raised is None else Killed())
    if raised is None:
        begun.stream.close()
        assert closed == [True]
    else:
        with pytest.raises(raised):
            begun.stream.close()
    assert [end.reason for end in begun.ends] == ["disconnect"]
    assert begun.stream not in current.streams()


# -- leaving -------------------------------------------------------------------------------


def test_client_that_two_threads_see_leave_leaves_once(monkeypatch: Any) -> None:
    seen: List[str] = []
    note = Stream._note_departure

    def noting(stream: Stream) -> None:
        seen.append(threading.current_thread().name)
        if len(seen) == 1:
            in_another_thread(stream._departed)
        note(stream)

    monkeypatch.setattr(Stream, "_note_departure", noting)
    begun = Begun(iter(["a", "b"]))
    begun.stream.close()
    assert len(seen) == 1 and [end.reason for end in begun.ends] == ["disconnect"]


def test_source_that_has_given_up_waiting_to_send_can_be_cancelled(monkeypatch: Any) -> None:
    """On gevent, with a Timeout of its own, while a client that reads slowly is written to."""
    exposed: List[bool] = []
    seize = Stream._seize

    def seizing(stream: Stream, wait: bool = False) -> bool:
        if wait:
            raise GreenletExit
        return seize(stream)

    def source() -> Iterator[str]:
        yield "a"
        try:
            current_stream.send("b")
        except GreenletExit:
            exposed.append(current_stream.exposed())

    monkeypatch.setattr(Stream, "_seize", seizing)
    with Served(source()) as served:
        assert b'"a"' in served.read()
    assert exposed == [True]


@pytest.mark.parametrize("enabled", [True, False])
def test_no_garbage_is_collected_while_frames_are_looked_at(monkeypatch: Any, enabled: bool) -> None:
    """On CPython 3.11 a finalizer that lets other threads run would stop the process for ever."""
    seen: List[bool] = []

    def noting() -> Any:
        seen.append(gc.isenabled())
        return {7: "frame"}

    monkeypatch.setattr(sys, "_current_frames", noting)
    monkeypatch.setattr(runtime, "_FRAMES_ARE_MADE", True)
    (gc.enable if enabled else gc.disable)()
    try:
        assert runtime.Runtime().frame(7) == "frame"
        assert seen == [False] and gc.isenabled() == enabled
    finally:
        gc.enable()


# -- those who look ------------------------------------------------------------------------


def test_stream_that_begins_while_the_table_goes_to_rest_is_shown(tmp_path: Any, monkeypatch: Any) -> None:
    due: List[float] = []
    begin = LiveTable.begin

    def beginning(table: LiveTable) -> None:
        begin(table)
        due.append(table.tick(0.0))  # the ticker comes now, for the stream before this one

    monkeypatch.setattr(LiveTable, "begin", beginning)
    app = Flask("seen")
    LLMStream(app, live=True, shared_dir=str(tmp_path / "shared"))

    @app.route("/")
    def view() -> Any:
        from flask_llmstream import stream_response

        return stream_response(["a"])

    assert b"done" in app.test_client().get("/").data
    assert len(due) == 1 and due[0] < 60


def test_channels_that_are_being_named_can_be_counted() -> None:
    class Naming:
        @property
        def texts(self) -> List[str]:
            stream._channel("b")
            return ["x"]

    stream = Stream([], format=SSEFormat(), settings=Settings())
    stream._take(Channels(["a"]))
    stream._take(Tagged("a", "x"))
    stream._channels["a"] = Naming()
    assert stream._pieces() == 1


def test_loop_that_is_watched_again_is_watched_by_one_thread(monkeypatch: Any) -> None:
    class Runtime:
        def __init__(self) -> None:
            self.threads: List[Callable[[], None]] = []
            self.looks = 0

        native_ident = staticmethod(threading.get_ident)

        def now(self) -> float:
            return 0.0

        def every(self, seconds: float, function: Callable[[], Any]) -> Any:
            return SimpleNamespace(stop=lambda: None, close=lambda: None)

        def spawn_native(self, function: Callable[[], None]) -> None:
            self.threads.append(function)

        def native_sleep(self, seconds: float) -> None:
            self.looks += 1
            if self.looks == 1:  # asleep, while the streams end and the next one begins
                for _ in range(8):
                    watched._tick()
                watched.begin()
            assert self.looks < 3, "it goes on beside the thread that was begun after it"

    monkeypatch.setattr(watchdog, "current_ticker", list)
    hub = Runtime()
    watched = Watchdog(hub)
    watched.begin()
    hub.threads[0]()
    assert len(hub.threads) == 2
