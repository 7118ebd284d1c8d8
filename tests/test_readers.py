"""When the last who follows a stream in a process leaves, the log is told; and only then."""

from __future__ import annotations

import threading
from typing import Any, Iterator, List

import pytest
from serving import Served

from flask_llmstream import readers as readers_module
from flask_llmstream.eventlog.memory import MemoryEventLog
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.following import LoggedSource
from flask_llmstream.readers import Readers
from flask_llmstream.resuming import _Leaving
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.logs import new_id


class NotingLog(MemoryEventLog):
    """Notes who leaves, and lets a test hold that up."""

    def __init__(self) -> None:
        super().__init__(f"memory://{new_id()}")
        self.left: List[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def leave(self, stream: str) -> None:
        self.begun.set()
        self.go_on.wait(10)
        self.left.append(stream)
        super().leave(stream)

    def begin(self) -> str:
        stream = new_id()
        self.create(stream, "ab", 60.0, 100, 10000)
        return stream


@pytest.fixture
def log() -> Iterator[NotingLog]:
    log = NotingLog()
    yield log
    log.go_on.set()
    log.close()


def settled(readers: Readers) -> None:
    wait_until(lambda: not readers._leaving and not readers._saying.locked(), 10, "all to be said")


def test_log_is_told_of_the_last_who_leaves(log: NotingLog) -> None:
    readers, stream, other = Readers(log), log.begin(), log.begin()
    found = [readers.enter(stream) for _ in range(3)] + [readers.enter(other)]
    for each in found:
        each.attend()
    found[0].leave(expected=False)
    found[0].leave(expected=False)  # which counts once
    found[1].leave(expected=False)
    settled(readers)
    assert not log.left and log.attended(stream)
    found[1].attend()  # on its way out: it is gone all the same
    found[2].leave(expected=False)
    wait_until(lambda: log.left == [stream], 10, "the log to be told")
    assert not log.attended(stream) and log.attended(other)
    settled(readers)
    assert list(readers._streams) == [other]


def test_reader_that_is_expected_back_keeps_its_promise_alive(log: NotingLog) -> None:
    """Also where others leave for good just then."""
    readers, stream = Readers(log), log.begin()
    sent, gone = readers.enter(stream), readers.enter(stream)
    for each in (sent, gone):
        each.attend()
    sent.leave()
    gone.leave(expected=False)
    settled(readers)
    assert not log.left and log.attended(stream) and not readers._streams


def test_who_comes_while_the_last_leaves_is_not_forgotten_with_them(log: NotingLog) -> None:
    readers, stream = Readers(log), log.begin()
    last, next_one = readers.enter(stream), readers.enter(stream)
    last.attend()
    log.go_on.clear()
    last.leave(expected=False)
    assert log.begun.wait(10)
    coming = threading.Thread(target=next_one.attend)
    coming.start()
    wait_until(lambda: readers._streams[stream].count == 1, 10, "it to be counted")
    log.go_on.set()
    coming.join(10)
    assert log.left == [stream] and log.attended(stream)
    assert list(readers._streams) == [stream]


def test_reader_who_never_began_leaves_nothing(log: NotingLog) -> None:
    readers = Readers(log)
    readers.enter(log.begin()).leave(expected=False)
    source = LoggedSource(log, log.begin(), 0, readers.enter("ab"))
    source.close()
    settled(readers)
    assert not log.left and not readers._streams


def test_reader_that_leaves_while_it_enters_is_not_counted_for_ever(
    log: NotingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher notices in its own thread that the client has left."""
    readers, stream = Readers(log), log.begin()
    reader, count = readers.enter(stream), readers._count
    leaving = threading.Thread(target=reader.leave, args=(False,))

    def crossed(name: str) -> Any:
        leaving.start()
        leaving.join(0.3)  # in vain where it has to wait, which it should
        return count(name)

    monkeypatch.setattr(readers, "_count", crossed)
    reader.attend()
    leaving.join(10)
    settled(readers)
    assert not readers._streams


def test_log_that_cannot_be_told_is_survived(log: NotingLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stream: str) -> None:
        raise LogUnavailable("memory://", "the test has said so")

    monkeypatch.setattr(log, "leave", fail)
    readers, stream = Readers(log), log.begin()
    for _ in range(2):
        reader = readers.enter(stream)
        reader.attend()
        reader.leave(expected=False)
        settled(readers)
        assert not readers._streams and log.attended(stream), "until its promise is over"


@pytest.mark.parametrize("how", ["closes", "is sent elsewhere", "is done"])
def test_only_a_reader_that_has_left_is_reported(log: NotingLog, how: str) -> None:
    """The source is asleep meanwhile, as one is that waits for the log on a thread."""
    readers, stream = Readers(log), log.begin()
    waits, go_on = threading.Event(), threading.Event()

    def source() -> Iterator[str]:
        yield "a"
        waits.set()
        go_on.wait(10)

    presence = readers.enter(stream)
    presence.attend()
    served: Any = Served(source(), on_disconnect="cancel")
    served.stream.returning = lambda: True
    _Leaving(served.stream, presence)
    with served as reader:
        assert waits.wait(10)
        if how == "closes":
            reader.client.close()
            wait_until(lambda: log.left == [stream], 10, "the log to be told")
        elif how == "is sent elsewhere":
            assert reader.stream.hand_over()
        go_on.set()
        if how == "is done":
            assert b"event: done" in reader.read()
    presence.leave()  # as its source does when it is closed
    settled(readers)
    assert log.attended(stream) == (how != "closes") and not readers._streams


def test_promise_is_longer_than_the_time_between_two(log: NotingLog) -> None:
    from flask_llmstream import following

    assert readers_module.ATTENDANCE > 2 * following._LOOKS
