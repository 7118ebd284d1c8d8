"""The log of resumable streams dies, hangs, vanishes or is full: what readers notice.

That no stream is lost or doubled in such a case, with many readers, is tested in tests/live and
tests/eventlog; this is one reader's view of each.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple

import pytest
from redis_servers import Server as RedisServer
from seeing import begin, ended, logged, new_key, notes, path_of, see, serving

from flask_llmstream.testing import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.live]

#: Seconds in which a request is answered, whatever has become of the log.
SOON = 10.0


class Log(NamedTuple):
    """A log and what breaks and mends it; broken from the start where *late* is false."""

    url: str
    inject: Callable[[], Any]
    mend: Callable[[], Any]
    late: bool = True


@pytest.fixture(scope="module")
def redis(network: Any, tmp_path_factory: Any) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1m", "none", str(folder))
    try:
        yield folder
    finally:
        umount = shutil.which("umount")
        assert umount and subprocess.call([umount, "-l", str(folder)]) == 0


def _mount(*arguments: str) -> None:
    mount = shutil.which("mount")
    assert mount
    done = subprocess.run([mount, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        said = done.stdout.decode().strip()
        pytest.fail(f"no disk of our own: {said}; make faults needs root", pytrace=False)


def _redis_log(name: str, request: Any) -> Log:
    server: RedisServer = request.getfixturevalue("redis")
    network = request.getfixturevalue("network")
    inject, mend = {
        "killed": (server.kill, server.start),
        "stopped": (server.hang, server.go_on),
        "hole": (lambda: network.black_hole(server.port), network.heal),
    }[name]
    return Log(server.url, inject, mend)


def _sqlite_log(name: str, request: Any) -> Log:
    folder: Path = request.getfixturevalue("disk")
    path = folder / "streams.db"
    stuffing = folder / "stuffing"

    def fill() -> None:
        with stuffing.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def delete() -> None:
        for each in folder.iterdir():
            each.unlink()

    lock = contextlib.ExitStack()

    def hold() -> None:
        held = sqlite3.connect(str(path), isolation_level=None)
        lock.callback(held.close)
        held.execute("BEGIN EXCLUSIVE")

    ways: Dict[str, Any] = {
        "full": (fill, stuffing.unlink, True),
        "deleted": (delete, lambda: None, True),
        "locked": (hold, lock.close, True),
        "read-only": (
            lambda: _mount("-o", "remount,ro", str(folder)),
            lambda: _mount("-o", "remount,rw", str(folder)),
            False,
        ),
    }
    return Log(f"sqlite:///{path}?timeout=0.5", *ways[name])


@pytest.mark.parametrize(
    "kind",
    ["redis-killed", "redis-stopped", "redis-hole", "sqlite-full", "sqlite-deleted", "sqlite-locked",
     "sqlite-read-only"],
)
def test_a_log_that_fails(kind: str, request: Any, tmp_path: Path, record: Any) -> None:
    store, _, name = kind.partition("-")
    log = (_redis_log if store == "redis" else _sqlite_log)(name, request)
    if not log.late:
        log.inject()
    resumable = {"resumable": True}
    with contextlib.ExitStack() as stack, serving(event_log=log.url) as server:
        mending = stack.enter_context(contextlib.ExitStack())
        mending.callback(log.mend)
        key = new_key()
        reader, data = begin(server, path_of("words", key, resumable, count=50, pause=0.1))
        place = reader.headers.get("content-location", "")
        assert bool(place) == log.late
        if log.late:
            log.inject()
        # A new stream, and a reader who comes back, while it lasts.
        began = time.monotonic()
        new = see(server.request(path_of("words", new_key(), resumable, count=3), timeout=SOON * 2), began)
        assert new.end == ("done", "stop") and new.text == "0 1 2 " and new.took < SOON
        back = ""
        if place:
            began = time.monotonic()
            with server.request(place, timeout=SOON * 2) as answer:
                took = time.monotonic() - began
                assert answer.status in (200, 404, 410, 503) and took < SOON
                back = f"; who comes back gets {answer.status} after {took:.1f} s"
                if answer.status == 503:
                    assert answer.headers["retry-after"]
        seen = see(reader, time.monotonic(), data)
        assert seen.end == ("done", "stop") and seen.text.split() == [str(number) for number in range(50)]
        assert ended(server, key) == "finish"
        said = "nothing" if name == "deleted" else logged(server, "streams go on|cannot be resumed")
        mended_at = time.monotonic()
        mending.close()

        def resumes() -> Any:
            with server.request(path_of("words", new_key(), resumable, count=1), timeout=SOON) as answer:
                answer.read()
                return "content-location" in answer.headers

        wait_until(resumes, 20.0, lambda: f"streams to be resumable again:\n{server.log()[-3000:]}")
        mended = time.monotonic() - mended_at
        wait_until(lambda: notes(server)["running"] == 0, 10.0, "all streams to end")
        assert "Traceback" not in server.log(), server.log()
    print(f"{kind}: a new stream took {new.took:.1f} s{back}; resumable again after {mended:.1f} s")
    record(
        f"log-{kind}",
        client=f"the running stream whole, to `done`; a new one whole, after {new.took:.1f} s, though it"
        f" may not be resumable{back}; all is as before {mended:.1f} s after the end of the fault",
        model="stays open", log=said.replace(str(tmp_path), "/…") + "; reason `finish`",
    )
