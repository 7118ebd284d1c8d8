"""Pages under docs/ that are written by a script: write one, or with ``--check`` only compare."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["write_or_check"]


def write_or_check(target: Path, text: str) -> int:
    """Write *text* to *target*; with ``--check`` say whether it is there already.

    :returns: the exit status of the script: 1 where the page is out of date.
    """
    if "--check" not in sys.argv[1:]:
        target.write_text(text, encoding="utf-8")
        return 0
    if target.exists() and target.read_text(encoding="utf-8") == text:
        return 0
    print(f"{target.name} is out of date: run python {Path(sys.argv[0]).name} in scripts")
    return 1
