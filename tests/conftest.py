"""Fixtures for real things: the local model, a redis-server, a certificate; and what no test may leave."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import pytest
from hypothesis import HealthCheck, settings

from flask_llmstream.demo import model as model_program
from flask_llmstream.testing import wait_until
from flask_llmstream.testing.live import running_servers

ROOT = Path(__file__).resolve().parent.parent

#: Threads of the library that live as long as the process.
LASTING_THREADS = ("llmstream-watcher", "llmstream-ticker", "llmstream-journal")

# An example that takes long says that the machine is busy, so Hypothesis judges none by its time. And every
# Hypothesis, not the newer ones alone, takes the same examples each time where a change is judged.
settings.register_profile(
    "here",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("here")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:
    """Show the logs of the live servers under a test that failed."""
    outcome: Any = (yield)
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        for server in running_servers():
            report.sections.append((f"log of gunicorn at {server.url}", server.log()))


@pytest.fixture(autouse=True)
def no_leaked_threads() -> Iterator[None]:
    """Fail a test that leaves a thread running."""
    before = set(threading.enumerate())
    yield

    def leaked() -> List[threading.Thread]:
        return [
            each for each in threading.enumerate()
            if each not in before and each.name not in LASTING_THREADS
        ]

    wait_until(lambda: not leaked(), 20.0, lambda: f"threads of this test to end: {leaked()}")


@pytest.fixture(autouse=True, scope="session")
def heeding_ctrl_c() -> Iterator[None]:
    """Undo what a shell does to a test run in the background: children would ignore SIGINT, too."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class LocalModel(NamedTuple):
    """A running ``flask_llmstream.demo.model``."""

    #: What to give as ``base_url``.
    url: str

    def get(self, path: str, body: Optional[Dict[str, Any]] = None) -> Any:
        """Return the JSON that the server answers at *path*; POST where there is a *body*."""
        connection = http.client.HTTPConnection(self.url.split("/")[2], timeout=60)
        try:
            connection.request("GET" if body is None else "POST", path, body and json.dumps(body))
            answer = connection.getresponse()
            text = answer.read().decode()
            assert answer.status == 200, text
            return json.loads(text)
        finally:
            connection.close()

    def busy_slots(self) -> int:
        """Return how many answers the model is working on."""
        return sum(slot["is_processing"] for slot in self.get("/slots"))


@pytest.fixture(scope="session")
def local_model() -> Iterator[LocalModel]:
    """The real model, loaded once; ``LLMSTREAM_LOCAL_PYTHON`` may name the Python that has it."""
    # By its path for another Python, which need not know the package.
    other = os.environ.get("LLMSTREAM_LOCAL_PYTHON")
    program = [other, model_program.__file__] if other else [sys.executable, "-m", model_program.__name__]
    process = subprocess.Popen(
        [*program, "--port", "0", "--stop-on-eof"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = process.stdout.readline().decode().strip()
        if not line.startswith("ready "):
            pytest.fail(f"the local model does not start: {line}", pytrace=False)
        yield LocalModel(line.split()[1])
    finally:
        process.terminate()
        process.wait(20)
        process.stdin.close()
        process.stdout.close()


class RedisServer(NamedTuple):
    """A running redis-server that keeps nothing."""

    port: int

    @property
    def url(self) -> str:
        """What to give to ``Redis.from_url``."""
        return f"redis://127.0.0.1:{self.port}/0"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: Any) -> Iterator[RedisServer]:
    """A redis-server of our own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed (Debian: apt-get install redis-server)", pytrace=False)
    folder = tmp_path_factory.mktemp("redis")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *options], stdout=log, stderr=log)
    try:
        wait_until(
            lambda: process.poll() is not None or _pings(port),
            20.0,
            lambda: f"redis-server:\n{(folder / 'log').read_text()}",
        )
        assert process.returncode is None, (folder / "log").read_text()
        yield RedisServer(port)
    finally:
        process.terminate()
        process.wait(20)


def _pings(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as sock:
            sock.sendall(b"PING\r\n")
            return sock.recv(16) == b"+PONG\r\n"
    except OSError:
        return False


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: Any) -> Tuple[str, str]:
    """Paths of a self-signed certificate for 127.0.0.1 and of its key."""
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(
        [*command, "-keyout", key, "-out", cert], check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return cert, key


@pytest.fixture
def upstream() -> Iterator[Any]:
    """A scripted model; the test sets its ``script``."""
    from flask_llmstream.testing.upstreams import ScriptedUpstream
    from flask_llmstream.upstream.session import shared_session

    with ScriptedUpstream() as upstream:
        yield upstream
    assert not upstream.errors
    # urllib3 1 leaves idle connections to the garbage, which warns of them.
    shared_session().close()
