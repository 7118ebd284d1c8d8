"""Event logs: where the entries of resumable streams are kept, behind one contract.

Every name is imported on first use: a log that is not chosen costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from flask_llmstream.eventlog.base import EventLog, Page, open_log

__all__ = ["EventLog", "Page", "open_log"]


def __getattr__(name: str) -> Any:
    """Import the public *name* on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module("flask_llmstream.eventlog.base"), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    """Name the public names, whether or not they have been imported yet."""
    return sorted(__all__ + [name for name in globals() if name.startswith("__")])
