"""What streams send gets into the log, in the background; a log that fails ends none of them."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Callable, Iterator, List, Optional, Sequence

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


def test_entries_are_written_in_groups_and_the_end_waits_for_them(log: FailingLog, begin: Begin) -> None:
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
    assert time.monotonic() - began < 0.2
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


def test_any_exception_of_a_log_is_survived(
    log: FailingLog, begin: Begin, caplog: pytest.LogCaptureFixture
) -> None:
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


class Running:
    """What a writer knows of its stream."""

    def __init__(self) -> None:
        self.departed = False
        self.until: List[float] = []
        self.reasons: List[str] = []

    def go_on(self, until: float) -> None:
        self.until.append(until)

    def cancel(self, reason: str) -> None:
        self.reasons.append(reason)


def test_readers_keep_a_stream_running_that_its_client_has_left(log: FailingLog, begin: Begin) -> None:
    writer = begin()
    running = writer.running = Running()
    log.attend(writer.stream, 60.0)
    time.sleep(0.7)
    assert not running.until
    running.departed = True
    wait_until(lambda: running.until, 5, "a look at the readers")
    assert running.until[0] > time.monotonic()
    writer.close()


def test_a_stream_that_others_stop_is_cancelled(log: FailingLog, begin: Begin) -> None:
    writer = begin()
    running = writer.running = Running()
    assert log.request_stop(writer.stream)
    wait_until(lambda: running.reasons == ["stop"], 5, "the stop")
    writer.close()
    assert not log.request_stop(writer.stream)


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
