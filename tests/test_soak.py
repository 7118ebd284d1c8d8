"""The soak finds what is broken, and nothing else: its counters can fail. ``make soak`` finds what leaks."""

from __future__ import annotations

import importlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Dict, List

import pytest

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parent.parent
#: Enough for every counter, and too little to mean anything.
TINY = ("--alone", "--workers", "1", "--pace", "0.02", "--patience", "0.8")


def soak(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Its processes are not measured: memory is compared.
    env = {name: text for name, text in os.environ.items() if not name.startswith("COVERAGE_PROCESS")}
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *arguments], cwd=ROOT, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=110,
    )


#: What a way to break the app (``benchmarks/soak/broken.py``) is found as.
FOUND = {
    "upstream": "connection of the upstream not closed",
    "thread": "more greenlets than after the warm-up",
    "fd": "more file descriptors than after the warm-up: /dev/null",
    "memory": "memory grows",
    "objects": "blocks grows",
    "traceback": "traceback in the log, steady",
    "on_end": "stream without on_end",
    "on_end_twice": "on_end called more than once",
    "finished": "stream begun without stream_finished",
    "text": "life did not end as planned",
    "entry": "alive: journal's writers",
    "stream": "alive: streams",
}


@pytest.mark.live
def test_app_that_breaks_every_promise_is_found_out_by_every_counter(tmp_path: Path) -> None:
    file = tmp_path / "soak.json"
    done = soak(
        *TINY, "--minutes", "0.02", "--streams", "40", "--phases", "2", "--log", "memory",
        "--broken", ",".join(FOUND), "--json", str(file),
    )
    assert done.returncode == 1, done.stdout
    found = [each["what"] + ", " + each["where"] for each in json.loads(file.read_text())["findings"]]
    for way, what in FOUND.items():
        assert any(each.startswith(what) for each in found), (way, done.stdout)


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.parametrize("log", ["sqlite", "redis"])
def test_app_that_is_whole_passes_and_an_open_entry_does_not(log: str) -> None:
    done = soak(*TINY, "--patience", "0", "--minutes", "0.04", "--streams", "20", "--log", log)
    assert done.returncode == 0, done.stdout
    assert "nothing is left" in done.stdout
    done = soak(*TINY, "--minutes", "0.04", "--streams", "20", "--log", log, "--broken", "entry")
    assert done.returncode == 1, done.stdout
    assert "left in the event log" in done.stdout


# -- what a busy machine must not be blamed for ---------------------------------------------


def worker(**counts: Any) -> Dict[str, Any]:
    """Return what a worker says that has nothing under way."""
    return {
        "server": "steady", "worker": "gevent", "pid": 1, "memory": 1, "blocks": 1, "kinds": {}, "tasks": 1,
        "streams": [], "alive": {"ticker's entries": 0}, "fds": {}, "greenlets": {}, "threads": {}, **counts,
    }


class Parts:
    """The modules of the soak, which only a checkout has."""

    def __getattr__(self, name: str) -> Any:
        return importlib.import_module(f"benchmarks.soak.{name}")


parts = Parts()


@pytest.fixture(autouse=True)
def source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


class Clock:
    """Time that passes while somebody sleeps, and at no other time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    monotonic = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    for module in (parts.running, parts.lives):
        monkeypatch.setattr(module, "time", found)
    return found


def make_soak(monkeypatch: pytest.MonkeyPatch, folder: Path, log: Any) -> Any:
    plan = parts.running.Plan(pace=0.02, alone=True, patience=5.0)
    soak = parts.running.Soak(plan, folder, lambda said: None)
    soak.log = log
    monkeypatch.setattr(soak, "_settle", lambda: None)
    return soak


@pytest.mark.parametrize("goes", [True, False])
def test_what_ends_soon_after_it_was_needed_is_waited_for_and_no_longer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock, goes: bool
) -> None:
    soak = make_soak(monkeypatch, tmp_path, parts.logs.Log("memory://", False))
    upstream: Dict[str, Any] = {"opened": 0, "closed": 0, "open": [], "repeated": {}}
    listens = {"redis_listener.py: _run": 1}
    from_ = until = clock.now + 60

    def counts(question: str = "counts") -> Dict[str, Any]:
        there = clock.now >= from_ and not (goes and clock.now > until)
        return {"steady 1": worker(greenlets={"who counts": 1, **(listens if there else {})})}

    monkeypatch.setattr(soak, "counts", counts)
    monkeypatch.setattr(soak, "connections", lambda: upstream)
    soak.quiet("warm-up")
    clock.now, until = from_, from_ + 3
    soak.quiet("phase 1")
    assert (3 if goes else 5) < clock.now - from_ < (4 if goes else 6)
    found = soak.found["quiet"]
    assert parts.verdict.stirs(dict(soak.found, quiet=found[:1]), found[1]) is not goes


def test_stream_that_comes_with_those_who_have_the_log_drop_others_is_not_overdue(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: Clock
) -> None:
    path = tmp_path / "streams.db"
    with closing(sqlite3.connect(str(path))) as db:
        db.executescript(
            "CREATE TABLE streams (key, state, until); CREATE TABLE entries (stream);"
            f"CREATE TABLE claims (key); INSERT INTO streams VALUES (1, 'finished', {clock.now})"
        )
    done = []

    def load(*args: Any, **more: Any) -> None:
        done.append("load")
        with closing(sqlite3.connect(str(path))) as db, db:
            db.execute("DELETE FROM streams WHERE until < ?", (clock.now,))
            db.execute("INSERT INTO streams VALUES (2, 'finished', ?)", (clock.now + 2,))

    def settle() -> None:
        done.append("settle")
        clock.sleep(9)  # on a machine that stands still: the new one is past its time by then

    soak = make_soak(monkeypatch, tmp_path, parts.logs.Log("sqlite:///", True, path))
    monkeypatch.setattr(soak, "load", load)
    monkeypatch.setattr(soak, "_settle", settle)
    soak.prune()
    # Its clients may be sent home before their streams have ended: that is waited for.
    assert done == ["load", "settle"]
    left = soak.found["log at the end"]
    assert (left["streams"], left["overdue"]) == (1, 0)


def test_connection_of_the_last_moment_is_known_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    read = parts.sampling._connections
    opened: List[socket.socket] = []

    def read_and_connect() -> Any:
        found = read()
        if not opened:
            opened.append(socket.create_connection(listener.getsockname()))
        return found

    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        name = {listener.getsockname()[1]: "Redis"}
        monkeypatch.setattr(parts.sampling, "_connections", read_and_connect)
        try:
            found = parts.sampling.descriptors(os.getpid(), name)
        finally:
            for sock in opened:
                sock.close()
    assert found.get("TCP to Redis") == 1


def outcome(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, away: float, reads: float, shares: bool = True
) -> str:
    """Return what becomes of a life that misses its stream; it was away, and then has read, for so long."""
    life = parts.lives.Life(1, "s1.1~finish", {"s": ("127.0.0.1", 1)}, 1.0, shares, 10.0)

    class Left:
        def leave(self, way: str) -> None:
            pass

    def live(life: Any) -> str:
        life.leave(Left())
        clock.sleep(away)
        if reads:
            life.is_back()
            clock.sleep(reads)
        raise parts.asking.Missed("status 410, not 200")

    monkeypatch.setitem(parts.lives.KINDS, "finish", parts.lives.KINDS["finish"]._replace(live=live))
    try:
        return life.live()
    except parts.asking.Unexpected as error:
        return f"unexpected: {error}"
    except parts.asking.Cut as error:
        return f"cut: {error}"


def test_life_that_is_told_that_it_comes_too_late_was_away_until_then(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    assert outcome(monkeypatch, clock, 9.0, 0.0) == "came back too late: status 410, not 200"
    assert outcome(monkeypatch, clock, 1.0, 0.0).startswith("unexpected: status 410")
    # How long it reads is not how long it was away.
    assert outcome(monkeypatch, clock, 1.0, 60.0).startswith("unexpected: status 410")


def test_stream_in_memory_that_is_gone_is_excused_where_a_worker_went_alone(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    assert outcome(monkeypatch, clock, 1.0, 0.0, shares=False).startswith("cut: status 410")
    life = {
        "id": "s1.1", "kind": "finish", "asked": ["s"], "verdict": "cut", "outcome": "", "begun": 0,
        "ended": 1,
    }
    found: Dict[str, Any] = {"results": [life], "disturbances": [], "gone": []}
    assert len(list(parts.verdict._judge_lives(found))) == 1
    found["gone"].append({"letter": "s", "at": 2})
    assert not list(parts.verdict._judge_lives(found))
