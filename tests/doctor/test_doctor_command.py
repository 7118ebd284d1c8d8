"""``flask-llmstream doctor`` as a process, in front of a real server; and the probe that it reads."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pty
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest
from flask import Flask
from hops import Hop, store_and_forward

from flask_llmstream import LLMStream
from flask_llmstream.probe import make_token
from flask_llmstream.testing import LiveServer, gunicorn_server

PROBED = Path(__file__).resolve().with_name("probed.py")
Outcome = Tuple[int, str, str]


def doctor(*args: str) -> Outcome:
    """Run the command and return (exit status, stdout, stderr)."""
    done = subprocess.run(
        [sys.executable, "-m", "flask_llmstream.cli", "doctor", *args],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def on_terminal(*args: str) -> Outcome:
    """The same on a terminal, which gets all the output."""
    ours, its = pty.openpty()
    with os.fdopen(ours, "rb", 0) as screen:
        process = subprocess.Popen(
            [sys.executable, "-m", "flask_llmstream.cli", "doctor", *args],
            stdin=its, stdout=its, stderr=its, env=dict(os.environ, TERM="xterm", COLUMNS="100"),
        )
        os.close(its)
        out = b""
        while True:
            try:
                data = screen.read(65536)
            except OSError:  # Linux says so where the other side has been closed
                data = b""
            if not data:
                return process.wait(60), out.decode(), ""
            out += data


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """The app with the probe, not in debug mode."""
    with gunicorn_server(PROBED, env={"LLMSTREAM_TEST_NO_DEBUG": "1"}) as server:
        yield server


@pytest.fixture(scope="module")
def outcomes(server: LiveServer, tmp_path_factory: Any) -> Iterator[Dict[str, Any]]:
    """What several runs have come to, all at the same time."""
    token = make_token(make_app(), 60)
    report = tmp_path_factory.mktemp("report") / "page.html"
    with Hop(server.address, store_and_forward) as scanner, concurrent.futures.ThreadPoolExecutor(6) as pool:
        hops = ["--hop", f"app={server.url}/plain?n=8", "--hop", f"scanner={scanner.url}/plain?n=8"]
        silent = ["--json", "--idle", "0.5", "--long", "1"]
        runs = {
            "healthy": pool.submit(doctor, server.url, "--token", token, *silent),
            "found": pool.submit(doctor, *hops, "--token", token, "--report", str(report)),
            "closed": pool.submit(doctor, server.url),
            "foreign": pool.submit(doctor, server.url + "/plain"),
            "behind": pool.submit(
                doctor, scanner.url, "--token", token, "--json", "-H", "Cookie: canary", "--no-leave"
            ),
            "terminal": pool.submit(on_terminal, server.url + "/plain?n=2"),
        }
        yield dict({name: run.result() for name, run in runs.items()}, report=report, token=token)


pytestmark = [pytest.mark.live]


def test_healthy_app(outcomes: Dict[str, Any]) -> None:
    status, out, err = outcomes["healthy"]
    answer = json.loads(out)
    assert (status, answer["exit_status"], answer["findings"]) == (0, 0, []), out
    assert answer["verdict"].startswith("Healthy")
    (hop,) = answer["hops"]
    assert hop["rhythm"]["kind"] == "on time" and hop["heartbeats"] >= 2 and hop["probe"]
    assert hop["departure"]["after"] < 5
    assert hop["facts"]["silence survived"] == "0.5 s" and hop["facts"]["whole time survived"] == "1 s"
    assert outcomes["token"] not in out + err and "token=..." in out


def test_hop_that_stores_is_named_with_a_remedy(outcomes: Dict[str, Any]) -> None:
    status, out, err = outcomes["found"]
    assert status == 1, out + err
    assert "\nscanner: store and forward\n" in out
    assert "PROBLEM store-and-forward: scanner" in out and "virus scanners" in out
    assert "scanner takes off transfer-encoding" in out or "adds content-length" in out
    assert outcomes["token"] not in out + err
    page = outcomes["report"].read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and "<svg" in page and outcomes["token"] not in page


def test_app_behind_the_only_address_is_found_and_cleared(outcomes: Dict[str, Any], server: Any) -> None:
    status, out, err = outcomes["behind"]
    answer = json.loads(out)
    app, scanner = answer["hops"]
    assert (status, app["name"], app["found"], scanner["found"]) == (1, "app", True, False), out
    assert app["rhythm"]["kind"] == "on time" and scanner["rhythm"]["kind"] == "stored"
    assert f"is served at 127.0.0.1:{server.port}" in scanner["search"]
    assert {each["code"] for each in answer["findings"]} == {"store-and-forward"}
    assert outcomes["token"] not in out + err and "canary" not in out + err


def test_what_cannot_be_looked_at_is_said(outcomes: Dict[str, Any]) -> None:
    status, out, _ = outcomes["closed"]
    assert status == 2 and "answers 404" in out and "flask llmstream probe-token" in out
    assert "Nothing found" not in out and "Healthy" not in out


def test_stream_that_is_no_probe_is_judged_as_far_as_possible(outcomes: Dict[str, Any]) -> None:
    status, out, _ = outcomes["foreign"]
    assert status == 0 and "is no probe, so nobody knows" in out and "on time" in out


def test_terminal_is_told_what_is_being_done(outcomes: Dict[str, Any]) -> None:
    status, out, _ = outcomes["terminal"]
    assert status == 0, out
    begin, _, rest = out.partition("reading through 127.0.0.1")
    assert begin == "\r\x1b[K" and "\r\x1b[K" in rest
    assert "product" in rest and "app server" in rest and "Nothing wrong was seen" in rest


def test_reader_of_the_output_that_leaves_is_no_trouble() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        with os.fdopen(writer, "wb") as output:
            done = subprocess.run(
                [sys.executable, "-m", "flask_llmstream.cli", "doctor", url],
                stdout=output, stderr=subprocess.PIPE, timeout=60,
            )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "args, complaint",
    [
        ([], "there is nothing to read"), (["http://x", "--idle", "-1"], "--idle"),
        (["http://x", "--body", "{bad"], "--body is not JSON"),
        (["http://x", "--report", "/nonexistent/page.html"], "cannot write /nonexistent/page.html"),
        (["http://x", "-H", "geheim"], "with a colon"), (["http://u:geheim@x"], "-H 'Authorization"),
    ],
)
def test_wrong_usage(args: Any, complaint: str) -> None:
    from click.testing import CliRunner

    from flask_llmstream.cli import main

    result = CliRunner().invoke(main, ["doctor", *args])
    assert result.exit_code == 2 and complaint in result.output and "geheim" not in result.output


def make_app(**config: Any) -> Flask:
    app = Flask("probed")
    app.secret_key = "of the tests"
    app.config.update(config)
    LLMStream(app)
    return app


def test_probe_is_there_in_debug_mode_and_for_tokens_alone() -> None:
    app = make_app()
    asked = "/llmstream/probe?left=" + "a" * 16
    client = app.test_client()
    good, late = make_token(app, 60), make_token(app, -1)
    other = make_app()
    other.secret_key = "another"
    tokens = {"": 404, good: 200, late: 404, make_token(other, 60): 404, good[:-1] + "~": 404, "x": 404}
    assert {token: client.get(f"{asked}&token={token}").status_code for token in tokens} == tokens
    app.config["SECRET_KEY_FALLBACKS"] = ["another"]
    assert client.get(f"{asked}&token={make_token(other, 60)}").status_code == 200
    app.debug = True
    answer = client.get(asked)
    assert answer.status_code == 200 and json.loads(answer.data.decode()) == {"left": None}
    assert answer.headers["Cache-Control"] == "no-store"
    app.secret_key = None
    with pytest.raises(RuntimeError, match="secret_key"):
        make_token(app, 60)


@pytest.mark.parametrize(
    "query",
    [
        "left=../../etc/passwd", "left=aaaaaaaaaaaaaaaa/../x", "leave=x", "idle=nan", "idle=0", "long=1e9",
        "long=soon",
    ],
)
def test_probe_refuses_what_it_cannot_do(query: str) -> None:
    app = make_app()
    app.debug = True
    assert app.test_client().get("/llmstream/probe?" + query).status_code == 400


def test_token_is_printed_by_a_command() -> None:
    app = make_app()
    result = app.test_cli_runner().invoke(args=["llmstream", "probe-token", "--hours", "0.1"])
    token = result.output.strip()
    path = "/llmstream/probe?left=" + "a" * 16 + "&token=" + token
    assert app.test_client().get(path).status_code == 200
    app.secret_key = None
    assert "secret_key" in app.test_cli_runner().invoke(args=["llmstream", "probe-token"]).output


def test_probe_ends_when_its_client_has_left_and_says_so() -> None:
    """In-process: the stream is closed as a server does it, and the note is found by its id."""
    app = make_app()
    app.debug = True
    id = f"{int(time.time() * 1e6):016x}"
    client = app.test_client()
    answer = client.get(f"/llmstream/probe?leave={id}", buffered=False)
    pieces = iter(answer.response)
    while b"event: probe" not in next(pieces):
        pass
    assert json.loads(client.get(f"/llmstream/probe?left={id}").data.decode()) == {"left": "open"}
    answer.close()
    assert json.loads(client.get(f"/llmstream/probe?left={id}").data.decode())["left"] not in (None, "open")
