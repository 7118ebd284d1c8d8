"""The event logs of the soak, and what is left in them."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from flask_llmstream.testing import wait_until

__all__ = ["Log", "open_log"]


class Log(NamedTuple):
    """A running event log."""

    url: str
    #: Whether a stream can be read in a process that has not begun it.
    shares: bool
    path: Optional[Path] = None
    port: int = 0

    def left(self, due: float = 0.0) -> Dict[str, int]:
        """Return what is in it: streams, those that are open or past their time, bytes and so on.

        :param due: what is past its time was so then. Defaults to a second ago.
        """
        if self.path is not None:
            return _in_sqlite(self.path, due or time.time() - 1)
        if self.port:
            return _in_redis(self.port)
        return {}  # is in the workers, and shows there

    def names(self) -> List[str]:
        """Return the keys of streams in Redis, and how many seconds each has still."""
        if not self.port:
            return []
        import redis

        with contextlib.closing(redis.Redis(port=self.port, socket_timeout=10)) as client:
            keys = sorted(key for key in client.scan_iter(count=1000) if b"{" in key)
            return [f"{key.decode()}, for {client.ttl(key)} s" for key in keys]


def _in_sqlite(path: Path, due: float) -> Dict[str, int]:
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)) as db:
        def one(query: str, *values: Any) -> int:
            return int(db.execute(query, values).fetchone()[0])

        pages = one("PRAGMA page_count") - one("PRAGMA freelist_count")
        return {
            "streams": one("SELECT count(*) FROM streams"),
            "open": one("SELECT count(*) FROM streams WHERE state = 'open'"),
            "overdue": one("SELECT count(*) FROM streams WHERE until < ?", due),
            "entries without a stream": one(
                "SELECT count(*) FROM entries WHERE stream NOT IN (SELECT key FROM streams)"
            ),
            "claims": one("SELECT count(*) FROM claims"),
            "bytes in use": pages * one("PRAGMA page_size"),
            "bytes of the file": path.stat().st_size,
        }


def _in_redis(port: int) -> Dict[str, int]:
    import redis

    client = redis.Redis(port=port, socket_timeout=10)
    try:
        keys = list(client.scan_iter(count=1000))
        forever = [key for key in keys if client.ttl(key) == -1]
        streams = {key.rpartition(b":")[0] for key in keys if b"{" in key}
        return {
            "streams": len(streams),
            "open": len({key.rpartition(b":")[0] for key in forever}),
            "claims": sum(key.startswith(b"llmstream:claim") for key in keys),
            "keys": len(keys),
            "bytes in use": int(client.info("memory")["used_memory"]),
            "clients": int(client.info("clients")["connected_clients"]),
        }
    finally:
        client.close()


@contextlib.contextmanager
def open_log(kind: str, folder: Path) -> Iterator[Log]:
    """Make an event log: ``memory``, ``sqlite`` or ``redis``."""
    if kind == "memory":
        yield Log("memory://", False)
    elif kind == "sqlite":
        path = folder / "streams.db"
        yield Log(f"sqlite:///{path}", True, path)
    else:
        with _redis_server(folder) as port:
            yield Log(f"redis://127.0.0.1:{port}/0", True, port=port)


@contextlib.contextmanager
def _redis_server(folder: Path) -> Iterator[int]:
    program = shutil.which("redis-server")
    if program is None:
        raise SystemExit("redis-server is not installed (Debian: apt-get install redis-server)")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = int(sock.getsockname()[1])
    with (folder / "redis.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)],
            stdout=log, stderr=log,
        )

    def answers() -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        return False

    try:
        wait_until(answers, 20, "redis-server")
        yield port
    finally:
        process.terminate()
        process.wait(10)
