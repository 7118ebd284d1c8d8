"""Findings that were accepted, in a file that can be committed.

Decisions
    1. A finding is known by its code, its subject and its file. Lines move with every change, and
       figures in the text with every setting.
    2. A note is not written down: it does not count anyway.
"""

from __future__ import annotations

import json
import re
from typing import Any, Iterable, List, NamedTuple

from flask_llmstream.doctor.findings import Finding, by_severity

__all__ = ["Baseline", "load_baseline", "write_baseline"]

_KEYS = ("code", "subject", "file")


class Baseline(NamedTuple):
    """What was accepted."""

    accepted: List[Any]

    def new(self, findings: Iterable[Finding]) -> List[Finding]:
        """Return the findings that were not accepted."""
        return [finding for finding in findings if _key(finding) not in self.accepted]

    def gone(self, findings: Iterable[Finding]) -> int:
        """Return how many were accepted that are not found any more."""
        found = [_key(finding) for finding in findings]
        return sum(key not in found for key in self.accepted)


def load_baseline(file: str) -> Baseline:
    """Read what :func:`write_baseline` has written.

    :raises OSError: there is no such file.
    :raises ValueError: it is no baseline.
    """
    try:
        with open(file, encoding="utf-8") as stream:
            content = json.load(stream)
        return Baseline([{key: each[key] for key in _KEYS} for each in content["accepted"]])
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{file} is no baseline: expected an object with a list \"accepted\"; --write-baseline makes one"
        ) from None


def write_baseline(file: str, findings: Iterable[Finding]) -> int:
    """Accept *findings*; return how many."""
    keys = [_key(finding) for finding in by_severity(findings) if finding.severity != "note"]
    with open(file, "w", encoding="utf-8") as stream:
        json.dump({"accepted": keys}, stream, indent=2)
        stream.write("\n")
    return len(keys)


def _key(finding: Finding) -> Any:
    file = re.sub(r":\d+$", "", finding.where) if finding.where else None
    return {"code": finding.code, "subject": finding.subject, "file": file}
