"""The files in deploy/ are accepted by the programs that they are for."""

from __future__ import annotations

import configparser
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, List

import pytest

from flask_llmstream.testing import wait_until

pytestmark = pytest.mark.checkout

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "flask-llmstream.service"


@pytest.fixture
def variants() -> Any:
    """The module that says how the tests in tests/servers run proxies."""
    sys.path.insert(0, str(ROOT / "tests" / "servers"))
    try:
        import variants
    finally:
        sys.path.pop(0)
    return variants


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=60
    )


def check(name: str, variants: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let a proxy check the syntax of the shipped file, the way that the tests run it."""
    command: List[str] = variants.PROXIES[f"{name}-shipped"](variants.Setup(folder, 1, "127.0.0.1:2"))
    if name == "varnish":
        files = ("-n", str(folder / "check"), "-f", str(folder / "default.vcl"))
        return run(command[0], "-j", "none", "-C", *files)
    flag = {"nginx": "-t", "haproxy": "-c", "apache": "-t"}[name]
    return run(*[each for each in command if each != "-DFOREGROUND"], flag)


FILES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "apache": "apache.conf", "varnish": "varnish.vcl"}


@pytest.mark.parametrize("name", sorted(FILES))
def test_proxy_accepts_the_shipped_file(variants: Any, tmp_path: Path, name: str) -> None:
    done = check(name, variants, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "warn" not in done.stdout.lower(), done.stdout


@pytest.mark.parametrize("name", sorted(FILES))
def test_proxy_refuses_the_shipped_file_with_a_mistake(
    variants: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    deploy = tmp_path / "deploy"
    shutil.copytree(str(DEPLOY), str(deploy))
    with (deploy / FILES[name]).open("a") as file:
        file.write("\nflask_llmstream on;\n")
    monkeypatch.setattr(variants, "DEPLOY", deploy)
    done = check(name, variants, tmp_path)
    assert done.returncode != 0
    assert "flask_llmstream" in done.stdout, done.stdout


def test_every_file_is_tested_here_or_with_the_metrics() -> None:
    assert {path.name for path in DEPLOY.iterdir()} == {*FILES.values(), UNIT.name, "grafana-dashboard.json"}


def test_docs_lead_to_every_file() -> None:
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("proxies.md", "metrics.md")]
    page = "".join(pages)
    assert [path.name for path in DEPLOY.iterdir() if f"](../deploy/{path.name})" not in page] == []


def test_every_limit_of_a_platform_has_its_source() -> None:
    page = (ROOT / "docs" / "platforms.md").read_text(encoding="utf-8")
    rows = [line for line in page.split("| source |")[1].split("\n\n")[0].splitlines() if "---" not in line]
    assert len(rows) > 10
    assert [row for row in rows if row and "](https://" not in row] == []


# -- the systemd unit ------------------------------------------------------------------------


def unit() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text(encoding="utf-8"))
    return parser


def verify(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Let systemd read the unit, with paths that exist here."""
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is not installed; scripts/bootstrap test installs it"
    path = folder / UNIT.name
    text = text.replace("/srv/app/.venv/bin/gunicorn", sys.executable)
    path.write_text(text.replace("/srv/app", str(ROOT)))
    return run(program, "verify", "--man=no", str(path))


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    done = verify(tmp_path, UNIT.read_text(encoding="utf-8"))
    assert (done.returncode, done.stdout) == (0, "")


def test_systemd_would_tell_of_a_mistake(tmp_path: Path) -> None:
    done = verify(tmp_path, UNIT.read_text(encoding="utf-8").replace("LimitNOFILE", "LimitFiles"))
    assert "LimitFiles" in done.stdout


def test_systemd_waits_longer_than_gunicorn_does() -> None:
    graceful = runpy.run_path(str(ROOT / "gunicorn.conf.py"))["graceful_timeout"]
    assert int(unit()["Service"]["TimeoutStopSec"]) > graceful


@pytest.mark.live
def test_command_of_the_unit_starts_gunicorn_that_tells_systemd(tmp_path: Path) -> None:
    """And ends it on the signal that systemd sends."""
    program, *arguments = unit()["Service"]["ExecStart"].split()
    assert program.endswith("/gunicorn")
    shutil.copy(str(ROOT / "gunicorn.conf.py"), str(tmp_path))
    shutil.copy(str(ROOT / "tests" / "live" / "apps" / "plain.py"), str(tmp_path / "app.py"))
    log_path = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, log_path.open("wb") as log:
        told.bind(str(tmp_path / "notify"))
        told.settimeout(30)
        gone = ("GUNICORN_CMD_ARGS", "PORT", "WEB_CONCURRENCY")
        environ = {key: value for key, value in os.environ.items() if key not in gone}
        environ.update(NOTIFY_SOCKET=str(tmp_path / "notify"), XDG_RUNTIME_DIR=str(tmp_path))
        environ["LLMSTREAM_BIND"] = "127.0.0.1:0"
        process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn.app.wsgiapp", *arguments],
            cwd=str(tmp_path), env=environ, stdout=log, stderr=subprocess.STDOUT,
        )
        try:
            assert b"READY=1" in told.recv(4096), log_path.read_text()
            found = wait_until(lambda: [w for w in log_path.read_text().split() if w.startswith("http://")])
            with urllib.request.urlopen(f"{found[0]}/ticks?count=1", timeout=10) as answer:
                assert answer.status == 200
        finally:
            process.send_signal(getattr(signal, unit()["Service"].get("KillSignal", "SIGTERM")))
            assert process.wait(20) == 0, log_path.read_text()
