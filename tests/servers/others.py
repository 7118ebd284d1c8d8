"""Starts WSGI servers other than gunicorn, each in a process of its own, serving ``apps/served.py``."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Callable, Iterator, List, Mapping, NamedTuple

import flask
import pytest
from core import APPS, SERVED, free_port
from variants import program

import flask_llmstream
from flask_llmstream.testing import wait_until

#: Where Debian's uWSGI and Apache, with a Python of their own, find what this Python has.
PATHS = [str(APPS), str(Path(flask_llmstream.__file__).parents[1]), str(Path(flask.__file__).parents[1])]
#: The Python that those two are built for.
DEBIAN_PYTHON = (3, 11)
_UWSGI_PLUGINS = Path("/usr/lib/uwsgi/plugins")
_APACHE_MODULES = Path("/usr/lib/apache2/modules")


class Command(NamedTuple):
    """How a server is started, and the signal that asks it to end."""

    line: List[str]
    env: Mapping[str, str] = {}
    stops_with: int = signal.SIGTERM


#: Takes a free port and an empty folder.
Write = Callable[[int, Path], Command]


class OtherServer:
    """A running server; :func:`other_server` starts one."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log_path: Path, stops_with: int) -> None:
        self.process = process
        self.port = port
        self._log_path = log_path
        self._stops_with = stops_with

    def log(self) -> str:
        """Return everything that the server has written so far."""
        return self._log_path.read_text(errors="replace")

    def connect(self, timeout: float = 10.0) -> socket.socket:
        """Return a new connection to the server."""
        sock = socket.create_connection(("127.0.0.1", self.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def ask_to_end(self) -> None:
        """Ask the server to end, gracefully if it can."""
        os.kill(self.process.pid, self._stops_with)

    def has_ended(self) -> bool:
        """Return whether the process has ended, and leave it to be waited for."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def is_up(self) -> bool:
        """Return whether connections are taken; fail where the process has ended."""
        assert not self.has_ended(), f"{self.process.args!r} has ended:\n{self.log()}"
        try:
            self.connect(1.0).close()
        except OSError:
            return False
        return True


@contextlib.contextmanager
def other_server(write: Write, notes: Path) -> Iterator[OtherServer]:
    """Run what *write* describes on a free port of 127.0.0.1 while the block lasts.

    :param notes: what ``LLMSTREAM_TEST_NOTES`` shall name.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="llmstream-server-") as name:
        os.chmod(name, 0o755)
        log_path = Path(name, "log")
        command = write(port, Path(name))
        environment = dict(os.environ, LLMSTREAM_TEST_NOTES=str(notes), **command.env)
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command.line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                env=environment, start_new_session=True, cwd=name,
            )
        server = OtherServer(process, port, log_path, command.stops_with)
        try:
            wait_until(server.is_up, 20.0, lambda: f"{command.line[0]} to listen:\n{server.log()}")
            yield server
        except BaseException:
            print(f"--- log of {' '.join(command.line)}\n{server.log()}---", file=sys.stderr)
            raise
        finally:
            if not server.has_ended():
                process.terminate()
                with contextlib.suppress(AssertionError):
                    wait_until(server.has_ended, 1.0)
            # A zombie still owns the number of its group, so this can hit nobody else.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def _python(code: str) -> Write:
    """A server that a few lines of Python start; ``app`` and ``port`` are there."""

    def write(port: int, folder: Path) -> Command:
        path = folder / "serve.py"
        path.write_text(f"port = {port}\n" + textwrap.dedent(code))
        return Command([sys.executable, str(path)], {"PYTHONPATH": os.pathsep.join(PATHS)})

    return write


pywsgi = _python(
    """
    from gevent import monkey; monkey.patch_all()
    import gevent, signal
    from gevent.pywsgi import WSGIServer
    from flask_llmstream.draining import drain
    from served import app
    server = WSGIServer(("127.0.0.1", port), app, spawn=1000)
    def stop():
        server.close()
        drain()
        server.stop(1)
    gevent.signal_handler(signal.SIGTERM, stop)
    server.serve_forever()
    """
)
waitress = _python(
    """
    import signal
    from waitress import serve
    from flask_llmstream.draining import drain
    from served import app
    def stop(number, frame):
        drain()
        raise SystemExit
    signal.signal(signal.SIGTERM, stop)
    serve(app, host="127.0.0.1", port=port, threads=16)
    """
)
wsgiref = _python(
    """
    import socketserver
    from wsgiref.simple_server import WSGIServer, make_server
    from served import app
    class Threading(socketserver.ThreadingMixIn, WSGIServer):
        daemon_threads = True
    make_server("127.0.0.1", port, app, Threading).serve_forever()
    """
)


def flask_run(port: int, folder: Path) -> Command:
    """The development server, as developers start it."""
    command = [sys.executable, "-m", "flask", "run", "--port", str(port), "--no-reload"]
    return Command(command, {"FLASK_APP": str(SERVED)})


def uwsgi(*options: str, listen: str = "--http-socket") -> Write:
    """uWSGI with these *options*; asked to end by the hook that its manual shows."""

    def write(port: int, folder: Path) -> Command:
        _need_debians_python("uWSGI")
        line = [
            program("uwsgi-core"), "--plugins-dir", str(_UWSGI_PLUGINS),
            "--plugin", "python311", "--plugin", "http", listen, f"127.0.0.1:{port}", "--master",
            "--wsgi-file", str(SERVED), "--callable", "app", "--enable-threads", "--need-app",
            "--hook-master-start", "unix_signal:15 gracefully_kill_them_all",
            "--worker-reload-mercy", "3",
        ]
        for path in PATHS:
            line += ["--pythonpath", path]
        return Command(line + list(options))

    return write


uwsgi_threads = uwsgi("--threads", "16")
uwsgi_router = uwsgi("--threads", "16", listen="--http")
uwsgi_gevent = uwsgi("--plugin", "gevent_python311", "--gevent", "50", "--gevent-monkey-patch")


def mod_wsgi(daemon: bool) -> Write:
    """Apache with mod_wsgi, in daemon or in embedded mode."""

    def write(port: int, folder: Path) -> Command:
        _need_debians_python("mod_wsgi")
        lines = [
            f"LoadModule {name}_module {_APACHE_MODULES}/mod_{file}.so"
            for name, file in [("mpm_event", "mpm_event"), ("authz_core", "authz_core"), ("wsgi", "wsgi")]
        ]
        lines += [
            f'ServerRoot "{folder}"', "ServerName localhost", f"Listen 127.0.0.1:{port}",
            f'PidFile "{folder}/pid"', 'ErrorLog "/dev/stderr"', f'DefaultRuntimeDir "{folder}"',
            "StartServers 1", "ServerLimit 1", "ThreadsPerChild 20", "MaxRequestWorkers 20",
            "GracefulShutdownTimeout 3", f'WSGISocketPrefix "{folder}/wsgi"',
            f'WSGIScriptAlias / "{SERVED}"', "WSGICallableObject app", "WSGIApplicationGroup %{GLOBAL}",
            "<Location />", "Require all granted", "</Location>",
        ]
        if daemon:
            paths = ":".join(PATHS)
            lines += [
                f'WSGIDaemonProcess served processes=1 threads=16 python-path="{paths}" shutdown-timeout=3'
                f' home="{folder}"',
                "WSGIProcessGroup served",
            ]
        else:
            lines.append(f'WSGIPythonPath "{":".join(PATHS)}"')
        config = folder / "apache.conf"
        config.write_text("\n".join(lines + [""]))
        line = [program("apache2"), "-f", str(config), "-DFOREGROUND"]
        if os.geteuid() == 0:
            # It refuses to serve as root. As somebody else it must still reach this tree.
            rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
            line = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *rights, *line]
        return Command(line, {}, signal.SIGWINCH)

    return write


def _need_debians_python(what: str) -> None:
    if sys.version_info[:2] != DEBIAN_PYTHON:
        pytest.skip(f"Debian's {what} runs Python {DEBIAN_PYTHON}, and cannot use what this one has")
