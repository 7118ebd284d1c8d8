"""Workers that are killed or stopped, a master that is gone, clocks that jump, descriptors that run out."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator

import pytest
from seeing import begin, ended, logged, new_key, notes, path_of, see, serving, unharmed

from flask_llmstream.testing import LiveServer, ScriptedUpstream, read_stream, send_request, wait_until
from flask_llmstream.testing.upstreams import done, tokens

pytestmark = [pytest.mark.faults, pytest.mark.live]

#: How late a busy machine may be, in seconds; and how long a worker is stopped.
LATE, PAUSE = 5.0, 3.0
#: gunicorn's ``timeout``, where that is to end a worker.
TIMEOUT = 3
#: After so long a killed worker's streams are known to be dead; see docs/resuming.md.
LEASE = 10.0
#: Descriptors that a worker may have, and connections that are more than that.
FILES, MANY = 64, 80
HOUR = 3600


@pytest.fixture
def log_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/streams.db"


def closed(model: ScriptedUpstream, since: float) -> float:
    """Return the seconds from *since* to the end of the model's last connection."""
    exchange = model.exchanges[-1]
    model.wait_for(lambda _: exchange.closed_at, 10.0)
    assert exchange.closed_at is not None
    return exchange.closed_at - since


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_a_worker_that_is_killed(kind: str, log_url: str, model: ScriptedUpstream, record: Any) -> None:
    model.script = [tokens(*map(str, range(1000)), interval=0.05)]
    with serving(kind, 2, event_log=log_url) as server:
        path = path_of("chat", new_key(), model="any", upstream=model.url)
        reader, data = begin(server, path)
        victim = int(reader.headers["x-worker"])
        [other] = set(server.worker_pids()) - {victim}
        os.kill(other, signal.SIGSTOP)  # the kernel chooses who gets a connection: leave it one
        try:
            path = path_of("words", new_key(), {"resumable": True}, count=900, pause=0.1)
            lasting, _ = begin(server, path)
        finally:
            os.kill(other, signal.SIGCONT)
        place = lasting.headers["content-location"]
        assert int(lasting.headers["x-worker"]) == victim
        lasting.read_until(b'"20 "')  # by then it has promised to come again within ten seconds
        killed_at = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        seen = see(reader, killed_at, data)
        upstream = closed(model, killed_at)
        with lasting:
            lasting.read()
        resumed = see(server.request(place, timeout=LEASE + LATE), killed_at)
        wait_until(lambda: len(server.worker_pids()) == 2 and victim not in server.worker_pids(), 10.0)
        for _ in range(8):
            with server.request("/plain") as answer:
                assert answer.status == 200
        said = logged(server, "SIGKILL|exited with")
    assert not seen.complete and seen.took < LATE and upstream < LATE
    assert resumed.end == ("failed", "interrupted") and resumed.took < LEASE + LATE
    record(
        "worker-killed",
        client=f"{seen.words}; who follows a resumable stream of it gets what was written,"
        f" then {resumed.words}",
        model=f"closed by the kernel after {upstream:.1f} s; no `finally`, no `on_end` runs",
        log=said,
    )


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_a_worker_that_is_stopped_for_a_while(kind: str, record: Any) -> None:
    with serving(kind) as server, unharmed(server):
        key = new_key()
        reader, data = begin(server, path_of("words", key, count=40, pause=0.05))
        [worker] = server.worker_pids()
        os.kill(worker, signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(server.request, "/plain")
            stopped_at = time.monotonic()
            time.sleep(PAUSE)  # that long it is stopped
            os.kill(worker, signal.SIGCONT)
            seen = see(reader, stopped_at, data)
            with waiting.result() as answer:
                assert answer.status == 200
        assert seen.end == ("done", "stop") and ended(server, key) == "finish"
        assert seen.text.split() == [str(number) for number in range(40)]
    record(
        "worker-stopped", client=f"nothing for {PAUSE:g} s, then all of it and `done`; new requests wait",
        model="stays open", log="nothing; reason `finish`",
    )


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_a_worker_that_is_stopped_for_too_long(kind: str, model: ScriptedUpstream, record: Any) -> None:
    model.script = [tokens(*map(str, range(1000)), interval=0.05)]
    with serving(kind, config_lines=f"timeout = {TIMEOUT}") as server:
        reader, data = begin(server, path_of("chat", new_key(), model="any", upstream=model.url))
        [worker] = server.worker_pids()
        stopped_at = time.monotonic()
        os.kill(worker, signal.SIGSTOP)
        seen = see(reader, stopped_at, data)
        upstream = closed(model, stopped_at)
        wait_until(lambda: server.worker_pids() not in ([], [worker]), 10.0, "another worker")
        with server.request("/plain") as answer:
            assert answer.status == 200
        said = logged(server, "TIMEOUT")
    # gunicorn counts from the last sign of life, a second old or, on a busy machine, more.
    assert not seen.complete and TIMEOUT - 2.5 <= seen.took < TIMEOUT + LATE
    record(
        "worker-hangs", client=f"{seen.words}; gunicorn's `timeout` is {TIMEOUT} s here",
        model=f"closed by the kernel after {upstream:.1f} s", log=said,
    )


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_a_master_that_is_killed(kind: str, model: ScriptedUpstream, record: Any) -> None:
    """gunicorn's gevent workers leave at once when they notice; its threads serve to the end."""
    model.script = [tokens(*map(str, range(80)), interval=0.05), done()]
    lines = "from flask_llmstream.gunicorn import worker_exit\ngraceful_timeout = 20"
    with serving(kind, config_lines=lines) as server:
        reader, data = begin(server, path_of("chat", new_key(), model="any", upstream=model.url))
        killed_at = time.monotonic()
        os.kill(server.pid, signal.SIGKILL)
        seen = see(reader, killed_at, data)
        upstream = closed(model, killed_at)
        said = logged(server, "Parent changed|their worker stops")
    print(f"{kind}: {seen.words}, the model after {upstream:.1f} s")
    assert seen.complete and seen.took < 4 + LATE
    assert seen.end == (("failed", "shutdown") if kind == "gevent" else ("done", "stop"))
    record(
        "master-killed",
        client=f"{seen.words}; with threads running streams have `graceful_timeout`; then nobody listens",
        model=f"closed after {upstream:.1f} s", log=said,
    )


class Clock:
    """The wall clock of a server, shifted underneath all of it; see ``shifted_clock.c``.

    Not libfaketime: with the monotonic clock left alone, it refuses gunicorn's sleeps.
    """

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.fail("no C compiler is installed; scripts/bootstrap test installs gcc", pytrace=False)
        library, self._path = folder / "clock.so", folder / "ahead"
        source = Path(__file__).with_name("shifted_clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(source)], check=True)
        self._path.write_bytes(bytes(8))
        self.env = {"LD_PRELOAD": str(library), "SHIFTED_CLOCK": str(self._path)}

    def shift(self, seconds: int) -> None:
        """Be *seconds* ahead of the machine."""
        with self._path.open("r+b") as file:  # in place: the server has it in its memory
            file.write(struct.pack("=q", seconds))


@pytest.mark.parametrize("kind", ["gevent", "gthread"])
def test_a_clock_that_jumps(kind: str, tmp_path: Path, log_url: str, record: Any) -> None:
    clock = Clock(tmp_path)
    keep = 600.0
    limits = {"idle_timeout": 60.0, "max_duration": 120.0}
    with serving(kind, event_log=log_url, keep=keep, env=clock.env, **limits) as server:

        def jump(seconds: int) -> None:
            clock.shift(seconds)
            ahead = notes(server)["wall"] - time.time()
            assert abs(ahead - seconds) < 60, f"the server's clock is {ahead:.0f} s ahead"

        def rest_of(place: str, after: str) -> Any:
            return see(server.request(place, headers={"Last-Event-ID": after}), time.monotonic())

        key, quiet, over = new_key(), new_key(), new_key()
        short = server.request(path_of("words", over, {"resumable": True}, count=3))
        finished = see(short, 0.0)
        place_of_finished = short.headers["content-location"]
        reader, data = begin(server, path_of("words", key, {"resumable": True}, count=60, pause=0.1))
        place = reader.headers["content-location"]
        silent, silent_data = begin(server, path_of("words", quiet, count=2, pause=4.0))
        cursor = [event.id for event in finished.events if event.event is None][0]
        for seconds in (300, -7 * HOUR, 5 * HOUR):
            jump(seconds)
            # The reader of another stream comes back, with a cursor from before.
            first = data.split(b"id: ")[1].split(b"\n")[0].decode()
            with server.request(place, headers={"Last-Event-ID": first}, timeout=20) as follower:
                assert follower.status == 200
                assert follower.read_until(b'"text"')
            if seconds < keep:
                assert rest_of(place_of_finished, cursor).text == finished.text[len("0 "):]
            else:
                with server.request(place_of_finished, headers={"Last-Event-ID": cursor}) as forgotten:
                    assert forgotten.status in (204, 404, 410), forgotten.read()
                    status = forgotten.status
            time.sleep(0.6)  # heartbeats are due
        seen, quiet_seen = see(reader, 0.0, data), see(silent, 0.0, silent_data)
        assert seen.end == quiet_seen.end == ("done", "stop")
        assert seen.text.split() == [str(number) for number in range(60)]
        beats = quiet_seen.body.count(b": hb\n")
        assert 5 <= beats <= 9, f"{beats} heartbeats in 4 s of silence, one every 0.5 s"
        assert rest_of(place, first).end == ("done", "stop")
        assert ended(server, key) == ended(server, quiet) == "finish"
        assert "TIMEOUT" not in server.log() and "Traceback" not in server.log()
    record(
        "clock",
        client="nothing: streams, heartbeats, time limits and cursors do not go by that clock. What is over"
        f" can be read for `keep` by it: a jump forward beyond that forgets it early ({status})",
        model="stays open", log="nothing; reason `finish`",
    )


@contextlib.contextmanager
def few_files(kind: str) -> Iterator[LiveServer]:
    lines = f"""
keepalive = 60
import resource


def post_fork(server, worker):
    resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
"""
    with serving(kind, config_lines=lines) as server:
        yield server


def test_descriptors_that_run_out(model: ScriptedUpstream, record: Any) -> None:
    model.script = [tokens("never")]
    with few_files("gevent") as server, unharmed(server, tracebacks=99):
        key = new_key()
        reader, data = begin(server, path_of("words", key, count=80, pause=0.05))
        with contextlib.ExitStack() as stack:
            known = stack.enter_context(server.connect())
            send_request(known, "/plain")
            read_stream(known).read()
            crowd = [stack.enter_context(server.connect()) for _ in range(MANY)]
            send_request(crowd[-1], "/plain")
            [worker] = server.worker_pids()
            files = f"/proc/{worker}/fd"
            wait_until(lambda: len(os.listdir(files)) >= FILES, 10.0, "as many to be accepted as can be")
            # Who is connected is answered, but no call of a model can be made.
            send_request(known, path_of("chat", new_key(), model="any", upstream=model.url))
            refused = see(read_stream(known), time.monotonic())
            assert refused.end == ("status", "upstream_unavailable") and refused.status == 502
            seen = see(reader, time.monotonic(), data)
            assert seen.end == ("done", "stop") and len(seen.text.split()) == 80
            for sock in crowd[:-1]:
                sock.close()
            left_at = time.monotonic()
            assert crowd[-1].recv(12) == b"HTTP/1.1 200"
            waited = time.monotonic() - left_at
        said = logged(server, "Too many open files")
    print(f"answered {waited:.1f} s after the others had left")
    assert waited < LATE
    record(
        "no-files",
        client="running streams go on to `done`; new connections wait, and are served"
        f" {waited:.1f} s after others have left; a call of a model that needs a new one is 502,"
        " `upstream_unavailable`",
        model="open ones stay open", log=said,
    )
