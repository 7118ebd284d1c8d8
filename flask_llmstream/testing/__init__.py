"""Test kit: a live gunicorn, an upstream that plays a script, arrival times, a clock to move by hand, and
the tests that every event log passes.

Everything here works on real processes and real sockets, and none of it needs pytest. Names are
imported on first use, so that ``python -m flask_llmstream.testing.upstreams`` is what it says.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from flask_llmstream.testing.clock import ManualClock
    from flask_llmstream.testing.eventlog import EventLogContract
    from flask_llmstream.testing.live import LiveServer, gunicorn_server
    from flask_llmstream.testing.timing import StreamReader, read_stream, send_request, wait_until
    from flask_llmstream.testing.upstreams import ScriptedUpstream

__all__ = [
    "EventLogContract",
    "LiveServer",
    "ManualClock",
    "ScriptedUpstream",
    "StreamReader",
    "gunicorn_server",
    "read_stream",
    "send_request",
    "wait_until",
]

#: Where each public name comes from.
_EXPORTS = {
    "EventLogContract": "flask_llmstream.testing.eventlog",
    "LiveServer": "flask_llmstream.testing.live",
    "ManualClock": "flask_llmstream.testing.clock",
    "ScriptedUpstream": "flask_llmstream.testing.upstreams",
    "StreamReader": "flask_llmstream.testing.timing",
    "gunicorn_server": "flask_llmstream.testing.live",
    "read_stream": "flask_llmstream.testing.timing",
    "send_request": "flask_llmstream.testing.timing",
    "wait_until": "flask_llmstream.testing.timing",
}


def __getattr__(name: str) -> Any:
    """Import the public *name* on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    """Name the public names, whether or not they have been imported yet."""
    return sorted(__all__ + [name for name in globals() if name.startswith("__")])
