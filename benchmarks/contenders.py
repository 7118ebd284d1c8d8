"""The servers that are compared, each in its own process, and what their workers use."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Iterator, List, Sequence

from benchmarks.processes import CORES, cpu_seconds, memory_bytes
from flask_llmstream.testing import LiveServer, gunicorn_server

__all__ = ["NAMES", "Contender", "contenders", "pin_clients", "upstream"]

_ROOT = Path(__file__).resolve().parent.parent
_GUNICORN = "worker_connections = 20000\nbacklog = 2048\naccesslog = None\n"

#: The contenders, by the names that the report has for them, and their apps.
_APPS = {
    "bare": "bare", "bare again": "bare", "bare + context": "bare", "ours": "ours",
    # For what one feature costs.
    "ours, plain": "ours", "ours, plain again": "ours", "ours, logged": "ours",
}
_QUERIES = {"bare + context": "context=1", "ours, logged": "resumable=1"}
NAMES = ("bare", "bare again", "bare + context", "ours")


class Contender:
    """One app on a server of its own.

    :param name: how it is called in the report.
    :param server: where it runs.
    :param query: what its requests carry in addition.
    """

    def __init__(self, name: str, server: LiveServer, query: str = "") -> None:
        self.name = name
        self.server = server
        self.pid = server.worker_pids()[0]
        self._query = query

    def target(self, path: str) -> str:
        """Return the request target of *path* here."""
        if not self._query:
            return path
        return f"{path}{'&' if '?' in path else '?'}{self._query}"

    def cpu(self) -> float:
        """Return the seconds of CPU, user and system, that the worker has used so far."""
        return cpu_seconds([self.pid])

    def memory(self) -> int:
        """Return the bytes of memory that the worker occupies (PSS: what it shares counts in part)."""
        return memory_bytes([self.pid])

    def ask(self, path: str) -> Any:
        """Return the JSON that *path* answers with."""
        with urllib.request.urlopen(self.server.url + path, timeout=30) as answer:
            return json.load(answer)


@contextlib.contextmanager
def contenders(
    upstream_url: str, names: Sequence[str] = NAMES, event_log: str = "memory://"
) -> Iterator[List[Contender]]:
    """Start a server for each of the contenders called *names*.

    :param event_log: where resumable streams are kept.
    """
    with contextlib.ExitStack() as stack:
        found: List[Contender] = []
        for name in names:
            server = stack.enter_context(gunicorn_server(
                f"benchmarks.apps.{_APPS[name]}:app", cwd=_ROOT, config_lines=_GUNICORN,
                env={"BENCHMARK_UPSTREAM": upstream_url, "BENCHMARK_EVENT_LOG": event_log},
            ))
            found.append(Contender(name, server, _QUERIES.get(name, "")))
            os.sched_setaffinity(found[-1].pid, {CORES[0]})
        yield found
        for each in found:
            os.kill(each.server.pid, signal.SIGQUIT)  # all at once, before they are waited for


@contextlib.contextmanager
def upstream() -> Iterator[str]:
    """Run :mod:`benchmarks.upstream` and give its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.upstream"],
        cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.stdin.close()


def pin_clients() -> None:
    """Keep this process, and what it starts from now on, off the core of the workers."""
    os.sched_setaffinity(0, {CORES[-1]})
