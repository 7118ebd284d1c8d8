"""The record of what was measured: docs/servers.json, where LLMSTREAM_RECORD says so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
from core import make_notes, make_upstream
from record_file import keep, versions_of

from flask_llmstream.testing import ScriptedUpstream

#: kind ("servers" or "proxies") -> row -> column -> figure
_results: Dict[str, Dict[str, Dict[str, Any]]] = {}
_figures: Dict[str, str] = {}

Record = Callable[[str, str, str, Any], None]

#: How programs say their version.
_PROGRAMS = {
    "uWSGI": ["uwsgi-core", "--version"],
    "Apache": ["apache2", "-v"],
    "nginx": ["nginx", "-v"],
    "HAProxy": ["haproxy", "-v"],
    "Varnish": ["varnishd", "-V"],
}


@pytest.fixture(scope="session")
def record() -> Record:
    """Return a function that takes down (kind, row, column, figure).

    The figure is a number of milliseconds, or a few words. The columns are those of
    ``scripts/servers_page.py``.
    """

    def take_down(kind: str, row: str, column: str, figure: Any) -> None:
        assert kind in ("servers", "proxies"), kind
        figure = round(figure, 1) if isinstance(figure, float) else figure
        _results.setdefault(kind, {}).setdefault(row, {})[column] = figure
        _figures[f"{row}: {column}"] = str(figure)

    return take_down


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    """The scripted upstream of one module."""
    with make_upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def notes(tmp_path_factory: Any) -> Path:
    """The file for the notes of the served app."""
    return make_notes(tmp_path_factory.mktemp("notes"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _figures:
        terminalreporter.section("servers and proxies")
        for what, figure in _figures.items():
            terminalreporter.write_line(f"{what}: {figure}")


def pytest_sessionfinish() -> None:
    keep(_results, versions)


def versions() -> Dict[str, str]:
    """Return the versions of what is measured."""
    found = versions_of("Flask", "gunicorn", "gevent", "waitress")
    for name, command in _PROGRAMS.items():
        path = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if path is not None:
            said = subprocess.run(
                [path, *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            ).stdout.decode()
            number = re.search(r"\d+\.\d+(\.\d+)?", said)
            found[name] = number.group() if number else said
    return found
