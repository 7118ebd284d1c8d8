"""Importing the package costs next to nothing and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Set

import pytest

#: Loaded by no ``import flask_llmstream``; each costs time, or must not be loaded before monkey patching.
HEAVY = {"flask", "werkzeug", "jinja2", "requests", "urllib3", "sseclient", "openai", "gunicorn", "gevent"}
HEAVY |= {"greenlet", "ssl", "socket", "threading", "asyncio", "logging", "flask_llmstream.stream"}


def loaded_after(statements: str) -> Set[str]:
    """Return what *statements* load that a bare interpreter has not, in a fresh one."""
    program = "\n".join(
        (
            "import sys, json",
            "before = set(sys.modules)",
            statements,
            "print(json.dumps(sorted(set(sys.modules) - before)))",
        )
    )
    # Measuring coverage in there would load modules of its own first, and hide the same ones of ours.
    environ = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    command = [sys.executable, "-c", program]
    out = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, timeout=60).stdout
    return set(json.loads(out.decode()))


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_after("import flask_llmstream")
    assert "flask_llmstream" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", ["Event", "TextDelta", "StreamCancelled"])
def test_values_and_exceptions_load_no_framework(name: str) -> None:
    loaded = loaded_after(f"from flask_llmstream import {name}")
    assert not loaded & (HEAVY)


@pytest.mark.parametrize("name", ["current_stream", "StreamEnd"])
def test_the_part_below_the_responses_loads_no_flask(name: str) -> None:
    loaded = loaded_after(f"from flask_llmstream import {name}")
    assert not loaded & {"flask", "werkzeug", "gevent"}


def test_importing_the_client_loads_no_flask() -> None:
    """A cron job that reads a stream need not pay for a web framework."""
    loaded = loaded_after("from flask_llmstream.client import StreamClient")
    assert not loaded & {"flask", "werkzeug", "gevent"}


SIDE_EFFECTS = """
import gc, signal, sys, warnings, os, threading, logging, socket, json
def state():
    return {
        "threads": threading.active_count(),
        "handlers": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())]
            if hasattr(signal, "valid_signals") else [],
        "environ": sorted(os.environ.items()),
        "filters": [str(one) for one in warnings.filters],
        "excepthooks": [str(sys.excepthook), str(threading.__dict__.get("excepthook"))],
        "loggers": [str(one) for one in logging.getLogger().handlers],
        "socket": str(socket.socket),
        "files": sorted(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else [],
        "path": list(sys.path),
    }
%s
before = state()
%s
after = state()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
"""


def changed_by(statements: str, prelude: str = "") -> object:
    """Return what *statements* change in a fresh interpreter, beyond loading modules."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    command = [sys.executable, "-c", SIDE_EFFECTS % (prelude, statements)]
    out = subprocess.run(command, env=environ, check=True, stdout=subprocess.PIPE, timeout=60).stdout
    return json.loads(out.decode())


@pytest.mark.parametrize("module", ["", ".extension", ".client", ".upstream"])
def test_importing_has_no_side_effect(module: str) -> None:
    """No thread, signal handler, open file, filter, hook or patch."""
    # What the import of somebody else's package does is not ours: those are loaded before.
    prelude = "import flask, requests, requests.adapters"
    assert changed_by(f"import flask_llmstream{module}", prelude) == {}
