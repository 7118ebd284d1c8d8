"""Two ends that meet in a log at the worst moment, which each test brings about."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import Any, Callable, Iterator, List

import pytest

from flask_llmstream.eventlog import Page, database, memory, tables
from flask_llmstream.eventlog.memory import MemoryEventLog
from flask_llmstream.eventlog.peers import Ears, directory_for
from flask_llmstream.eventlog.sqlite import SQLiteEventLog
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.logs import new_id


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[], SQLiteEventLog]]:
    logs: List[SQLiteEventLog] = []

    def open_() -> SQLiteEventLog:
        logs.append(SQLiteEventLog(f"sqlite:///{tmp_path}/log.db"))
        return logs[-1]

    yield open_
    for log in logs:
        log.close()


def begin(log: SQLiteEventLog, keep: float = 60.0) -> str:
    """Create a stream and return its id."""
    stream = new_id()
    log.create(stream, "worker", keep, 1000, 100000)
    return stream


def test_worker_that_has_slept_writes_into_no_other_stream(make: Any) -> None:
    """Its stream was ended and dropped meanwhile, and another has got its key."""
    log, other = make(), make()
    lost = begin(log, keep=0.0)
    assert log.append(lost, 1, [b"a"])
    assert other.seal(lost, "interrupted")
    while other.prune():
        pass
    new = begin(other)
    assert other.read(lost, 0) is None
    assert not log.append(lost, 2, [b"whose is this?"])
    assert other.read(new, 0) == Page(1, [], 0, "open")


def test_log_that_is_closed_while_it_looks_for_its_socket_leaves_none(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, is_bound, closed = make(), Ears.is_bound, []  # type: ignore[var-annotated]

    def closes_first(ears: Ears) -> bool:
        if not closed:
            log.close()
            closed.append(ears)
        return is_bound(ears)

    monkeypatch.setattr(Ears, "is_bound", closes_first)
    before = len(database._open)
    log.on_stop(lambda _: None)
    begin(log)
    listeners = [each for each in threading.enumerate() if each.name == "llmstream-eventlog"]
    wait_until(lambda: closed, 10, "it to be closed")
    for each in listeners:
        each.join(10)
        assert not each.is_alive()
    assert not os.path.exists(directory_for(str(tmp_path / "log.db")))
    assert len(database._open) == before, "what came late has left the file closed"


def test_request_to_stop_is_heard_though_the_socket_of_an_idle_log_was_removed(
    make: Any, tmp_path: Path
) -> None:
    log, other = make(), make()
    heard: List[str] = []
    log.on_stop(heard.append)
    log.seal(begin(log), "finished")
    here = log._here()
    wait_until(lambda: here._idle and here._ears.is_bound(), 10, "nobody to need anything")
    for path in Path(directory_for(str(tmp_path / "log.db"))).iterdir():
        path.unlink()
    stream = begin(log)
    assert other.request_stop(stream)
    wait_until(lambda: heard == [stream], 10, "the request to be heard")


def test_who_begins_to_wait_while_the_log_is_closed_returns(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = make()
    stream, waiters = begin(log), log._here().waiters
    enter = waiters.enter

    def closed_first(name: str) -> Any:
        log.close()
        return enter(name)

    monkeypatch.setattr(waiters, "enter", closed_first)
    waiter = threading.Thread(target=log.wait, args=(stream, 0, 600), daemon=True)
    waiter.start()
    waiter.join(20)
    assert not waiter.is_alive()


def test_file_that_is_replaced_while_it_is_opened_is_noticed(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    log, other, path = make(), make(), tmp_path / "log.db"
    make_schema = database.Database._make_schema

    def replaced_then(self: database.Database, connection: sqlite3.Connection) -> None:
        make_schema(self, connection)
        monkeypatch.undo()
        for each in tmp_path.glob("log.db*"):
            each.unlink()
        begin(other)

    monkeypatch.setattr(database.Database, "_make_schema", replaced_then)
    log.renew("worker", 60.0)
    stream = begin(log)
    assert path.exists() and other.read(stream, 0) == Page(1, [], 0, "open")


def test_reader_that_could_not_be_announced_is_announced_the_next_time(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, other = make(), make()
    stream, attend = begin(other), tables.attend

    def fails(*_: Any) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(tables, "attend", fails)
    with pytest.raises(LogUnavailable):
        log.attend(stream, 600.0)
    monkeypatch.setattr(tables, "attend", attend)
    log.attend(stream, 600.0)
    assert other.attended(stream)
    log.leave(stream)
    assert not other.attended(stream)


def test_stream_that_ends_while_it_is_asked_to_stop_is_forgotten(make: Any) -> None:
    log = make()
    log.on_stop(lambda _: None)
    stream = begin(log)
    here = log._here()
    ending = threading.Thread(target=here.ended, args=([stream],))

    class Own(set):  # type: ignore[type-arg]
        def __contains__(self, name: object) -> bool:
            found = super().__contains__(name)
            if not ending.ident:
                ending.start()
                ending.join(0.3)  # it must wait
            return found

    here.own = Own(here.own)
    here.stopped([stream])
    ending.join(20)
    assert not here.own and not here._asked


def test_first_threads_of_a_process_share_one_store_in_memory() -> None:
    log = None
    found: List[memory._Store] = []

    class Name(str):
        asked = 0

        def __hash__(self) -> int:
            self.asked += 1
            if self.asked == 2 and log is not None:  # between a look at the stores and the new one
                other.start()
                other.join(0.3)  # it must wait
            return super().__hash__()

    log = MemoryEventLog(Name(f"memory://{new_id()}"))
    other = threading.Thread(target=lambda: found.append(log._store))
    found.append(log._store)
    other.join(20)
    assert len(found) == 2 and found[0] is found[1] is log._store
