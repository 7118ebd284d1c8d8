"""The log in an SQLite file keeps the contract, and says what is wrong with its file."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Iterator

import pytest

from flask_llmstream.eventlog.peers import directory_for, tell
from flask_llmstream.eventlog.sqlite import SQLiteEventLog
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.eventlog import EventLogContract
from flask_llmstream.testing.logs import new_id


class TestSQLiteEventLog(EventLogContract):
    """On threads; tests/eventlog/test_greenlets.py runs it on greenlets."""

    @pytest.fixture(autouse=True)
    def file(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path}/log.db"

    def make_log(self) -> SQLiteEventLog:
        return SQLiteEventLog(self.url)

    def other_process(self) -> str:
        return self.url


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path / "there" / "log.db"


@pytest.fixture
def log(path: Path) -> Iterator[SQLiteEventLog]:
    log = SQLiteEventLog(f"sqlite:///{path}?timeout=0.3")
    yield log
    log.close()


def begin(log: SQLiteEventLog, keep: float = 60.0, max_bytes: int = 1 << 30) -> str:
    """Create a stream and return its id."""
    stream = new_id()
    log.create(stream, "worker", keep, 100000, max_bytes)
    return stream


def run(program: str, *arguments: object) -> str:
    """Run *program* in an interpreter of its own and return what it prints."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, env=environment
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said
    return said.strip()


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(log: SQLiteEventLog, path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Another process that holds the lock of the file until its input is closed."""
    begin(log)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        yield process


# -- what can be wrong with the file ---------------------------------------------------------


def test_lock_that_is_held_too_long(log: SQLiteEventLog, holder: "subprocess.Popen[bytes]") -> None:
    with pytest.raises(LogUnavailable, match="held it locked for more than 0.3 s"):
        begin(log)
    assert log.read("ab", 0) is None, "readers are not held up"
    holder.communicate()
    stream = begin(log)
    assert log.append(stream, 1, [b"x"])


def test_full_disk(log: SQLiteEventLog) -> None:
    """The limit of pages fails like a disk does; there is no disk that every test run may fill."""
    stream, other = begin(log), begin(log)
    log.append_many([(stream, 1, [b"x"]), (other, 1, [b"y"])])
    database = log._here().database
    (pages,) = database.read(lambda db: db.execute("PRAGMA page_count").fetchone())
    database.read(lambda db: db.execute(f"PRAGMA max_page_count={pages + 5}").fetchone())
    with pytest.raises(LogUnavailable, match="the disk is full; make room on it"):
        log.append_many([(other, 2, [b"z"]), (stream, 2, [b"x" * 100000])])
    for each in (stream, other):
        page = log.read(each, 0)
        assert page is not None and page.last == 1, "all or nothing"
    assert log.append(stream, 2, [b"small"]), "there is room for that"
    database.read(lambda db: db.execute("PRAGMA max_page_count=100000").fetchone())
    assert log.append(stream, 3, [b"x" * 100000])
    page = log.read(stream, 0)
    assert page is not None and page.last == 3


def test_file_that_is_deleted_is_made_again(log: SQLiteEventLog, path: Path) -> None:
    stream = begin(log)
    log.append(stream, 1, [b"x"])
    for each in path.parent.glob("log.db*"):
        each.unlink()
    assert not log.append(stream, 2, [b"y"]) and log.read(stream, 0) is None
    assert path.exists()
    stream = begin(log)
    assert log.append(stream, 1, [b"z"])
    other = SQLiteEventLog(f"sqlite:///{path}")
    page = other.read(stream, 0)
    other.close()
    assert page is not None and page.entries == [b"z"]


def test_file_that_is_replaced_is_opened(log: SQLiteEventLog, path: Path) -> None:
    begin(log)
    for each in path.parent.glob("log.db*"):
        each.unlink()
    other = SQLiteEventLog(f"sqlite:///{path}")
    stream = begin(other)
    assert log.append(stream, 1, [b"x"])
    page = other.read(stream, 0)
    other.close()
    assert page is not None and page.entries == [b"x"]


def test_directory_that_is_gone_is_missed_and_found_again(log: SQLiteEventLog, path: Path) -> None:
    stream = begin(log)
    shutil.rmtree(str(path.parent))
    for action in (lambda: log.append(stream, 1, [b"x"]), lambda: log.read(stream, 0)):
        with pytest.raises(LogUnavailable, match=f"there is no directory {path.parent}; create it"):
            action()
    path.parent.mkdir()
    assert not log.append(stream, 1, [b"x"])
    assert log.append(begin(log), 1, [b"x"])


def test_followers_hear_of_a_log_that_is_gone(log: SQLiteEventLog, path: Path) -> None:
    stream = begin(log)
    began = time.monotonic()
    timer = threading.Timer(0.3, lambda: shutil.rmtree(str(path.parent)))
    timer.start()
    log.wait(stream, 0, 20)
    assert time.monotonic() - began < 10
    timer.join()
    with pytest.raises(LogUnavailable):
        log.wait(stream, 0, 20)


@pytest.mark.parametrize("content", [b"Dear diary, \n" * 1000, b"x"], ids=["long", "short"])
def test_file_that_is_no_database(log: SQLiteEventLog, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LogUnavailable, match="the file is no SQLite database; move it away"):
        begin(log)
    assert path.read_bytes() == content
    path.unlink()
    assert log.append(begin(log), 1, [b"x"])


def test_file_that_is_damaged(log: SQLiteEventLog, path: Path) -> None:
    stream = begin(log)
    log.append(stream, 1, [b"x" * 3000] * 100)
    log.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(LogUnavailable, match="damaged; delete it"):
        log.read(stream, 0)
    path.unlink()
    assert log.append(begin(log), 1, [b"x"])


@pytest.mark.parametrize(
    "statement, message",
    [
        ("CREATE TABLE bills (amount INTEGER)", "belongs to another program; choose another path"),
        ("PRAGMA user_version=7", "number 7 and this version writes 2"),
    ],
)
def test_database_of_others_is_left_alone(
    log: SQLiteEventLog, path: Path, statement: str, message: str
) -> None:
    connection = sqlite3.connect(str(path))
    connection.execute(statement)
    connection.commit()
    with pytest.raises(LogUnavailable, match=message):
        begin(log)
    assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'streams'").fetchall()
    connection.close()


def test_file_of_an_older_version_gets_what_it_lacks(path: Path) -> None:
    """An older worker goes on with it, too: nothing else has changed."""
    old = SQLiteEventLog(f"sqlite:///{path}")
    stream = begin(old)
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        connection.execute("DROP TABLE readers")
    new = SQLiteEventLog(f"sqlite:///{path}")
    try:
        new.attend(stream, 20.0)
        assert old.attended(stream)
        new.leave(stream)
        assert not old.attended(stream)
        old.attend(stream, 20.0)
        assert new.attended(stream)
    finally:
        old.close()
        new.close()


def test_directory_in_place_of_the_file(log: SQLiteEventLog, path: Path) -> None:
    path.mkdir()
    with pytest.raises(LogUnavailable, match="it is a directory"):
        begin(log)


def test_what_may_not_be_written() -> None:
    """In a process without the rights of root."""
    said = run(
        """
        import os, shutil, tempfile
        from flask_llmstream.eventlog import open_log
        from flask_llmstream.exceptions import LogUnavailable

        os.umask(0o022)
        top = tempfile.mkdtemp()
        os.chmod(top, 0o755)
        log = open_log(f"sqlite:///{top}/log.db")
        log.create("ab", "worker", 60, 10, 1000)
        log.close()
        if os.geteuid() == 0:
            os.chmod(f"{top}/log.db", 0o444)
            os.seteuid(65534)
        else:
            os.chmod(f"{top}/log.db", 0o444)
            os.chmod(top, 0o555)
        for name in ("log.db", "new.db"):
            log = open_log(f"sqlite:///{top}/{name}")
            for _ in range(2):
                try:
                    log.create("cd", "worker", 60, 10, 1000)
                except LogUnavailable as error:
                    print(str(error).replace(top, ""))
        os.chmod(top, 0o755) if os.geteuid() != 65534 else os.seteuid(0)
        os.chmod(f"{top}/log.db", 0o644)
        log.create("cd", "worker", 60, 10, 1000)
        print(log.append("cd", 1, [b"x"]))
        log.close()
        shutil.rmtree(top)
        """
    ).splitlines()
    assert len(said) == 5 and said[-1] == "True", said
    for line in said[:-1]:
        assert "may only be read; give this process the right to write the file and its directory" in line


# -- processes -------------------------------------------------------------------------------


def test_many_processes_make_the_file_at_once(path: Path) -> None:
    said = run(
        """
        import os, sys
        from flask_llmstream.eventlog import open_log
        import flask_llmstream.eventlog.sqlite

        log = open_log(f"sqlite:///{sys.argv[1]}?timeout=20")
        gate, opener = os.pipe()
        children = []
        for number in range(12):
            child = os.fork()
            if not child:
                os.close(opener)
                os.read(gate, 1)
                try:
                    stream = "%x" % number
                    log.create(stream, stream, 60, 10, 1000)
                    for each in range(20):
                        assert log.append(stream, each + 1, [b"x"])
                except BaseException as error:
                    print(repr(error), flush=True)
                    os._exit(1)
                os._exit(0)
            children.append(child)
        os.close(gate)
        os.close(opener)
        print(sum(os.waitpid(child, 0)[1] for child in children))
        print([log.read("%x" % number, 0).last for number in range(12)] == [10 * 2] * 12)
        log.close()
        """,
        path,
    )
    assert said.split() == ["0", "True"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_child_of_a_fork_opens_its_own(path: Path) -> None:
    said = run(
        """
        import os, sys, threading, time, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads and fork() do not go well
        from flask_llmstream.eventlog import open_log

        log = open_log(f"sqlite:///{sys.argv[1]}")
        log.create("ab", "parent", 60, 100, 1000)
        asked = threading.Event()
        def stop(stream):
            print("asked", stream, os.getpid() == parent, flush=True)
            asked.set()
        parent = os.getpid()
        log.on_stop(stop)
        log.append("ab", 1, [b"parent"])
        log.wait("ab", 1, 0.05)
        child = os.fork()
        if not child:
            log.append("ab", 2, [b"child"])
            log.wait("ab", 2, 10)
            print(log.read("ab", 0).entries, flush=True)
            assert log.request_stop("ab")
            log.close()
            os._exit(0)
        while log.read("ab", 1).last < 2:
            log.wait("ab", 1, 5)
        time.sleep(0.2)
        log.append("ab", 3, [b"parent again"])
        assert os.waitpid(child, 0)[1] == 0
        assert asked.wait(20)
        time.sleep(0.1)  # once only
        log.append("ab", 4, [b"end"])
        print(log.read("ab", 3).entries)
        log.close()
        """,
        path,
    )
    assert said.splitlines() == [
        "[b'parent', b'child', b'parent again']", "asked ab True", "[b'end']",
    ]


def test_lock_that_is_held_blocks_no_other_greenlet(path: Path, holder: "subprocess.Popen[bytes]") -> None:
    said = run(
        """
        from gevent import monkey
        monkey.patch_all()
        import sys, time, gevent
        from flask_llmstream.eventlog import open_log
        from flask_llmstream.exceptions import LogUnavailable

        gaps = []
        def tick():
            while True:
                before = time.monotonic()
                gevent.sleep(0.01)
                gaps.append(time.monotonic() - before)

        log = open_log(f"sqlite:///{sys.argv[1]}?timeout=2")
        ticker = gevent.spawn(tick)
        began = time.monotonic()
        try:
            log.create("ab", "worker", 60, 10, 1000)
        except LogUnavailable:
            print(time.monotonic() - began, max(gaps), len(gaps))
        ticker.kill()
        log.close()
        """,
        path,
    )
    took, gap, count = (float(word) for word in said.split())
    print(f"the hub was held up for at most {1000 * gap:.1f} ms while a lock was waited for {took:.1f} s")
    # Where the hub waits for the lock itself, that is one gap of 2 s, and nothing else is counted.
    assert took > 1.9 and gap < 1.8 and count > 20


def test_greenlet_is_killed_while_it_waits_for_a_lock(
    path: Path, holder: "subprocess.Popen[bytes]"
) -> None:
    """What it had begun ends in the native thread, and everybody else is served after it."""
    said = run(
        """
        from gevent import monkey
        monkey.patch_all()
        import sys, time, gevent
        from flask_llmstream.eventlog import open_log

        log = open_log(f"sqlite:///{sys.argv[1]}?timeout=2")
        greenlet = gevent.spawn(log.create, "ab", "worker", 60, 10, 1000)
        reader = gevent.spawn(log.read, "ab", 0)
        other = gevent.spawn(log.read, "ab", 0)
        gevent.sleep(0.3)
        began = time.monotonic()
        greenlet.kill()
        reader.kill()
        print(time.monotonic() - began, other.get(timeout=20), log.read("ab", 0))
        log.close()
        """,
        path,
    ).split()
    assert float(said[0]) < 1.5 and said[1:] == ["None", "None"]


# -- wake-ups --------------------------------------------------------------------------------


def test_sockets_of_the_dead_are_removed(log: SQLiteEventLog, path: Path) -> None:
    stream = begin(log)
    directory = Path(directory_for(str(path)))
    directory.mkdir(mode=0o700)
    dead = directory / "dead.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(dead))
    assert dead.exists()
    log.append(stream, 1, [b"x"])
    assert not dead.exists()


def test_who_waits_has_a_socket_and_takes_it_away(log: SQLiteEventLog, path: Path) -> None:
    directory = Path(directory_for(str(path)))
    stream = begin(log)
    log.append(stream, 1, [b"x"])
    log.read(stream, 0)
    assert not directory.exists(), "nobody waits"
    log.wait(stream, 1, 0.01)
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700 and len(list(directory.iterdir())) == 1
    for noise in (b"", b"\xff\xfe", b"look", b"stop " + b"x" * 1000, b"look no-such"):
        tell(str(directory), noise)
    log.wait(stream, 1, 0.01)
    log.close()
    wait_until(lambda: not directory.exists(), 5, "the socket to be removed")


def test_socket_that_was_removed_is_made_again(log: SQLiteEventLog, path: Path) -> None:
    directory = Path(directory_for(str(path)))
    stream = begin(log)
    log.on_stop(lambda _: None)  # so that it goes on listening
    log.wait(stream, 0, 0.01)
    wait_until(directory.exists, 5, "a socket")
    shutil.rmtree(str(directory))
    wait_until(lambda: directory.exists() and list(directory.iterdir()), 10, "another socket")


def test_long_path_has_its_sockets_elsewhere(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    assert len(directory_for(str(deep / "log.db"))) < 70 and directory_for("/a/b.db") == "/a/b.db-peers"
    assert directory_for(str(deep / "log.db")) != directory_for(str(deep / "other.db"))
    logs = [SQLiteEventLog(f"sqlite:///{deep}/log.db") for _ in range(2)]
    stream = begin(logs[0])
    timer = threading.Timer(0.3, logs[1].append, (stream, 1, [b"x"]))
    timer.start()
    logs[0].wait(stream, 0, 20)
    directory = directory_for(str(deep / "log.db"))
    assert len(os.listdir(directory)) == 1
    timer.join()
    for log in logs:
        log.close()
    wait_until(lambda: not os.path.exists(directory), 5, "the sockets to be removed")


def test_without_sockets_the_file_is_looked_at(log: SQLiteEventLog, path: Path) -> None:
    """The directory may be somebody else's: everybody may write to it."""
    directory = Path(directory_for(str(path)))
    directory.mkdir()
    directory.chmod(0o777)
    stream, other = begin(log), SQLiteEventLog(f"sqlite:///{path}")
    asked = threading.Event()
    log.on_stop(lambda _: asked.set())
    took = []
    for number in range(1, 4):
        timer = threading.Timer(0.1, other.append, (stream, number, [b"x"]))
        timer.start()
        began = time.monotonic()
        log.wait(stream, number - 1, 20)
        took.append(time.monotonic() - began - 0.1)
        timer.join()
        page = log.read(stream, number - 1)
        assert page is not None and page.entries == [b"x"]
    print(f"woken without sockets after {', '.join(f'{1000 * each:.0f}' for each in took)} ms")
    assert max(took) < 5
    assert other.request_stop(stream) and asked.wait(10)
    timer = threading.Timer(0.1, other.seal, (stream, "finished"))
    timer.start()
    began = time.monotonic()
    log.wait(stream, 3, 20)
    assert time.monotonic() - began < 5
    timer.join()
    assert list(directory.iterdir()) == []
    other.close()


def test_callback_that_fails_stops_nothing(log: SQLiteEventLog, caplog: pytest.LogCaptureFixture) -> None:
    heard = []

    def fail(stream: str) -> None:
        raise RuntimeError("no")

    log.on_stop(fail)
    log.on_stop(heard.append)
    stream = begin(log)
    assert log.request_stop(stream) and heard == [stream]
    assert "a callback failed" in caplog.text


# -- room ------------------------------------------------------------------------------------


def test_file_does_not_grow_for_ever(log: SQLiteEventLog, path: Path) -> None:
    entries, sizes, began = [b"x" * 60] * 200, [], time.monotonic()
    for number in range(2000):
        stream = begin(log, keep=0.0)
        log.append(stream, 1, entries)
        log.seal(stream, "finished")
        if number % 500 == 499:
            sizes.append(sum(each.stat().st_size for each in path.parent.glob("log.db*")))
    print(
        f"2,000 streams of 200 entries, one after another: {sizes} bytes after each 500,"
        f" {time.monotonic() - began:.1f} s"
    )
    assert sizes[-1] <= sizes[0] * 1.1 < 8 << 20
    while log.prune():
        pass
    assert path.stat().st_size < 1 << 20


@pytest.mark.parametrize(
    "statement", ["SELECT body FROM entries WHERE stream = 1 AND number > 5 ORDER BY number LIMIT 9"]
)
def test_reading_is_a_range_scan(log: SQLiteEventLog, statement: str) -> None:
    begin(log)
    plan = log._here().database.read(lambda db: db.execute("EXPLAIN QUERY PLAN " + statement).fetchall())
    assert len(plan) == 1 and "USING PRIMARY KEY (stream=? AND number>?)" in plan[0][-1]
