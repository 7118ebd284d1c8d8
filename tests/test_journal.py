"""What streams send gets into the log, in the background; a log that fails ends none of them."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from typing import Any, Callable, Deque, Iterator, List, Optional, Sequence

import pytest

from flask_llmstream import journal as journal_module
from flask_llmstream.eventlog.memory import MemoryEventLog
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.following import LoggedSource, Replayed, describe_replayed
from flask_llmstream.journal import Journal, Writer
from flask_llmstream.recording import Numbered
from flask_llmstream.sansio.events import Event, TextDelta
from flask_llmstream.sansio.stored import Done, Failed, store
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.logs import new_id


class FailingLog(MemoryEventLog):
    """Does what it is told to fail at not at all."""

    def __init__(self) -> None:
        super().__init__(f"memory://{new_id()}")
        self.failing: Any = ()
        self.error: Exception = LogUnavailable("memory://", "the test has said so")
        self.calls: List[str] = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name in self.failing:
            raise self.error

    def create(self, *arguments: Any) -> None:
        self._note("create")
        super().create(*arguments)

    def append_many(self, batches: Sequence[Any]) -> List[str]:
        self._note("append")
        return super().append_many(batches)

    def seal(self, stream: str, state: str) -> bool:
        self._note("seal")
        return super().seal(stream, state)

    def read(self, stream: str, after: int, limit: int = 256) -> Any:
        self._note("read")
        return super().read(stream, after, limit)

    def renew(self, worker: str, lease: float) -> None:
        self._note("renew")
        super().renew(worker, lease)


@pytest.fixture
def log() -> Iterator[FailingLog]:
    log = FailingLog()
    yield log
    log.close()


@pytest.fixture
def journal(log: FailingLog, monkeypatch: pytest.MonkeyPatch) -> Journal:
    monkeypatch.setattr(journal_module, "_PAUSE", 0.05)
    monkeypatch.setattr(journal_module, "_PATIENCE", 0.3)
    return Journal(log)


Begin = Callable[..., Writer]


@pytest.fixture
def begin(journal: Journal) -> Begin:
    def make(stream: Optional[str] = None) -> Writer:
        writer = journal.begin(stream or new_id(), 60.0, 100000, 1 << 30, 1.0)
        assert writer is not None
        return writer

    return make


def entries_of(log: FailingLog, writer: Writer) -> List[bytes]:
    page = MemoryEventLog.read(log, writer.stream, 0, 100000)
    assert page is not None
    return page.entries


def state_of(log: FailingLog, writer: Writer) -> str:
    page = MemoryEventLog.read(log, writer.stream, 0)
    return "gone" if page is None else page.state


def test_entries_are_written_in_groups_and_the_end_waits_for_them(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_PATIENCE", 20.0)
    writers = [begin() for _ in range(5)]
    for number in range(50):
        for writer in writers:
            assert writer.add(b"%d" % number) == number + 1
    for writer in writers:
        writer.close()
        assert entries_of(log, writer) == [b"%d" % number for number in range(50)]
        assert state_of(log, writer) == "finished"
        writer.close()
    assert log.calls.count("append") < 15
    assert log.calls.count("seal") == 5


def test_lease_is_kept_while_many_streams_end_slowly(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy worker must not be taken for dead: its streams would be told to be interrupted."""
    monkeypatch.setattr(journal_module, "LEASE", 0.3)
    monkeypatch.setattr(journal_module, "_SEALED_TOGETHER", 4)
    renewed: List[float] = []
    seal, renew = log.seal, log.renew

    def slow_seal(stream: str, state: str) -> bool:
        time.sleep(0.03)
        return seal(stream, state)

    def noted_renew(worker: str, lease: float) -> None:
        renewed.append(time.monotonic())
        renew(worker, lease)

    monkeypatch.setattr(log, "seal", slow_seal)
    monkeypatch.setattr(log, "renew", noted_renew)
    writers = [begin() for _ in range(40)]
    threads = [threading.Thread(target=writer.close) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: log.calls.count("seal") == 40, 10, "all ends")
    assert len(renewed) >= 5, renewed  # 1.2 s of them


def test_what_nobody_reads_is_written_rarely_and_at_once_when_somebody_comes(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, other = begin(), begin()
    writer.add(b"first")
    wait_until(lambda: entries_of(log, writer), 5, "the first look")
    monkeypatch.setattr(journal_module, "_LOOKS", 20.0)
    time.sleep(0.1)  # for the look that is under way
    log.calls.clear()
    for number in range(100):
        writer.add(b"%d" % number)
        other.add(b"%d" % number)
        time.sleep(0.002)
    assert "append" not in log.calls
    log.attend(writer.stream, 60.0)
    wait_until(lambda: len(entries_of(log, writer)) == 101, 5, "what waited")
    assert not entries_of(log, other)
    log.calls.clear()
    for number in range(20):
        writer.add(b"more")
        wait_until(lambda: len(entries_of(log, writer)) == 102 + number, 5, "each one soon")
    for number in range(journal_module._MANY):
        other.add(b"x")
    wait_until(lambda: entries_of(log, other), 5, "many that do not wait for the look")


def test_a_log_that_does_not_tell_of_readers_gets_everything_soon(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "on_attend", lambda callback: False)
    monkeypatch.setattr(journal_module, "_LOOKS", 20.0)
    writer = begin()
    for number in range(10):
        writer.add(b"%d" % number)
        wait_until(lambda: len(entries_of(log, writer)) == 1 + number, 5, "each one soon")


def test_nothing_is_lost_while_the_log_is_away_for_a_moment(
    log: FailingLog, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    writer = begin()
    writer.add(b"before")
    wait_until(lambda: entries_of(log, writer), 5, "the first entry")
    log.failing = ("append", "seal", "renew")
    for number in range(100):
        writer.add(b"%d" % number)
        time.sleep(0.002)
    began = time.monotonic()
    writer.close()
    assert 0.2 < time.monotonic() - began < 3.0
    assert "its last words could not be written" in caplog.text
    log.failing = ()
    wait_until(lambda: state_of(log, writer) == "finished", 5, "the seal")
    assert entries_of(log, writer) == [b"before"] + [b"%d" % number for number in range(100)]
    wait_until(lambda: "can be used again" in caplog.text, 5, "a word on it")
    assert caplog.text.count("streams go on, and cannot be resumed") == 1
    assert not writer.lost


def test_a_seal_that_fails_is_made_later(log: FailingLog, begin: Begin) -> None:
    first, second = begin(), begin()
    log.failing = ("seal",)
    for writer in (first, second):
        writer.add(b"word")
    closing = [threading.Thread(target=writer.close) for writer in (first, second)]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()
    assert state_of(log, first) == state_of(log, second) == "open"
    log.failing = ()
    for writer in (first, second):
        wait_until(lambda: state_of(log, writer) == "finished", 5, "the seal")


def test_a_stream_is_given_up_and_its_readers_need_not_wait(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_WAITING", 10)
    monkeypatch.setattr(journal_module, "_PATIENCE", 20.0)  # for the end of the other
    writer, other = begin(), begin()
    log.failing = ("append",)
    for number in range(20):
        writer.add(b"%d" % number)
    other.add(b"short")
    wait_until(lambda: writer.lost, 5, "it to be given up")
    assert not other.lost
    log.failing = ()
    # Its worker lives on and renews its lease, so nobody else would ever seal it.
    wait_until(lambda: state_of(log, writer) == "interrupted", 5, "the seal")
    assert writer.add(b"more") == 21
    began = time.monotonic()
    writer.close()
    assert time.monotonic() - began < 10.0  # where it waited, it would be for 20 s
    other.close()
    assert entries_of(log, other) == [b"short"] and state_of(log, other) == "finished"
    assert caplog.text.count(f"stream {writer.stream} goes on, and cannot be resumed any more") == 1


def test_what_others_have_sealed_is_lost(log: FailingLog, begin: Begin) -> None:
    writer = begin()
    writer.add(b"one")
    wait_until(lambda: entries_of(log, writer), 5, "the first entry")
    log.seal(writer.stream, "interrupted")
    writer.add(b"two")
    wait_until(lambda: writer.lost, 5, "it to notice")
    writer.close()
    assert entries_of(log, writer) == [b"one"] and state_of(log, writer) == "interrupted"


def test_the_end_of_a_stream_is_not_kept_for_ever(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_LATEST", 0.4)
    writer = begin()
    log.failing = ("append",)
    writer.add(b"word")
    writer.close()
    assert writer.running is None
    wait_until(lambda: writer.lost, 5, "it to be given up")


def test_what_cannot_be_written_is_given_up_though_not_even_the_lease_can_be_renewed(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_MAX_WAITING", 10)
    log.failing = ("renew", "append")
    writer = begin()
    for number in range(20):
        writer.add(b"%d" % number)
    wait_until(lambda: writer.lost, 5, "it to be given up")
    assert not writer._waiting
    log.failing = ()
    wait_until(lambda: state_of(log, writer) == "interrupted", 5, "the seal")
    writer.close()


def test_what_is_added_while_a_stream_is_given_up_gets_no_number_of_another(
    log: FailingLog, journal: Journal, begin: Begin
) -> None:
    writer = begin()

    class Crossing(Deque[bytes]):
        """What is added comes behind what has been thrown away."""

        def append(self, entry: bytes) -> None:
            journal._give_up(writer)
            super().append(entry)

    log.failing = ("append",)
    writer.add(b"one")
    wait_until(lambda: "append" in log.calls, 5, "the first try")
    writer._waiting = Crossing(writer._waiting)
    writer.add(b"two")
    log.failing = ()
    wait_until(lambda: state_of(log, writer) == "interrupted", 5, "the seal")
    assert entries_of(log, writer) == []
    writer.close()


def test_a_log_that_is_away_is_not_asked_without_end_because_somebody_was_in_a_hurry(
    log: FailingLog, journal: Journal, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_PAUSE", 0.2)
    log.failing = ("renew",)
    writer = begin()
    wait_until(lambda: "renew" in log.calls, 5, "the first try")
    journal.hurry()
    time.sleep(1.0)
    assert log.calls.count("renew") < 15
    log.failing = ()
    writer.close()


def test_any_exception_of_a_log_is_survived(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "_PATIENCE", 20.0)
    writer = begin()
    log.failing, log.error = ("append",), ZeroDivisionError("a log of your own")
    writer.add(b"word")
    wait_until(lambda: "a log of your own" in caplog.text, 5, "a word on it")
    log.failing = ()
    writer.close()
    assert entries_of(log, writer) == [b"word"] and state_of(log, writer) == "finished"


def test_a_log_that_is_away_is_not_asked_by_every_new_stream(
    log: FailingLog, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_PAUSE", 30.0)
    log.failing = ("create",)
    for _ in range(5):
        assert journal.begin(new_id(), 60.0, 100, 100, 0.0) is None
    assert log.calls.count("create") == 1


def test_the_lease_is_renewed_while_streams_run(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LEASE", 1.2)
    writer = begin()
    wait_until(lambda: log.calls.count("renew") >= 3, 8, "renewals")
    assert state_of(log, writer) == "open"
    writer.close()


def test_a_lease_that_is_nearly_over_does_not_end_with_a_new_stream(
    log: FailingLog, journal: Journal, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker had nothing to do for as long, and is slow to renew it."""
    go_on, main, renew = threading.Event(), threading.current_thread(), log.renew

    def renew_late(worker: str, lease: float) -> None:
        if threading.current_thread() is not main:
            go_on.wait(10)
        renew(worker, lease)

    renew(journal.worker, 0.3)
    journal._renewed = time.monotonic() - 0.97 * journal_module.LEASE
    monkeypatch.setattr(log, "renew", renew_late)
    writer = begin()
    time.sleep(0.4)
    assert state_of(log, writer) == "open"
    go_on.set()
    writer.close()
    assert state_of(log, writer) == "finished"


class Running:
    """What a writer knows of its stream."""

    def __init__(self) -> None:
        self.departed = False
        self.until: List[float] = []
        self.ends: List[float] = []
        self.reasons: List[str] = []

    def go_on(self, until: float) -> None:
        self.until.append(until)

    def end_at(self, at: float) -> None:
        self.ends.append(at)

    def cancel(self, reason: str) -> None:
        self.reasons.append(reason)


def test_readers_keep_a_stream_running_that_its_client_has_left(log: FailingLog, begin: Begin) -> None:
    writer = begin()
    running = writer.running = Running()
    log.attend(writer.stream, 60.0)
    time.sleep(0.7)
    assert not running.until
    left_at = time.monotonic()
    running.departed = True
    wait_until(lambda: running.until, 5, "a look at the readers")
    assert running.until[0] > left_at
    writer.close()


def test_a_stream_ends_when_the_last_reader_leaves_whose_client_has_left_before(
    log: FailingLog, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, elsewhere = begin(), MemoryEventLog(log.name)
    running = writer.running = Running()
    for reader in (log, elsewhere):
        reader.attend(writer.stream, 60.0)
    asked: List[str] = []
    attended = log.attended
    monkeypatch.setattr(log, "attended", lambda stream: asked.append(stream) or attended(stream))
    running.departed = True
    log.leave(writer.stream)
    wait_until(lambda: asked, 5, "a look at the others")
    time.sleep(0.02)
    assert not running.ends and writer.read_until
    left_at = time.monotonic()
    elsewhere.leave(writer.stream)
    wait_until(lambda: running.ends, 5, "it to end")
    assert left_at <= running.ends[0] - writer.grace <= time.monotonic()
    assert not writer.read_until, "what nobody reads is written rarely"
    running.departed = False
    elsewhere.attend(writer.stream, 60.0)
    elsewhere.leave(writer.stream)
    wait_until(lambda: not writer.read_until, 5, "that to be noticed")
    assert len(running.ends) == 1, "its own client reads it still"
    writer.close()


def test_a_stream_that_others_stop_is_cancelled(log: FailingLog, begin: Begin) -> None:
    writer = begin()
    running = writer.running = Running()
    assert log.request_stop(writer.stream)
    wait_until(lambda: running.reasons == ["stop"], 5, "the stop")
    writer.close()
    assert not log.request_stop(writer.stream)


def test_a_stream_that_others_stop_before_it_has_begun_is_cancelled(log: FailingLog, begin: Begin) -> None:
    """Whoever knows its key may have found it already."""
    writer = begin()
    assert log.request_stop(writer.stream)
    running = writer.running = Running()
    wait_until(lambda: running.reasons, 5, "the stop")
    assert set(running.reasons) == {"stop"}
    writer.close()


def test_a_stream_may_end_while_somebody_looks_at_it(journal: Journal) -> None:
    running = Running()

    class Ending(Writer):
        """The journal looks at it in its own thread."""

        looks: List[Any] = []
        _running = property(lambda self: self.looks.pop(0), lambda self, stream: None)  # type: ignore

    writer = Ending(journal, new_id(), 0.0, 0.0)
    writer.looks[:] = [weakref.ref(running), None]
    assert writer.running is running
    writer.looks[:] = [weakref.ref(running), None]
    assert not writer.forsaken


def test_who_comes_while_a_stream_ends_for_want_of_readers_has_it_go_on(
    log: FailingLog, journal: Journal, begin: Begin
) -> None:
    writer, main = begin(), threading.current_thread()
    coming = threading.Thread(target=MemoryEventLog(log.name).attend, args=(writer.stream, 60.0))
    said: List[str] = []

    class Left(Running):
        @property  # type: ignore[override]
        def departed(self) -> bool:
            if threading.current_thread() is main:
                coming.start()
                coming.join(0.3)  # in vain where it has to wait, which it should
            return True

        @departed.setter
        def departed(self, value: bool) -> None:
            pass

        def go_on(self, until: float) -> None:
            if threading.current_thread() is coming:  # the journal may have a look, too
                said.append("go on")

        def end_at(self, at: float) -> None:
            said.append("end")

    running = writer.running = Left()
    journal._look_for_others(writer)
    coming.join(10)
    assert said == ["end", "go on"] and writer.read_until
    assert running.reasons == []
    writer.close()


# -- following ---------------------------------------------------------------------------------


def write(log: FailingLog, *items: Any, worker: Optional[str] = None, max_events: int = 1000) -> str:
    stream = new_id()
    log.create(stream, worker or new_id(), 60.0, max_events, 1 << 20)
    log.append(stream, 1, [store(item) for item in items])
    return stream


def test_what_is_logged_is_read_and_then_waited_for(log: FailingLog) -> None:
    stream = write(log, "one", "two")
    source = LoggedSource(log, stream, 1)
    first = next(source)
    assert isinstance(first, Numbered) and first.sequence == 2 and first.item.text == "two"
    timer = threading.Timer(0.2, lambda: log.append(stream, 3, [store("three"), store(Done("stop", None))]))
    timer.start()
    assert next(source).item.text == "three"
    assert source.ready == 0
    with pytest.raises(StopIteration):
        next(source)
    assert source.end == Done("stop", None) and source.over
    timer.join()


def test_what_is_lost_is_said_once(log: FailingLog) -> None:
    stream = write(log, *map(str, range(10)), Done("stop", None), max_events=3)
    found = list(LoggedSource(log, stream, 2))
    assert isinstance(found[0], Event) and found[0].event == "resync" and found[0].data == {"lost": 6}
    assert [each.item.text for each in found[1:]] == ["8", "9"]


@pytest.mark.parametrize("what", ["failed", "sealed", "gone"])
def test_a_stream_that_has_failed(log: FailingLog, what: str) -> None:
    stream = new_id()
    if what != "gone":
        stream = write(log, "one", *([Failed("masked", "timeout", True)] if what == "failed" else []))
        log.seal(stream, "finished" if what == "failed" else "interrupted")
    source = LoggedSource(log, stream, 0)
    with pytest.raises(Replayed) as caught:
        list(source)
    assert source.over
    failure = describe_replayed(caught.value)
    assert (failure.code, failure.retryable) == ("timeout" if what == "failed" else "interrupted", True)


def test_a_reader_outlasts_a_log_that_is_away_for_a_moment(log: FailingLog) -> None:
    stream = write(log, "one")
    source = LoggedSource(log, stream, 0)
    assert isinstance(next(source).item, TextDelta)
    log.failing = ("read",)

    def give_back() -> None:
        log.failing = ()
        log.append(stream, 2, [store("two"), store(Done("stop", None))])

    timer = threading.Timer(0.5, give_back)
    timer.start()
    assert [each.item.text for each in source] == ["two"]
    timer.join()


def test_a_reader_does_not_wait_for_ever_for_its_log(
    log: FailingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flask_llmstream.following.LEASE", 0.5)
    stream = write(log, "one")
    log.failing = ("read",)
    source = LoggedSource(log, stream, 0)
    with pytest.raises(LogUnavailable) as caught:
        next(source)
    assert not source.over, "it may be there again later"
    failure = describe_replayed(caught.value)
    assert (failure.code, failure.retryable) == ("interrupted", True)
    assert describe_replayed(ValueError("secret")).code == "internal_error"


def test_a_closed_reader_reads_no_more(log: FailingLog) -> None:
    source = LoggedSource(log, write(log, "one"), 0)
    source.close()
    assert list(source) == [] and not log.calls.count("read")
