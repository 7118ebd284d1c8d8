"""``flask-llmstream demo``: a local model and a chat that streams from it, ready in seconds."""

from __future__ import annotations

import argparse
import errno
import http.client
import importlib.util
import os
import socket
import sys
import sysconfig
from pathlib import Path
from typing import List, Mapping, Optional, Sequence

from flask_llmstream.demo.processes import DemoError, Process, StopFlag, Stopped

__all__ = ["main", "shipped"]

#: Seconds that open streams get to say goodbye when the demo stops.
_GOODBYE = 3

_OTHER_SERVER = """
To go on, point the demo at any OpenAI-compatible server (OpenAI, Ollama, vLLM, ...):

    LLMSTREAM_UPSTREAM_URL=http://127.0.0.1:11434/v1 LLMSTREAM_MODEL=llama3.2 flask-llmstream demo
    LLMSTREAM_UPSTREAM_URL=https://... LLMSTREAM_UPSTREAM_KEY=... LLMSTREAM_MODEL=... flask-llmstream demo
"""

_READY = """\
==> ready: {address}   (Ctrl-C stops everything)

    curl -N {address}chat -H 'Content-Type: application/json' \\
         -d '{{"messages": [{{"role": "user", "content": "Hello"}}]}}'
"""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the demo until SIGINT, SIGTERM or SIGHUP and return an exit status.

    :param arguments: of the command line. Defaults to those of the process.

    Environment: ``LLMSTREAM_UPSTREAM_URL``, ``LLMSTREAM_UPSTREAM_KEY`` and ``LLMSTREAM_MODEL`` name
    an OpenAI-compatible server to use instead of the local model; ``LLMSTREAM_LOCAL_PYTHON`` is the
    interpreter that the local model is installed for. Defaults to this one.
    """
    parser = argparse.ArgumentParser(
        prog="flask-llmstream demo", description="Start a local model and a chat that streams from it."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    options = parser.parse_args(arguments)
    stop = StopFlag()
    processes: List[Process] = []
    try:
        _run(options.host, options.port, stop, processes)
    except Stopped:
        _say("\n==> stopping\n")
    except DemoError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    finally:
        for process in reversed(processes):
            process.stop(timeout=_GOODBYE + 2)
    return 0


def shipped(name: str) -> Path:
    """Return the path of a file that belongs to the project but not to the package.

    :param name: its path in the project, such as ``examples/chat/app.py``.
    :raises DemoError: if it is neither beside the package nor installed with it.
    """
    checkout = Path(__file__).resolve().parent.parent.parent
    for folder in (checkout, Path(sysconfig.get_path("data"), "share", "flask-llmstream")):
        if (folder / name).is_file():
            return folder / name
    raise DemoError(f"{name} is not installed; run the demo from a checkout of the project: make demo")


def _run(host: str, port: int, stop: StopFlag, processes: List[Process]) -> None:
    """Start everything, and return only by an exception."""
    app = shipped("examples/chat/app.py")
    config = shipped("gunicorn.conf.py")
    for package in ("gunicorn", "gevent"):
        if importlib.util.find_spec(package) is None:
            raise DemoError(f"{package} is not installed: pip install 'flask-llmstream[gunicorn]'")
    port = _free_port(host, port)
    environment = dict(os.environ)
    if environment.get("LLMSTREAM_UPSTREAM_URL"):
        _check_upstream(environment)
    else:
        environment["LLMSTREAM_UPSTREAM_URL"] = _start_model(stop, processes)
    # What moves gunicorn elsewhere in general must not move the demo.
    environment.pop("GUNICORN_CMD_ARGS", None)
    command = [sys.executable, "-m", "gunicorn.app.wsgiapp", "--config", str(config)]
    command += ["--bind", f"{host}:{port}", "--chdir", str(app.parent), "--log-level", "warning"]
    command += ["--graceful-timeout", str(_GOODBYE), "app:app"]
    _say("==> starting gunicorn ")
    server = Process("gunicorn", command, environment)
    processes.append(server)
    stop.wait_until(lambda: _all_run([server]) and _answers(host, port), on_second=_show_progress)
    _say("\n" + _READY.format(address=f"http://{host}:{port}/"))
    stop.wait_until(lambda: not _all_run(processes), on_second=lambda: None)


def _start_model(stop: StopFlag, processes: List[Process]) -> str:
    """Start the local model and return the address of its API."""
    python = os.environ.get("LLMSTREAM_LOCAL_PYTHON") or sys.executable
    # By its path: that interpreter need not know this package.
    program = str(Path(__file__).with_name("model.py"))
    command = [python, program, "--port", "0", "--stop-on-eof"]
    _say("==> loading the local model ")
    try:
        model = Process("the local model", command, os.environ, keep_output=True)
        processes.append(model)
        stop.wait_until(lambda: _is_ready(model), on_second=_show_progress)
    finally:
        _say("\n")
    return _last_line(model).split()[1]


def _is_ready(model: Process) -> bool:
    try:
        model.check()
    except DemoError as exc:
        reason = _last_line(model).replace("error: ", "", 1) or str(exc)
        raise DemoError(f"no local model: {reason}\n{_OTHER_SERVER}") from exc
    return _last_line(model).startswith("ready ")


def _check_upstream(environment: Mapping[str, str]) -> None:
    """Raise :class:`DemoError` if the server that the environment names is not there.

    Anything that it answers but a refusal of the key will do: not every server can list its models.
    """
    import requests

    url = environment["LLMSTREAM_UPSTREAM_URL"]
    key = environment.get("LLMSTREAM_UPSTREAM_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.get(f"{url.rstrip('/')}/models", headers=headers, timeout=5, stream=True)
        answer.close()
    except requests.exceptions.ReadTimeout:
        return
    except (requests.exceptions.RequestException, ValueError) as exc:
        raise DemoError(f"LLMSTREAM_UPSTREAM_URL={url} does not answer: {_reason(exc)}") from exc
    if answer.status_code in (401, 403):
        raise DemoError(
            f"LLMSTREAM_UPSTREAM_URL={url} answers with status {answer.status_code}:"
            " set LLMSTREAM_UPSTREAM_KEY to a key that it accepts"
        )


def _reason(exc: BaseException) -> str:
    """Return the innermost cause that requests has wrapped, which says it shortest."""
    for inner in (exc.__context__, getattr(exc.__context__, "reason", None)):
        exc = inner if isinstance(inner, BaseException) else exc
    return str(getattr(exc, "__cause__", None) or exc).splitlines()[0]


def _free_port(host: str, port: int) -> int:
    """Return *port*, or a free one for 0."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
        except (OSError, OverflowError) as exc:
            reason = str(getattr(exc, "strerror", None) or exc)
            hint = f"; try --port {port + 1}" if getattr(exc, "errno", None) == errno.EADDRINUSE else ""
            raise DemoError(f"cannot listen on {host}:{port}: {reason}{hint}") from exc
        return int(sock.getsockname()[1])


def _answers(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _all_run(processes: List[Process]) -> bool:
    for process in processes:
        process.check()
    return True


def _last_line(process: Process) -> str:
    lines = process.output()
    return lines[-1] if lines else ""


def _show_progress() -> None:
    _say(".")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
