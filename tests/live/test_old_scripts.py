"""Scripts on requests and sseclient-py that were written for other servers read ours unchanged."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, List

import pytest
import requests
from asking import APPS

from flask_llmstream.testing import gunicorn_server

pytestmark = pytest.mark.live

HERE = Path(__file__).resolve().parent
SCRIPTS = sorted((HERE / "old_scripts").glob("with_*.py"))


def words() -> List[str]:
    """Return what the app says."""
    spec = importlib.util.spec_from_file_location("old_clients", str(APPS / "old_clients.py"))
    assert spec is not None and spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.WORDS)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with gunicorn_server(APPS / "old_clients.py") as started:
        yield started


def test_unchanged_scripts_print_the_exact_text(server: Any) -> None:
    # Measured they would only be slower: nothing of ours runs in them.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environ["PYTHONIOENCODING"] = "utf-8"
    asked = [(script, path) for script in SCRIPTS for path in ("/plain", "/resumable")]
    running = [
        subprocess.Popen(
            [sys.executable, str(script), server.url + path], env=environ,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for script, path in asked
    ]
    assert len(running) == 6
    expected = "".join(words() * 5).encode("utf-8")
    for which, process in zip(asked, running):
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b""), which
        assert out == expected, which


@pytest.mark.parametrize(
    "user_agent, least", [("MyApp/1 CFNetwork/1410.0.3 Darwin/22.6.0", 1024), ("MSIE 8.0", 2304), (None, 0)]
)
def test_padding_goes_by_the_client(server: Any, user_agent: Any, least: int) -> None:
    headers = {} if user_agent is None else {"User-Agent": user_agent}
    with requests.get(server.url + "/padded", headers=headers, stream=True) as response:
        opening = next(response.iter_content(None))
    assert opening.startswith(b": open\n")
    comments = opening.partition(b"data:")[0]
    assert len(comments) >= least and (least or len(comments) < 100)
