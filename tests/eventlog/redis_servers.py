"""Redis servers that tests start, stop and start again."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest

from flask_llmstream.testing import wait_until
from flask_llmstream.testing.logs import new_id

#: Slots of a cluster.
SLOTS = 16384


def free_port() -> int:
    """Return a port that nobody uses; a cluster's server wants the one 10,000 above it, too."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port: int = sock.getsockname()[1]
            if port <= 55535:
                return port


class Server:
    """A redis-server on one port that keeps nothing."""

    def __init__(self, folder: Path, *options: str) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not installed (Debian: apt-get install redis-server)", pytrace=False)
        self.port = free_port()
        self.folder = folder
        address = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", str(folder / "s")]
        self._command: List[str] = [program, *address, "--save", "", "--dir", str(folder), *options]
        self._process: Optional["subprocess.Popen[bytes]"] = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def hasty_url(self) -> str:
        """The URL of a log that does not wait for long."""
        return f"{self.url}?timeout=0.5"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._answers, 20.0, lambda: f"redis-server: {(self.folder / 'log').read_text()}")

    def _answers(self) -> bool:
        try:
            return self.say("PING") is True
        except OSError:
            return False

    def say(self, *command: Any) -> Any:
        """Run one command, over a connection of its own."""
        import redis

        try:
            client = redis.Redis(port=self.port, socket_timeout=5)
            try:
                return client.execute_command(*command)
            finally:
                client.connection_pool.disconnect()
        except redis.ConnectionError as error:
            raise OSError(error) from error

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Have it accept connections, and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have it answer again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


def begin(log: Any, **options: Any) -> str:
    """Begin a stream; return its id."""
    stream = new_id()
    given: Dict[str, Any] = dict(worker="w", keep=60.0, max_events=10000, max_bytes=1 << 20)
    given.update(options)
    log.create(stream, **given)
    return stream
