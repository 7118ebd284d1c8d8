"""Servers that run: started, waited for, measured, asked and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

from benchmarks.peers.environments import ROOT, Missing
from benchmarks.peers.servers import Peer, Place, surroundings
from benchmarks.processes import CORES, cpu_seconds, family, memory_bytes, on_core

__all__ = ["Running", "running"]

#: Seconds that a server may take to answer for the first time.
_PATIENCE = 90.0


class Running:
    """A peer that answers.

    :param peer: what it is.
    :param process: what was started.
    :param place: where it listens.
    """

    def __init__(self, peer: Peer, process: subprocess.Popen[bytes], place: Place) -> None:
        self.peer = peer
        self.name = peer.name
        self.address = ("127.0.0.1", place.port)
        self._process = process
        self._log = place.folder / "log"

    def wait(self) -> None:
        """Wait until it answers.

        :raises Missing: if it does not.
        """
        deadline = time.monotonic() + _PATIENCE
        url = f"http://127.0.0.1:{self.address[1]}{self.peer.ready}"
        while True:
            with contextlib.suppress(OSError, urllib.error.URLError):
                urllib.request.urlopen(url, timeout=5).read()
                return
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = " ".join(self.log().replace(str(ROOT) + os.sep, "").split())
                raise Missing(f"does not start: {said[-300:] or 'it says nothing'}")
            time.sleep(0.05)

    def log(self) -> str:
        """Return what it has printed."""
        return self._log.read_text(errors="replace")

    def cpu(self) -> float:
        """Return the seconds of CPU that its processes have used so far."""
        return cpu_seconds(family(self._process.pid))

    def memory(self) -> int:
        """Return the bytes that its processes occupy."""
        return memory_bytes(family(self._process.pid))

    def get(self, path: str) -> bytes:
        """Return a request for *path*."""
        return (
            f"GET {path} HTTP/1.1\r\nHost: benchmark\r\nAccept: text/event-stream\r\n"
            "Connection: close\r\n\r\n"
        ).encode()

    def ask_model(self, query: str) -> bytes:
        """Return a request for what the model called *query* says, passed on by this server."""
        relay = self.peer.relay
        assert relay is not None, self.name
        if not relay.startswith("POST "):
            return self.get(relay + query)
        body = json.dumps(
            {"model": query, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
        ).encode()
        return (
            f"{relay} HTTP/1.1\r\nHost: benchmark\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        ).encode() + body

    def settle(self, seconds: float = 10.0) -> None:
        """Wait until it has nothing left to do, but no longer than *seconds*."""
        deadline = time.monotonic() + seconds
        cpu = self.cpu()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            last, cpu = cpu, self.cpu()
            if cpu - last < 0.003:
                return

    def end(self) -> None:
        """End it at once: nobody waits for its answers, and it has nothing to put in order."""
        # Its workers too; the number of the group cannot be reused before wait().
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextlib.contextmanager
def running(peers: Sequence[Peer], upstream: str) -> Iterator[Tuple[List[Running], Dict[str, str]]]:
    """Run *peers*, each on the servers' core.

    :param upstream: the model that they ask, up to and with ``/v1``.
    :returns: those that run, and why the others do not.
    """
    missing: Dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        found: List[Running] = []
        for number, peer in enumerate(peers):
            place = Place(_free_port(), upstream, Path(folder) / str(number))
            place.folder.mkdir()
            try:
                found.append(_start(peer, place, stack))
                stack.callback(found[-1].end)
            except Missing as error:
                missing[peer.name] = str(error)
        answering: List[Running] = []
        for each in found:
            try:
                each.wait()
                answering.append(each)
            except Missing as error:
                missing[each.name] = str(error)
        for name, reason in missing.items():
            print(f"... left out: {name}: {reason}", file=sys.stderr, flush=True)
        yield answering, missing


def _start(peer: Peer, place: Place, stack: contextlib.ExitStack) -> Running:
    command = peer.command(place)
    log = stack.enter_context((place.folder / "log").open("wb"))
    with on_core(CORES[0]):
        process = subprocess.Popen(
            command, cwd=ROOT, env=surroundings(place), stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )
    return Running(peer, process, place)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
