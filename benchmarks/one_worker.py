"""One worker on a core of its own, with a Redis, a model and clients: what it uses while it works.

Clients and model are those of :mod:`benchmarks.peers.loop`, in this process, which never sleeps and has
the other core together with Redis.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Tuple

from benchmarks.peers.loop import Client, Loop, Meter, Upstream
from benchmarks.processes import CORES, cpu_seconds, memory_bytes
from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

__all__ = ["Redis", "Site", "Used", "kernel_bytes", "redis_server", "site"]

_ROOT = Path(__file__).resolve().parent.parent
_GUNICORN = "worker_connections = 20000\nbacklog = 2048\naccesslog = None\ngraceful_timeout = 1\n"
#: Seconds before a measurement.
_WARM_UP = 0.4
#: How often a pace is tried that could not be kept.
_ATTEMPTS = 4
#: Objects of the kernel that an open connection has on this side of it.
_KERNEL_OBJECTS = ("TCP", "sock_inode_cache", "filp", "dentry", "eventpoll_epi")


class Redis:
    """A Redis that nobody else uses.

    :param path: its socket.
    """

    def __init__(self, path: str) -> None:
        import redis

        self.url = f"unix://{path}"
        self._client = redis.Redis(unix_socket_path=path)
        self.version = str(self._client.info("server")["redis_version"])

    def close(self) -> None:
        """Let go of it."""
        self._client.close()

    def memory(self) -> int:
        """Return the bytes of its data."""
        return int(self._client.info("memory")["used_memory_dataset"])

    def sent(self) -> int:
        """Return the bytes that it has sent so far."""
        return int(self._client.info("stats")["total_net_output_bytes"])

    def size(self, place: str) -> int:
        """Return the bytes of the entries of the stream that is kept at *place*."""
        stream = place.rpartition("/")[2].partition("-")[0]
        return int(self._client.memory_usage(f"llmstream:{{{stream}}}:log", samples=0) or 0)

    def used(self) -> Used:
        """Return what it has done so far."""
        info = self._client.info("everything")
        ours = [
            each for name, each in info.items()
            if name.startswith("cmdstat_") and name not in ("cmdstat_info", "cmdstat_client|setinfo")
        ]
        return Used(
            redis_commands=sum(each["calls"] for each in ours),
            redis_us=(info["used_cpu_user"] + info["used_cpu_sys"]) * 1e6,
            redis_bytes=info["total_net_input_bytes"],
        )


class Used(NamedTuple):
    """What was used up, in microseconds of CPU, commands and bytes."""

    us: float = 0.0
    events: float = 0.0
    seconds: float = 0.0
    redis_commands: float = 0.0
    redis_us: float = 0.0
    redis_bytes: float = 0.0

    def since(self, before: Used) -> Used:
        """Return what was used since *before*."""
        return Used(*(one - other for one, other in zip(self, before)))


class Site:
    """A worker that runs, and all that it needs.

    :param server: gunicorn, with one worker.
    :param loop: clients and model.
    :param upstream: the model.
    :param redis: the event log.
    """

    def __init__(self, server: LiveServer, loop: Loop, upstream: Upstream, redis: Redis) -> None:
        self.loop = loop
        self.upstream = upstream
        self.redis = redis
        self.address = server.address
        #: The smallest part of a pace that was kept while it was measured.
        self.kept = 1.0
        self._pid = server.worker_pids()[0]
        os.sched_setaffinity(self._pid, {CORES[0]})

    def memory(self) -> int:
        """Return the bytes of memory that the worker occupies."""
        return memory_bytes([self._pid])

    def files(self) -> int:
        """Return how many files it has open."""
        return len(os.listdir(f"/proc/{self._pid}/fd"))

    def waited(self) -> float:
        """Return the seconds for which the worker has waited for its core, because others had it."""
        return int(Path(f"/proc/{self._pid}/schedstat").read_text().split()[1]) / 1e9

    def client(self, path: str, **options: Any) -> Client:
        """Ask for *path*."""
        return Client(self.loop, self.address, _request(path), **options)

    def begin(self, path: str) -> str:
        """Ask for *path*, a resumable stream, leave it at once and return the address at which it is kept."""
        return self._kept(path, leave=True)[0]

    def keep(self, path: str) -> Tuple[str, List[str]]:
        """Do the same, but read it to its end, and return the ids of its events, too."""
        return self._kept(path, leave=False)

    def _kept(self, path: str, leave: bool) -> Tuple[str, List[str]]:
        with socket.create_connection(self.address, 30) as sock:
            sock.sendall(_request(path))
            data = b""
            while b"\n\n" not in data:  # the head, and the first event: it has begun
                piece = sock.recv(65536)
                if not piece:
                    raise RuntimeError(f"{path} was answered with {data[:200]!r}")
                data += piece
            if not leave:
                data += b"".join(iter(lambda: sock.recv(65536), b""))
        for line in data.partition(b"\r\n\r\n")[0].split(b"\r\n"):
            name, _, value = line.partition(b": ")
            if name.lower() == b"content-location":
                return value.decode(), re.findall(r"^id: (\S+)", data.decode(), re.MULTILINE)
        raise RuntimeError(f"{path} is not resumable: {data[:200]!r}")

    def length(self, path: str) -> int:
        """Return the bytes of the whole answer to *path*, head and all."""
        with socket.create_connection(self.address, 30) as sock:
            sock.sendall(_request(path))
            return sum(map(len, iter(lambda: sock.recv(65536), b"")))

    def until(self, done: Callable[[], bool], seconds: float, what: str) -> None:
        """Serve clients and model until *done*.

        :raises RuntimeError: if that is not within *seconds*.
        """
        if not self.loop.run_until(done, seconds):
            raise RuntimeError(f"{what} took more than {seconds:g} s")

    def all_ended(self, clients: List[Client]) -> None:
        """Wait for the end of all streams."""
        self.until(lambda: all(each.has_ended for each in clients), 60, "the end of all streams")

    def used(self, clients: List[Client]) -> Used:
        """Return what all have used so far, and the events of *clients*."""
        return self.redis.used()._replace(
            us=cpu_seconds([self._pid]) * 1e6, events=sum(each.events for each in clients),
            seconds=time.monotonic(),
        )

    def measure(self, clients: List[Client], seconds: float, meter: Optional[Meter] = None) -> Used:
        """Return what is used in so many seconds."""
        before = self.used(clients)
        if meter:
            meter.is_on = True
        self.loop.run(seconds)
        if meter:
            meter.is_on = False
        return self.used(clients).since(before)

    def settle(self) -> None:
        """Wait until the worker has nothing left to do."""
        used = self.used([])
        for _ in range(60):
            self.loop.run(0.1)
            last, used = used, self.used([])
            if used.since(last).us < 3000:
                return

    def leave(self) -> None:
        """Let all clients leave, and the model, too."""
        self.loop.leave_all()
        self.loop.run(0.1)
        self.upstream.hang_up()
        self.settle()

    @staticmethod
    def lasts(seconds: float) -> float:
        """Return the seconds that a stream of :meth:`paced` goes on for."""
        return _WARM_UP + seconds + 0.3

    def paced(
        self, streams: int, rate: float, seconds: float, options: str = "", relayed: bool = False
    ) -> Used:
        """Measure streams that send *rate* events a second each, for so many seconds; they end then.

        :raises RuntimeError: if this machine is too busy with something else for anything near that pace.
        """
        found, most = Used(), 0.0
        for attempt in range(_ATTEMPTS):
            # Who has not begun in time makes up for it, and that is cheaper.
            used = self._paced(streams, rate, seconds, options, relayed, 0.002 * 2 ** attempt)
            kept = used.events / (streams * rate * used.seconds)
            if kept > most and kept < 1.3:
                found, most = used, kept
            if 0.95 <= kept <= 1.05:
                break
        if most < 0.5:
            raise RuntimeError(
                f"this machine is too busy: {most:.0%} of {streams} times {rate:g} events/s came; end what"
                " else runs"
            )
        self.kept = min(self.kept, most)
        return found

    def _paced(
        self, streams: int, rate: float, seconds: float, options: str, relayed: bool, patience: float
    ) -> Used:
        begun = time.monotonic()
        start = begun + 0.1 + patience * streams
        lasts = self.lasts(seconds)
        clients: List[Client] = []
        for number in range(streams):
            if relayed:
                count = int((lasts + start - begun) * rate)
                path = f"/relay?stream={number}&count={count}&rate={rate:g}{options}"
            else:
                clock = f"{start + number / streams / rate:.6f},{rate:g}"
                path = f"/steady?clock={clock}&count={int(lasts * rate)}{options}"
            clients.append(self.client(path))
        self.loop.run_until(lambda: time.monotonic() >= start, 60)
        self.until(lambda: all(each.events for each in clients), 60, "the first events")
        self.loop.run(_WARM_UP)
        found = self.measure(clients, seconds)
        self.all_ended(clients)
        self.settle()
        return found


def _request(path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: benchmark\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n"
    ).encode()


@contextlib.contextmanager
def redis_server() -> Iterator[Redis]:
    """Run a Redis that writes nothing to disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/redis.sock"
        command = [
            "redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--appendonly", "no",
            "--dir", folder,
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_until(lambda: os.path.exists(path), 10, "redis-server to start")
            redis = Redis(path)
            try:
                yield redis
            finally:
                redis.close()
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def site(redis: Redis) -> Iterator[Site]:
    """Run a worker that has just been started."""
    with Loop() as loop:
        upstream = Upstream(loop)
        environment = {"BENCHMARK_UPSTREAM": upstream.url, "BENCHMARK_EVENT_LOG": redis.url}
        with gunicorn_server(
            "benchmarks.apps.scaling:app", cwd=_ROOT, config_lines=_GUNICORN, env=environment
        ) as server:
            yield Site(server, loop, upstream, redis)


def kernel_bytes() -> Optional[int]:
    """Return the bytes of the kernel's own objects for one open connection; ``None`` if it does not say.

    Without what waits in its buffers, which is next to nothing for a stream whose reader keeps up.
    """
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path("/proc/slabinfo").read_text().splitlines()]
        sizes = {row[0]: int(row[3]) for row in rows if row[0] in _KERNEL_OBJECTS}
        if "TCP" in sizes:
            return sum(sizes.values())
    return None
