"""What a client gets, and what is left of it in the server, in words for the page."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple
from urllib.parse import urlencode

from asking import ask, events_of

from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until

APP = Path(__file__).with_name("apps") / "faulty.py"

_numbers = itertools.count(1)
_STREAM = re.compile(r"stream [0-9a-f]{16}")
#: What no client may see.
_SECRETS = (b"sk-live", b"patient", b"Traceback", b"127.0.0.1")


@contextlib.contextmanager
def serving(worker: str = "gevent", workers: int = 1, **options: Any) -> Iterator[LiveServer]:
    """Run the app; *options* without a meaning for :func:`gunicorn_server` are settings."""
    known = ("config_lines", "env", "threads", "python")
    served = {name: options.pop(name) for name in known if name in options}
    settings = dict({"heartbeat_interval": 0.5, "status_hold": 1.0}, **options)
    env = dict(served.pop("env", {}), SETTINGS=json.dumps(settings))
    served.setdefault("threads", 16)
    served["config_lines"] = "accesslog = None\n" + served.get("config_lines", "")
    with gunicorn_server(APP, worker, workers, env=env, **served) as server:
        yield server


def new_key() -> str:
    """Return a name for the notes on one stream."""
    return f"f{next(_numbers)}"


def path_of(route: str, key: str, options: Optional[Dict[str, Any]] = None, **query: Any) -> str:
    """Return what to ask the app for."""
    fields = {name: value if isinstance(value, (str, int, float)) else json.dumps(value)
              for name, value in query.items()}
    if options:
        fields["options"] = json.dumps(options)
    return f"/{route}/{key}?{urlencode(fields)}"


class Seen(NamedTuple):
    """What came of a request since a moment, the injection of a fault mostly."""

    status: int
    body: bytes
    #: Whether the body ended as its framing wants it.
    complete: bool
    reset: bool
    #: Seconds to its end.
    took: float

    @property
    def events(self) -> List[Any]:
        return events_of(self.body)

    @property
    def text(self) -> str:
        return "".join(json.loads(each.data)["text"] for each in self.events if each.event is None)

    @property
    def end(self) -> Tuple[str, str]:
        """The terminal event's name, and its code or reason; there is one, and nothing behind it."""
        if self.status >= 400:
            return "status", json.loads(self.body.decode())["error"]["code"]
        ends = [n for n, each in enumerate(self.events) if each.event in ("done", "failed")]
        assert ends == [len(self.events) - 1], f"terminal events at {ends}: {self.body[-500:]!r}"
        said = json.loads(self.events[-1].data)
        return str(self.events[-1].event), said.get("code") or said.get("reason")

    @property
    def words(self) -> str:
        """What it was, for the page."""
        after = f"after {self.took:.1f} s"
        if not self.complete:
            return f"the connection is cut {after} ({'RST' if self.reset else 'FIN'}), with no terminal event"
        name, code = self.end
        return f"{self.status}, `{code}`, {after}" if name == "status" else f"`{name}` (`{code}`) {after}"


def see(reader: StreamReader, since: float, before: bytes = b"") -> Seen:
    """Read *reader* to its end."""
    with reader:
        body = before + reader.read()
        for secret in _SECRETS:
            assert secret not in body, body
        return Seen(reader.status, body, reader.complete, reader.reset_by_peer, time.monotonic() - since)


def begin(server: LiveServer, path: str, **request: Any) -> Tuple[StreamReader, bytes]:
    """Ask for a stream and read its first text."""
    reader = server.request(path, **dict({"timeout": 30.0}, **request))
    assert reader.status == 200, reader.read()
    return reader, b"".join(data for _, data in reader.read_until(b'{"text"'))


def notes(server: LiveServer, key: str = "none") -> Dict[str, Any]:
    found: Dict[str, Any] = ask(server, f"/notes/{key}")
    return found


def ended(server: LiveServer, key: str, timeout: float = 10.0) -> str:
    """Return the reason with which the one stream of *key* has ended."""
    last: Dict[str, Any] = {}

    def is_over() -> bool:
        last.update(notes(server, key))
        return bool(last["ends"])

    wait_until(is_over, timeout, lambda: f"the end of {key}: {last}\n{server.log()[-3000:]}")
    assert len(last["ends"]) == 1, last
    return str(last["ends"][0])


@contextlib.contextmanager
def unharmed(server: LiveServer, tracebacks: int = 0, warm: str = "", spare: int = 2) -> Iterator[None]:
    """What is inside leaves nothing behind in the server's one worker: it serves, and has its files back.

    :param warm: asked for before counting, so that what is made once is there.
    :param spare: descriptors that pools may keep.
    """
    for path in filter(None, [warm, "/plain"]):
        with server.request(path) as reader:
            reader.read()
    before, logged = notes(server), len(server.log())
    yield
    last: Dict[str, Any] = {}

    def is_as_before() -> bool:
        last.update(notes(server))
        return last["running"] == 0 and last["fds"] <= before["fds"] + spare

    wait_until(is_as_before, 15.0, lambda: f"{before} again, {last}\n{server.log()[-3000:]}")
    assert last["worker"] == before["worker"], "the worker was replaced"
    with server.request("/words/next?count=3") as reader:
        assert events_of(reader.read())[-1].event == "done"
    log = server.log()[logged:]
    assert log.count("Traceback") <= tracebacks, log


def logged(server: LiveServer, pattern: str, since: int = 0, timeout: float = 5.0) -> str:
    """Return the message in the log that *pattern* finds, with a stream's id made readable."""
    found: List[str] = []

    def is_there() -> bool:
        found[:] = [line for line in server.log()[since:].splitlines() if re.search(pattern, line)]
        return bool(found)

    wait_until(is_there, timeout, lambda: f"{pattern!r} in the log:\n{server.log()[since:][-4000:]}")
    line = re.sub(r"^(?:\[[^\]]*\] ?)*(?:[A-Z]+ [\w.]+: )?", "", found[0])
    line = re.sub(r"127\.0\.0\.1:\d+", "host:443", _STREAM.sub("stream 5f0c…", line))
    return "`" + re.sub(r"(pid:|<Worker )\d+", r"\g<1>4711", line).strip() + "`"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def model_process(*arguments: str) -> Iterator[Tuple["subprocess.Popen[bytes]", str]]:
    """Run a scripted model in a process that can be killed; yield it and its URL."""
    command = [sys.executable, "-m", "flask_llmstream.testing.upstreams", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        assert line.startswith("ready "), line
        yield process, line.split()[1]
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
