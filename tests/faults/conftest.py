"""The record of what clients got: docs/reliability.json, where LLMSTREAM_RECORD says so."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
from record_file import keep, versions_of

TESTS = Path(__file__).resolve().parent.parent
# What the live tests and those of the logs have for themselves: who asks, and Redis servers.
sys.path += [str(TESTS / "live"), str(TESTS / "eventlog")]

from private_network import PrivateNetwork  # noqa: E402

from flask_llmstream.testing import ScriptedUpstream  # noqa: E402

#: Under which name a report brings along what its test has recorded, also from another process (pytest -n).
_FAULT = "fault"

Record = Callable[..., None]


@pytest.fixture
def record(request: Any) -> Record:
    """Return a function that takes down what a fault did: its row of ``scripts/reliability_page.py``.

    The columns are *client*, *model* and *log*; the page has those of the gevent worker.
    """

    def take_down(row: str, **columns: str) -> None:
        assert set(columns) == {"client", "model", "log"}, columns
        row = f"{row}, gthread" if "gthread" in request.node.name else row
        request.node.user_properties.append((_FAULT, {row: columns}))

    return take_down


@pytest.fixture(scope="module")
def network() -> Iterator[PrivateNetwork]:
    """A network of the module's own; whatever it starts afterwards is in there."""
    with PrivateNetwork() as network:
        yield network


@pytest.fixture(autouse=True)
def healed(request: Any) -> Iterator[None]:
    yield
    if "network" in request.fixturenames:
        request.getfixturevalue("network").heal()


@pytest.fixture(scope="module")
def model() -> Iterator[ScriptedUpstream]:
    """A scripted model; each test sets its ``script``. Errors of scripts that were cut short are theirs."""
    with ScriptedUpstream() as upstream:
        yield upstream


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found: Dict[str, Dict[str, Any]] = {}
    for report in terminalreporter.getreports("passed"):
        for name, rows in report.user_properties:
            if name == _FAULT:
                found.update(rows)
    if not found:
        return
    terminalreporter.section("faults")
    for row, columns in found.items():
        for column, words in columns.items():
            terminalreporter.write_line(f"{row}: {column}: {words}")
    kept = {row: columns for row, columns in found.items() if ", " not in row}
    keep({"faults": kept} if kept else {}, _versions)


def _versions() -> Dict[str, str]:
    found = versions_of("Flask", "gunicorn", "gevent")
    program = shutil.which("redis-server")
    if program is not None:
        said = subprocess.run([program, "--version"], stdout=subprocess.PIPE).stdout.decode()
        number = re.search(r"v=([\d.]+)", said)
        found["Redis"] = number.group(1) if number else said
    return found
