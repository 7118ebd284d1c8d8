"""Signals cost nothing where nobody listens, and say what to install where they cannot work."""

from __future__ import annotations

import os
import subprocess
import sys

from flask_llmstream import signals


def test_names_are_those_of_past_events() -> None:
    for name in signals.__all__:
        signal = getattr(signals, name)
        assert signal.name == name.replace("_", "-") and not signal.receivers


def test_without_blinker_nothing_can_be_connected_and_nothing_breaks() -> None:
    program = """
import sys
sys.modules["blinker"] = None
from flask_llmstream import signals
signals.stream_started.send(None, stream=None)
assert not signals.stream_started.receivers
try:
    signals.stream_started.connect(print)
except RuntimeError as error:
    print(error)
"""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    said = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, timeout=60, env=environment
    ).stdout.decode()
    assert said.strip() == "the signal 'stream-started' needs blinker: pip install blinker"
