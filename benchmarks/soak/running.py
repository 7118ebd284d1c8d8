"""Runs a soak: starts everything, disturbs it, waits until it is quiet, and takes down what is there then."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from benchmarks.soak import sampling, state
from benchmarks.soak.logs import Log, open_log
from benchmarks.soak.verdict import stirs
from flask_llmstream.testing import LiveServer, gunicorn_server

__all__ = ["Plan", "run"]

_ROOT = Path(__file__).resolve().parent.parent.parent
#: Seconds between two looks at the workers while they are busy, and while they become quiet.
_LOOKS, _QUIET_LOOKS = 2.0, 0.3
#: gunicorn's graceful_timeout: seconds after which it kills a worker that goes.
GRACEFUL = 15
#: What a worker is not quiet with.
_BUSY = ("streams", "streams running", "journal's writers")


class Plan(NamedTuple):
    """What to run."""

    #: Of load, without what begins and ends it.
    seconds: float = 600.0
    #: At once.
    streams: int = 1000
    seed: int = 1
    #: Of the large servers; a small one has the other.
    worker: str = "gevent"
    log: str = "sqlite"
    #: Factor of all durations of lives.
    pace: float = 1.0
    #: Quiet moments in which all is counted; memory is compared between the first and the last.
    phases: int = 0
    #: Workers of the large servers.
    workers: int = 2
    broken: Tuple[str, ...] = ()
    #: The only lives to live.
    lives: Tuple[str, ...] = ()
    #: Whether to run only the steady server.
    alone: bool = False
    #: Seconds in which all must be quiet after a phase; 0 for what the settings of the app ask for.
    patience: float = 0.0


class Server(NamedTuple):
    """One gunicorn, and what happens to it."""

    letter: str
    #: ``steady``, ``reloaded`` or ``other``: the first letter begins the ids of its lives.
    name: str
    server: LiveServer
    worker: str
    workers: int
    streams: int


def _gunicorn(plan: Plan, name: str) -> Dict[str, Any]:
    share = {"steady": 0.62, "reloaded": 0.33, "other": 0.05}[name]
    if plan.alone:
        share = 1.0
    streams = max(2, int(plan.streams * share))
    worker = plan.worker if name != "other" else {"gevent": "gthread", "gthread": "gevent"}[plan.worker]
    workers = 1 if name == "other" or plan.log == "memory" else plan.workers
    # A worker that is busy for longer than keepalive closes connections that it has not read from yet.
    lines = (
        f"graceful_timeout = {GRACEFUL}\naccesslog = None\nworker_connections = 8000\nbacklog = 4096\n"
        "timeout = 120\nkeepalive = 65\n"
    )
    if name == "reloaded":
        # Far apart: what is cut then is excused, and most should not have to be.
        lines += f"max_requests = {40 * streams}\nmax_requests_jitter = {10 * streams}\n"
    # A stream whose client has left has its thread still, while it is waited for.
    threads = 5 * streams + 20 if worker == "gthread" else None
    return {
        "streams": streams, "options": {
            "worker": worker, "workers": workers, "threads": threads, "config_lines": lines,
        },
    }


def _settings(plan: Plan, log: Log) -> Dict[str, Any]:
    pace = plan.pace
    return {
        "event_log": log.url, "keep": max(2.0, 15 * pace), "grace": max(2.0, 10 * pace),
        "idle_timeout": max(3.0, 15 * pace), "slow_reader_timeout": max(3.0, 6 * pace),
        "heartbeat_interval": max(0.3, 2 * pace), "status_hold": 1.0, "cancel_grace": 2.0,
    }


class Soak:
    """A soak that runs."""

    def __init__(self, plan: Plan, folder: Path, say: Callable[[str], None]) -> None:
        self.plan = plan
        self.folder = folder
        self.say = say
        self.rng = random.Random(plan.seed)
        self.servers: List[Server] = []
        self.log: Log
        self.upstream = ""
        self.began = time.monotonic()
        #: What the report is made of.
        self.found: Dict[str, Any] = {
            "plan": plan._asdict(), "quiet": [], "busy": [], "disturbances": [], "gone": [],
        }
        self._known: Dict[str, List[int]] = {}
        self._disturbed = 0

    # -- everything that runs ---------------------------------------------------------------

    @contextlib.contextmanager
    def started(self) -> Iterator[None]:
        """Start upstream, log and servers."""
        plan = self.plan
        with contextlib.ExitStack() as stack:
            self.log = stack.enter_context(open_log(plan.log, self.folder))
            self.upstream = stack.enter_context(_upstream())
            soak = {
                "folder": str(self.folder), "upstream": self.upstream + "/v1",
                "settings": _settings(plan, self.log), "broken": plan.broken,
            }
            for name in ("steady",) if plan.alone else ("steady", "reloaded", "other"):
                wanted = _gunicorn(plan, name)
                server = stack.enter_context(gunicorn_server(
                    "benchmarks.soak.app:app", cwd=_ROOT, timeout=60.0, **wanted["options"],
                    # One arena of malloc for each of hundreds of threads would look like growth.
                    env={"SOAK": json.dumps(soak), "MALLOC_ARENA_MAX": "2"},
                ))
                options = wanted["options"]
                self.servers.append(Server(
                    name[0], name, server, options["worker"], options["workers"], wanted["streams"]
                ))
            yield
            for each in self.servers:
                (self.folder / f"{each.name}.log").write_text(each.server.log())
            for each in self.servers:  # all at once, before they are waited for
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each.server.pid, signal.SIGQUIT)

    def load(self, seconds: float, first: int, **more: Any) -> None:
        """Have the clients live for so long, and disturb the servers meanwhile."""
        drain = 4.0 * self.plan.pace + min(1.0, 20.0 * self.plan.pace)
        pace = more.pop("pace", self.plan.pace)
        task = dict(
            more, seed=self.plan.seed, seconds=seconds, drain=drain, first=first, pace=pace,
            shares=self.log.shares, grace=_settings(self.plan, self.log)["grace"],
            results=str(self.folder / "results"),
            servers={
                each.letter: {"address": each.server.address, "streams": more.get("streams", each.streams)}
                for each in self.servers
            },
        )
        client = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.soak.client"], cwd=_ROOT, stdin=subprocess.PIPE
        )
        assert client.stdin is not None
        try:
            client.stdin.write(json.dumps(task).encode() + b"\n")
            client.stdin.close()
            self._attend(client, seconds, seconds + drain + 120, disturbs=not more.get("each_kind"))
        finally:
            if client.poll() is None:
                client.kill()
            client.wait()
        if client.returncode:
            raise RuntimeError(f"the clients have failed: exit status {client.returncode}")

    def _attend(self, client: Any, seconds: float, timeout: float, disturbs: bool) -> None:
        begun = looked = time.monotonic()
        due = self._disturbances(seconds) if disturbs else []
        while client.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if now - begun > timeout:
                raise RuntimeError(f"the clients have not ended after {timeout:.0f} s")
            while due and now - begun >= due[0][0]:
                self._disturb(due.pop(0)[1])
            self._note_workers()
            if now - looked >= _LOOKS:
                looked = now
                self.found["busy"].append({"at": now - self.began, "workers": self._outside()})

    # -- disturbances -----------------------------------------------------------------------

    def _disturbances(self, seconds: float) -> List[Tuple[float, str]]:
        found, at = [], self.rng.uniform(0.2, 0.5) * min(seconds, 25.0)
        while at < seconds:
            found.append((at, ("reload", "terminate")[self._disturbed % 2]))
            self._disturbed += 1
            at += self.rng.uniform(10.0, 15.0)
        return found

    def _disturb(self, what: str) -> None:
        for each in self.servers:
            if each.name == "reloaded":
                pids = each.server.worker_pids()
                if what == "terminate" and not pids:
                    continue
                pid = each.server.pid if what == "reload" else self.rng.choice(pids)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGHUP if what == "reload" else signal.SIGTERM)
                self.found["disturbances"].append(
                    {"what": what, "letter": each.letter, "at": time.monotonic(), "pid": pid}
                )

    def _note_workers(self) -> None:
        """Take note of workers that have gone: there was a reason, be it max_requests."""
        for each in self.servers:
            pids = each.server.worker_pids()
            for pid in set(self._known.get(each.letter, pids)) - set(pids):
                self.found["gone"].append({"letter": each.letter, "at": time.monotonic(), "pid": pid})
            self._known[each.letter] = pids

    # -- counting ---------------------------------------------------------------------------

    def _ports(self) -> Dict[int, str]:
        ports = {int(self.upstream.rpartition(":")[2]): "the upstream"}
        ports.update({each.server.port: "clients" for each in self.servers})
        if self.log.port:
            ports[self.log.port] = "Redis"
        return ports

    def _outside(self) -> Dict[str, Dict[str, Any]]:
        """Return what the kernel says of each worker."""
        found = {}
        for each in self.servers:
            for pid in each.server.worker_pids():
                with contextlib.suppress(OSError):
                    found[f"{each.name} {pid}"] = {
                        "memory": sampling.memory(pid), "tasks": sampling.tasks(pid),
                        "fds": len(os.listdir(f"/proc/{pid}/fd")),
                    }
        return found

    def counts(self, question: str = "counts") -> Dict[str, Dict[str, Any]]:
        """Return what each worker and the kernel say of it."""
        found = {}
        ports = self._ports()
        for each in self.servers:
            for pid in each.server.worker_pids():
                try:
                    told = state.ask(self.folder, pid, question)
                    told.update(
                        server=each.name, worker=each.worker, pid=pid, memory=sampling.memory(pid),
                        tasks=sampling.tasks(pid), fds=sampling.descriptors(pid, ports),
                    )
                    found[f"{each.name} {pid}"] = told
                except (OSError, ValueError):
                    pass  # goes, or has only just come
        return found

    def connections(self) -> Dict[str, Any]:
        """Return what the upstream has counted."""
        with urllib.request.urlopen(self.upstream + "/counts", timeout=30) as answer:
            found: Dict[str, Any] = json.loads(answer.read().decode())
            return found

    def quiet(self, name: str) -> None:
        """Wait until all is quiet, and take down what there is; what is not quiet in time is a leak."""
        begun = time.monotonic()
        self._settle()
        took = time.monotonic() - begun
        idle = len(self.connections()["open"])
        deadline = time.monotonic() + self._patience()
        while True:
            # What is kept to be used again is no leak; it has to go when it is told to.
            self.counts("let go")
            time.sleep(0.2)
            self._note_workers()
            moment = {
                "name": name, "at": time.monotonic() - self.began, "took": took, "idle": idle,
                "workers": self.counts(), "upstream": self.connections(), "log": self.log.left(),
                "ended": self._ends(),
            }
            # What is about to end, or ends a few seconds after it was needed, is no leak either.
            if time.monotonic() > deadline or not (moment["upstream"]["open"] or stirs(self.found, moment)):
                break
            time.sleep(_QUIET_LOOKS)
        self.found["quiet"].append(moment)
        self.say(f"{name}: quiet after {took:.1f} s")

    def _patience(self) -> float:
        grace: float = _settings(self.plan, self.log)["grace"]
        return self.plan.patience or 3 * grace + GRACEFUL + 6.0

    def _settle(self) -> None:
        """Wait until nothing is under way any more, though not for ever."""
        deadline = time.monotonic() + self._patience()
        while time.monotonic() < deadline:
            self._note_workers()
            workers = self.counts()
            busy = any(
                each["fds"].get("TCP from clients", 0) + sum(each["alive"][what] for what in _BUSY)
                for each in workers.values()
            )
            booted = len(workers) >= sum(each.workers for each in self.servers)
            connections = self.connections()
            if booted and not busy and not any(each["answering"] for each in connections["open"]):
                break
            time.sleep(_QUIET_LOOKS)

    def _ends(self) -> Dict[str, int]:
        """Return how many streams have ended in each worker."""
        found: Dict[str, int] = {}
        path = self.folder / "notes"
        for line in path.read_text().splitlines() if path.exists() else ():
            what, _, pid = line.split(" ")[:3]
            if what == "finished":
                found[pid] = found.get(pid, 0) + 1
        return found

    def prune(self) -> None:
        """Have the log drop what is past its time, as it does when more is written; and look again."""
        if not self.log.left():
            return
        time.sleep(_settings(self.plan, self.log)["keep"] + 1.5)
        deadline = time.monotonic() + 30.0
        # Later than that come the streams of those who have the log drop others.
        due = time.time() - 1
        number = 90000
        while True:
            left = self.log.left(due)
            if not left.get("overdue", left["streams"]) or time.monotonic() > deadline:
                break
            if left.get("overdue"):
                number += 1
                ids = [f"{each.letter}0.{number}~event-source" for each in self.servers for _ in range(3)]
                self.load(0.1, number, lives=ids, pace=0.02)
                self._settle()
            time.sleep(0.5)
        # The same look: what it has not found must not be there by now, only because time has passed.
        self.found["log at the end"] = left
        self.found["names at the end"] = self.log.names()


@contextlib.contextmanager
def _upstream() -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.soak.upstream"],
        cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.stdin.close()


def run(
    plan: Plan, say: Callable[[str], None] = lambda text: None, keep: Optional[Path] = None
) -> Dict[str, Any]:
    """Run a soak and return everything that was counted.

    :param say: is told what happens.
    :param keep: folder that gets the logs and the notes.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        soak = Soak(plan, folder, say)
        with soak.started():
            say("servers: " + ", ".join(
                f"{each.name} ({each.workers} x {each.worker}, {each.streams} streams,"
                f" lives {each.letter}...)" for each in soak.servers
            ))
            _run_phases(plan, soak)
        found = soak.found
        found["results"] = [
            json.loads(line) for line in (folder / "results").read_text().splitlines()
        ]
        found["notes"] = (folder / "notes").read_text().splitlines()
        found["logs"] = {each.name: (folder / f"{each.name}.log").read_text() for each in soak.servers}
        if keep is not None:
            shutil.copytree(str(folder), str(keep), ignore=shutil.ignore_patterns("*.sock", "*peers"))
    return found


def _run_phases(plan: Plan, soak: Soak) -> None:
    if not plan.lives:
        soak.load(6.0 * min(1.0, plan.pace * 2), 0, each_kind=True, streams=46, pace=0.2 * plan.pace)
        soak.quiet("warm-up")
    phases: Sequence[int] = range(plan.phases or max(2, int(plan.seconds / 90)))
    for number in phases:
        soak.load(plan.seconds / len(phases), 1000 * (number + 1), lives=plan.lives)
        soak.quiet(f"phase {number + 1}")
    soak.prune()
