"""What README.md shows is what happens: its code is run, its output compared."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

from flask_llmstream.client import StreamClient
from flask_llmstream.testing import ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import done, silence, tokens

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
pytestmark = [pytest.mark.checkout, pytest.mark.live]
KEY = {"OPENAI_API_KEY": "not-a-key"}


def blocks(language: str) -> List[str]:
    """Return the fenced blocks of *language*."""
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def commands(text: str) -> List[str]:
    """Return the commands of a console block, continuation lines joined."""
    joined = text.replace("\\\n", " ")
    return [line[2:] for line in joined.splitlines() if line.startswith("$ ")]


def output(text: str) -> str:
    """Return what a console block shows behind its last command."""
    return text.replace("\\\n", " ").rpartition("\n$ ")[2].partition("\n")[2]


@pytest.fixture
def app_file(tmp_path: Path) -> Path:
    """The app of the first block."""
    file = tmp_path / "app.py"
    file.write_text(blocks("python")[0])
    return file


def test_first_thirty_lines_hold_the_app_and_the_start() -> None:
    head = "\n".join(README.read_text(encoding="utf-8").splitlines()[:30])
    assert "LLMStream(app)" in head and "pip install" in head and "gunicorn -k gevent" in head


def test_first_app_is_short() -> None:
    assert len(blocks("python")[0].splitlines()) <= 14


def test_curl_prints_what_the_readme_shows(app_file: Path) -> None:
    shown = blocks("console")[0]
    curl = commands(shown)[-1]
    assert curl.startswith("curl ")
    with ScriptedUpstream([tokens("Hello", "!"), done()]) as upstream:
        with gunicorn_server(app_file, env={**KEY, "OPENAI_BASE_URL": upstream.url}) as server:
            line = shlex.split(curl.replace("localhost:8000", f"127.0.0.1:{server.port}"))
            line[1:1] = ["-s"]
            printed = subprocess.run(line, check=True, stdout=subprocess.PIPE, timeout=30).stdout.decode()
    assert printed.strip() == output(shown).strip()


def test_gunicorn_starts_as_the_readme_says(app_file: Path) -> None:
    """The very command, on a port of its own."""
    command = commands(blocks("console")[0])[1].replace("…", "not-a-key")
    assert "gunicorn -k gevent app:app" in command
    arguments = shlex.split(command.partition("gunicorn ")[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn.app.wsgiapp", "-b", "127.0.0.1:0", *arguments],
        cwd=str(app_file.parent),
        # A worker that is told to stop while it boots is waited for as long as this says.
        env={**os.environ, **KEY, "GUNICORN_CMD_ARGS": "--graceful-timeout 2"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    try:
        lines: List[str] = []
        for raw in process.stdout:
            lines.append(raw.decode())
            if "Booting worker" in lines[-1] or process.poll() is not None:
                break
        assert any("Using worker: gevent" in line for line in lines), lines
    finally:
        process.terminate()
        process.stdout.close()
        process.wait(60)


def test_sdk_view_streams_and_closes(app_file: Path) -> None:
    code = "import openai\n" + blocks("python")[0] + blocks("python")[1]
    app_file.write_text(code)
    with ScriptedUpstream([tokens("Hello"), silence()]) as upstream:
        with gunicorn_server(app_file, env={**KEY, "OPENAI_BASE_URL": upstream.url}) as server:
            with StreamClient(server.url + "/sdk", json={"messages": [{"role": "user"}]}) as answer:
                assert next(answer.text()) == "Hello"
                assert upstream.open_connections == 1
            wait_until(lambda: upstream.open_connections == 0, 5, "the upstream is still open")


def test_generator_example_runs(app_file: Path) -> None:
    code = (
        "from flask import Flask\nfrom flask_llmstream import LLMStream\n"
        "app = Flask(__name__)\nLLMStream(app)\nquery = lambda: ['row1 ', 'row2']\n"
    )
    app_file.write_text(code + blocks("python")[2])
    with gunicorn_server(app_file) as server:
        with StreamClient(server.url + "/report", json={}) as answer:
            assert "".join(answer.text()) == "Looking things up. row1 row2"
        server.wait_for_log("finish Usage(", 10)


def test_python_client_example_runs(app_file: Path, capsys: Any) -> None:
    with ScriptedUpstream([tokens("Hello", "!"), done()]) as upstream:
        with gunicorn_server(app_file, env={**KEY, "OPENAI_BASE_URL": upstream.url}) as server:
            code = blocks("python")[3].replace("http://localhost:8000", server.url)
            exec(code, {"messages": [{"role": "user", "content": "Hi"}]})
    assert capsys.readouterr().out == "Hello!"


def test_tail_prints_the_text(app_file: Path) -> None:
    tail = commands(blocks("console")[2])[0]
    assert tail.startswith("flask-llmstream tail ")
    with ScriptedUpstream([tokens("Hello", "!"), done()]) as upstream:
        with gunicorn_server(app_file, env={**KEY, "OPENAI_BASE_URL": upstream.url}) as server:
            arguments = shlex.split(tail.replace("http://localhost:8000", server.url))[1:]
            printed = subprocess.run(
                [sys.executable, "-m", "flask_llmstream.cli", *arguments],
                check=True, stdout=subprocess.PIPE, timeout=30,
            ).stdout.decode()
    assert printed == "Hello!\n"


def test_links_lead_somewhere() -> None:
    text = README.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / target).exists(), target
