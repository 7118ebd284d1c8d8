"""The gunicorn.conf.py that the project ships."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Dict, Optional

import pytest

from flask_llmstream.testing import gunicorn_server

CONFIG = Path(__file__).resolve().parent.parent / "gunicorn.conf.py"
PLAIN = Path(__file__).resolve().parent / "live" / "apps" / "plain.py"
VARIABLES = (
    "GUNICORN_CMD_ARGS", "LLMSTREAM_ACCESS_LOG", "LLMSTREAM_BIND", "LLMSTREAM_WORKER_CLASS", "PORT",
    "WEB_CONCURRENCY",
)


def run(code: str, env: Optional[Dict[str, str]] = None) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code, str(CONFIG)],
        env={**environment, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


EFFECTIVE = """
import sys
from gunicorn.app.wsgiapp import WSGIApplication
config = sys.argv[1]
sys.argv = ["gunicorn", "-c", config] + {arguments!r} + ["plain:app"]
cfg = WSGIApplication().cfg
print({expression})
"""


def setting(expression: str, env: Optional[Dict[str, str]] = None, *arguments: str) -> str:
    """Return what gunicorn itself makes of the file."""
    return run(EFFECTIVE.format(expression=expression, arguments=list(arguments)), env)


def test_reading_it_imports_nothing_that_gevent_would_have_to_patch() -> None:
    loaded = run(
        "import sys, runpy; before = set(sys.modules); runpy.run_path(sys.argv[1]);"
        "print(sorted(set(sys.modules) - before))"
    )
    for module in ("'ssl'", "'socket'", "'threading'", "'requests'", "'flask'", "'urllib3'", "'gevent"):
        assert module not in loaded


@pytest.mark.parametrize(
    "expression, env, expected",
    [
        ("cfg.worker_class_str", {}, "gevent"),
        ("cfg.worker_class_str", {"LLMSTREAM_WORKER_CLASS": "sync"}, "sync"),
        ("cfg.address", {}, "[('127.0.0.1', 8000)]"),
        ("cfg.address", {"PORT": "9001"}, "[('127.0.0.1', 9001)]"),
        ("cfg.address", {"LLMSTREAM_BIND": "0.0.0.0:80", "PORT": "9001"}, "[('0.0.0.0', 80)]"),
        ("cfg.workers", {}, "1"),
        ("cfg.workers", {"WEB_CONCURRENCY": "3"}, "3"),
        ("cfg.worker_connections", {}, "2000"),
        ("cfg.worker_connections", {"GUNICORN_CMD_ARGS": "--worker-connections 50"}, "50"),
        ("cfg.accesslog", {}, "None"),
        ("cfg.accesslog", {"LLMSTREAM_ACCESS_LOG": "-"}, "-"),
        ("cfg.max_requests", {}, "0"),
        ("cfg.preload_app", {}, "False"),
    ],
)
def test_setting(expression: str, env: Dict[str, str], expected: str) -> None:
    assert setting(expression, env) == expected


def test_command_line_wins() -> None:
    assert setting("cfg.address", {"PORT": "9001"}, "--bind", "127.0.0.1:7") == "[('127.0.0.1', 7)]"


@pytest.mark.live
def test_app_is_served_by_gevent() -> None:
    with gunicorn_server(PLAIN, config=CONFIG) as server:
        server.wait_for_log("Using worker: gevent")
        with server.request("/ticks?count=3") as answer:
            assert len(list(answer)) == 3
