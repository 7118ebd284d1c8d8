"""Keeps what tests have measured in the file that LLMSTREAM_RECORD names, from which pages are made."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict

__all__ = ["keep", "versions_of"]


def keep(results: Dict[str, Dict[str, Dict[str, Any]]], versions: Callable[[], Dict[str, str]]) -> None:
    """Add *results* (kind -> row -> column -> figure) to the record, where there is to be one."""
    target = os.environ.get("LLMSTREAM_RECORD")
    if not target or not results:
        return
    path = Path(target)
    known: Dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    known["versions"] = versions()
    for kind, rows in results.items():
        for row, columns in rows.items():
            known.setdefault(kind, {}).setdefault(row, {}).update(columns)
    path.write_text(json.dumps(known, indent=2) + "\n")


def versions_of(*packages: str) -> Dict[str, str]:
    """Return the versions of Python and of *packages*."""
    found = {"Python": sys.version.split()[0]}
    # Python 3.7 has none; pages are made on newer ones.
    version = import_module("importlib.metadata").version
    found.update((name, version(name)) for name in packages)
    return found
