"""The gunicorn.conf.py that the project ships."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Optional

import gunicorn
import pytest

from flask_llmstream.testing import gunicorn_server

CONFIG = Path(__file__).resolve().parent.parent / "gunicorn.conf.py"
PLAIN = Path(__file__).resolve().parent / "live" / "apps" / "plain.py"
#: Before gunicorn 24 pip installs packaging with it, or it does without.
NEEDED = ["gevent"] if gunicorn.version_info < (24, 0) else ["gevent", "packaging"]
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
    # gunicorn has used argparse before, which needs shutil; on Python 3.9 that brings threading.
    loaded = run(
        "import sys, runpy, shutil; before = set(sys.modules); runpy.run_path(sys.argv[1]);"
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


def start(*arguments: str, env: Optional[Dict[str, str]] = None) -> str:
    """Return what gunicorn says when it refuses to start with these arguments."""
    environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}
    command = [sys.executable, "-m", "gunicorn.app.wsgiapp", "-c", str(CONFIG), "-b", "127.0.0.1:0"]
    done = subprocess.run(
        [*command, "--chdir", str(PLAIN.parent), *arguments, "plain:app"],
        env={**environment, **(env or {})}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
    )
    said = done.stdout.decode()
    assert done.returncode != 0, said
    assert "Traceback" not in said
    return said


@pytest.mark.live
@pytest.mark.parametrize(
    "arguments, env, expected",
    [
        (["-k", "tornado"], {}, "collects the whole response"),
        (["--worker-class=eventlet"], {}, "not supported"),
        (["--preload"], {}, "from gevent import monkey; monkey.patch_all()"),
        ([], {"GUNICORN_CMD_ARGS": "--preload"}, "from gevent import monkey; monkey.patch_all()"),
    ]
    # gunicorn 19 loads a worker that the variable names before it reads the file.
    + [([], {"GUNICORN_CMD_ARGS": "-ktornado"}, "'gthread'")] * (gunicorn.version_info >= (20, 0)),
)
def test_what_cannot_stream_is_refused_at_the_start(
    arguments: List[str], env: Dict[str, str], expected: str
) -> None:
    said = start(*arguments, env=env)
    assert expected in said and said.startswith("flask-llmstream: ")


@pytest.mark.live
@pytest.mark.parametrize("module", NEEDED)
def test_missing_package_is_named_with_what_installs_it(module: str, tmp_path: Path) -> None:
    hidden = tmp_path / "sitecustomize.py"
    # As if it were not installed, for everybody in that process.
    hidden.write_text(
        "import sys, importlib.machinery as machinery\n"
        "class Hidden(machinery.PathFinder):\n"
        "    @classmethod\n"
        "    def find_spec(cls, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {module!r}:\n"
        "            return None\n"
        "        return machinery.PathFinder.find_spec(name, path, target)\n"
        "sys.meta_path[:] = [Hidden if each is machinery.PathFinder else each for each in sys.meta_path]\n"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    said = start(env={"PYTHONPATH": path})
    assert f"needs the package {module!r}" in said and "pip install 'flask-llmstream[gunicorn]'" in said


@pytest.mark.live
def test_preloading_works_with_an_early_patch() -> None:
    """As the refusal says; the app's TLS is what breaks otherwise."""
    early = "from gevent import monkey; monkey.patch_all()\n"
    with gunicorn_server(PLAIN, config=_before(early), config_lines="preload_app = True") as server:
        with server.request("/ticks?count=3") as answer:
            assert len(list(answer)) == 3


def _before(line: str) -> Path:
    path = Path(tempfile.mkdtemp()) / "gunicorn.conf.py"
    path.write_text(line + CONFIG.read_text())
    return path


@pytest.mark.live
def test_app_is_served_by_gevent() -> None:
    with gunicorn_server(PLAIN, config=CONFIG) as server:
        server.wait_for_log("Using worker: gevent")
        with server.request("/ticks?count=3") as answer:
            assert len(list(answer)) == 3


def test_worker_that_has_loaded_no_app_exits_quietly() -> None:
    """Nothing is imported for it, least of all before gevent patches."""
    code = "import sys; from flask_llmstream.gunicorn import worker_exit; worker_exit(None, None);"
    assert run(code + "print([name for name in sys.modules if name.startswith('flask_llmstream')])") == (
        "['flask_llmstream', 'flask_llmstream.gunicorn']"
    )
