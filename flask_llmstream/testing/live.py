"""Run an app under a real gunicorn, in processes of its own, for the length of a test.

Decisions:

1. The server says when it is ready and where: it binds to port 0, and hooks in a generated
   configuration report the address and every booted worker through a pipe. No sleep, no port
   that somebody else may take first.
2. The server gets a session of its own: a Ctrl-C on the test run does not reach it, and what is
   left of it is ended as one process group, while the number of that group cannot be reused.
3. Leaving the block ends it at once, but in good order: workers leave by themselves, so that coverage
   measured in them (``COVERAGE_PROCESS_START``) is written. Asked gracefully, a gevent worker takes up
   to a second to notice, and an idle keep-alive connection, as every browser has one, holds it for the
   whole ``graceful_timeout`` and then costs it its life, and the coverage.
"""

from __future__ import annotations

import contextlib
import json as json_module
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple, Union

from flask_llmstream.testing.timing import StreamReader, read_stream, send_request, wait_until

__all__ = ["LiveServer", "gunicorn_server", "running_servers"]

_running: weakref.WeakSet[LiveServer] = weakref.WeakSet()

#: What would change gunicorn from outside of a test.
_FOREIGN_ENVIRONMENT = ("GUNICORN_CMD_ARGS", "PORT", "WEB_CONCURRENCY")

#: Hooks that report into the pipe, after those that the configuration may have itself.
_HOOKS = """
import json, os

_configured = dict(globals())


def _report(hook, args, **fact):
    if hook in _configured:
        _configured[hook](*args)
    # A short write to a pipe is atomic, whichever process it comes from.
    os.write({fd}, (json.dumps(fact) + "\\n").encode())


def when_ready(server):
    _report("when_ready", (server,), address=server.LISTENERS[0].sock.getsockname())


def post_worker_init(worker):
    _report("post_worker_init", (worker,), booted=os.getpid())


def child_exit(server, worker):
    _report("child_exit", (server, worker), ended=worker.pid)
"""


def running_servers() -> List[LiveServer]:
    """Return the live servers that have not been stopped, for reports about failed tests."""
    return sorted(_running, key=lambda server: server.pid)


class LiveServer:
    """A running gunicorn; :func:`gunicorn_server` starts one.

    :param process: gunicorn's master, the leader of a session of its own.
    :param reports: the reading end of the pipe that the hooks write to.
    :param log_path: the file that gets all output of all processes.
    :param ca_file: the certificate that the server shows, where it speaks TLS.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], reports: int, log_path: Path, ca_file: Optional[str]
    ) -> None:
        #: The master process.
        self.process = process
        #: ``(host, port)`` that the server listens on.
        self.address: Tuple[str, int] = ("", 0)
        self._reports = reports
        self._pending = b""
        self._workers: Set[int] = set()
        self._log_path = log_path
        self._ca_file = ca_file
        os.set_blocking(reports, False)
        _running.add(self)

    @property
    def pid(self) -> int:
        """Process id of the master."""
        return self.process.pid

    @property
    def port(self) -> int:
        """Port that the server listens on."""
        return self.address[1]

    @property
    def url(self) -> str:
        """Where the app is, without a slash at the end."""
        return f"{'https' if self._ca_file else 'http'}://{self.address[0]}:{self.port}"

    def log(self) -> str:
        """Return everything that the server's processes have written so far."""
        return self._log_path.read_text(errors="replace")

    def wait_for_log(self, text: str, timeout: float = 5.0) -> str:
        """Wait until *text* is in the log, and return the log.

        :raises AssertionError: if it is not there after *timeout* seconds; shows the log.
        """
        wait_until(
            lambda: text in self.log(), timeout, lambda: f"{text!r} in the server's log:\n{self.log()}"
        )
        return self.log()

    def worker_pids(self) -> List[int]:
        """Return the process ids of the workers that have booted and not ended."""
        while True:
            try:
                data = os.read(self._reports, 65536)
            except BlockingIOError:
                break
            if not data:
                break
            self._pending += data
        *lines, self._pending = self._pending.split(b"\n")
        for line in lines:
            fact: Dict[str, Any] = json_module.loads(line.decode())
            if "address" in fact:
                self.address = (fact["address"][0], fact["address"][1])
            elif "booted" in fact:
                self._workers.add(fact["booted"])
            else:
                self._workers.discard(fact["ended"])
        return sorted(self._workers)

    def connect(self, receive_buffer: Optional[int] = None, timeout: float = 10.0) -> socket.socket:
        """Open a bare connection, TLS where the server speaks it.

        :param receive_buffer: size of the kernel's buffer in bytes, to be a slow reader.
            Defaults to the system's.
        :param timeout: seconds that any operation on the socket may take. Defaults to 10.
        """
        sock = socket.socket()
        try:
            sock.settimeout(timeout)
            if receive_buffer is not None:
                # Before connect(), or the window that TCP announces is not bound by it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect(self.address)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ca_file:
                context = ssl.create_default_context(cafile=self._ca_file)
                context.check_hostname = False
                sock = context.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def request(self, path: str, timeout: float = 10.0, **request: Any) -> StreamReader:
        """Send one request on a new connection and return its answer, whose head has arrived.

        :param path: the request target.
        :param timeout: seconds of silence after which a read fails. Defaults to 10.
        :param request: what :func:`~flask_llmstream.testing.send_request` takes.

        The connection stays open until the reader is closed; it is a context manager.
        """
        sock = self.connect(timeout=timeout)
        try:
            send_request(sock, path, **request)
            return read_stream(sock, timeout, head=request.get("method") == "HEAD")
        except BaseException:
            sock.close()
            raise

    def stop(self, graceful: bool = True, timeout: float = 15.0) -> int:
        """End the server with all its processes and return the exit status of its master.

        :param graceful: let open streams end until gunicorn's ``graceful_timeout``; otherwise
            workers leave at once and run no ``finally``. Defaults to True.
        :param timeout: seconds after which whatever is left is killed. Defaults to 15.
        """
        if self.process.returncode is None:
            # Not poll(): it would reap the master, and free the number of its group, too early.
            if not self._has_ended():
                os.kill(self.pid, signal.SIGTERM if graceful else signal.SIGQUIT)
            deadline = time.monotonic() + timeout
            while time.monotonic() < deadline and not self._has_ended():
                time.sleep(0.01)
            # A zombie still owns the number of its group, so this can hit nobody else.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()
        if self in _running:
            _running.discard(self)
            os.close(self._reports)
        return self.process.returncode

    def _has_ended(self) -> bool:
        """Return whether the master has ended, and leave it to be waited for."""
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _is_ready(self, workers: int) -> bool:
        return len(self.worker_pids()) >= workers and self.port != 0

    def _wait_until_ready(self, workers: int, timeout: float) -> None:
        wait_until(
            lambda: self._is_ready(workers) or self._has_ended(),
            timeout,
            lambda: f"gunicorn to boot {workers} worker(s):\n{self.log()}",
        )
        if not self._is_ready(workers):
            raise AssertionError(f"gunicorn ended before it was ready:\n{self.log()}")


@contextlib.contextmanager
def gunicorn_server(
    app: Union[str, Path],
    worker: str = "gevent",
    workers: int = 1,
    threads: Optional[int] = None,
    *,
    env: Optional[Mapping[str, Optional[str]]] = None,
    config: Union[str, Path, None] = None,
    config_lines: str = "",
    certfile: Optional[str] = None,
    keyfile: Optional[str] = None,
    cwd: Union[str, Path, None] = None,
    python: str = sys.executable,
    timeout: float = 30.0,
) -> Iterator[LiveServer]:
    """Run *app* under gunicorn on a free port of 127.0.0.1 while the block lasts.

    :param app: ``"module:name"`` as on gunicorn's command line, or the path of a Python file
        whose ``app`` is meant.
    :param worker: gunicorn's worker class: ``gevent``, ``gthread``, ``sync`` or
        ``gevent_pywsgi``. Defaults to ``gevent``.
    :param workers: number of worker processes. Defaults to 1.
    :param threads: threads of each ``gthread`` worker. Defaults to gunicorn's default.
    :param env: changes to the environment; ``None`` removes a name.
    :param config: a configuration file of yours to start from; the arguments win over it.
    :param config_lines: more lines of gunicorn configuration, which win over the arguments.
        ``graceful_timeout`` is 2 s unless they say otherwise.
    :param certfile: path of a certificate: the server speaks TLS.
    :param keyfile: path of its key.
    :param cwd: working directory. Defaults to the current one.
    :param python: the interpreter whose gunicorn is run. Defaults to the current one.
    :param timeout: seconds in which all workers must have loaded the app. Defaults to 30.
    :raises AssertionError: if they have not; shows the log.

    The log goes to standard error where the block is left by an exception. Leaving it ends the server
    at once; ``server.stop()`` at its end lets open streams end first.
    """
    settings: Dict[str, Any] = {
        "bind": "127.0.0.1:0",
        "worker_class": worker,
        "workers": workers,
        "threads": threads,
        "graceful_timeout": 2,
        "accesslog": "-",
        "errorlog": "-",
        # One path in the home directory for all servers (gunicorn 25 and newer; unknown before).
        "control_socket_disable": True,
        "certfile": certfile,
        "keyfile": keyfile,
    }
    target = str(app)
    if isinstance(app, Path):
        settings["pythonpath"] = str(app.resolve().parent)
        target = f"{app.stem}:app"
    environment = {key: value for key, value in os.environ.items() if key not in _FOREIGN_ENVIRONMENT}
    for key, text in (env or {}).items():
        environment.pop(key, None)
        if text is not None:
            environment[key] = text

    with tempfile.TemporaryDirectory(prefix="llmstream-live-") as folder:
        log_path = Path(folder, "log")
        config_path = Path(folder, "gunicorn.conf.py")
        reports, fd = os.pipe()
        lines = [] if config is None else [Path(config).read_text()]
        lines += [f"{key} = {value!r}" for key, value in settings.items() if value is not None]
        config_path.write_text("\n".join(lines + [config_lines, _HOOKS.format(fd=fd)]))
        command = [python, "-m", "gunicorn.app.wsgiapp", "-c", str(config_path), target]
        try:
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=None if cwd is None else str(cwd),
                    env=environment,
                    pass_fds=(fd,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(reports)
            raise
        finally:
            os.close(fd)
        server = LiveServer(process, reports, log_path, certfile)
        try:
            server._wait_until_ready(workers, timeout)
            yield server
        except BaseException:
            print(f"--- log of {' '.join(command)}\n{server.log()}---", file=sys.stderr)
            raise
        finally:
            server.stop(graceful=False)
