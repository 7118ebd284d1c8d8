"""What a look at a stream or an app has found: as text, as JSON, and as an exit status."""

from __future__ import annotations

import json
import textwrap
from typing import Any, Iterable, List, NamedTuple, Optional

__all__ = [
    "EXIT_FAILED", "EXIT_FINDINGS", "EXIT_HEALTHY", "SEVERITIES", "Finding", "as_json", "as_text",
    "by_severity", "exit_status",
]

#: Nothing was found, or notes only.
EXIT_HEALTHY = 0
#: At least one problem or warning.
EXIT_FINDINGS = 1
#: There was no looking at it.
EXIT_FAILED = 2

#: The worst first: streams do break; they may; worth knowing.
SEVERITIES = ("problem", "warning", "note")
_COLOURS = {"problem": "31", "warning": "33", "note": "36"}
_WIDTH = 100


class Finding(NamedTuple):
    """One thing found."""

    #: A short name that never changes, such as ``hook-reads-body``.
    code: str
    #: One of :data:`SEVERITIES`.
    severity: str
    #: What it is about: a hop, a hook, a setting.
    subject: str
    #: What was seen.
    seen: str
    #: What it does to streams.
    why: str
    #: What to do, with the line of configuration where there is one.
    change: str
    #: ``file:line``, where there is one.
    where: Optional[str] = None


def by_severity(findings: Iterable[Finding]) -> List[Finding]:
    """Return *findings* with the worst first, otherwise in their order."""
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def as_text(findings: Iterable[Finding], colour: bool = False) -> str:
    """Return what a person reads: each finding as a paragraph, and one line that counts them.

    :param colour: whether to use the colours of a terminal. Defaults to ``False``.
    """
    ordered = by_severity(findings)
    blocks = [_paragraph(finding, colour) for finding in ordered]
    return "\n\n".join(blocks + [_count(ordered)]) + "\n"


def as_json(findings: Iterable[Finding], **more: Any) -> str:
    """Return what a machine reads: ``{"findings": […], "problems": 1, …}``.

    :param more: further keys of the object; what JSON does not know is written as a text.
    """
    ordered = by_severity(findings)
    answer = {"findings": [finding._asdict() for finding in ordered]}
    counts = {f"{severity}s": _how_many(ordered, severity) for severity in SEVERITIES}
    return json.dumps(dict(answer, exit_status=exit_status(ordered), **counts, **more), indent=2, default=str)


def exit_status(findings: Iterable[Finding]) -> int:
    """Return the status of a command that has these findings; notes do not count."""
    return EXIT_FINDINGS if any(finding.severity != "note" for finding in findings) else EXIT_HEALTHY


def _paragraph(finding: Finding, colour: bool) -> str:
    severity = finding.severity.upper()
    if colour:
        severity = f"\x1b[{_COLOURS[finding.severity]};1m{severity}\x1b[0m"
    lines = [f"{severity} {finding.code}: {finding.subject}"]
    if finding.where:
        lines.append(f"    where   {finding.where}")
    for name, text in (("seen", finding.seen), ("why", finding.why), ("change", finding.change)):
        lines.extend(_field(name, text))
    return "\n".join(lines)


def _field(name: str, text: str) -> List[str]:
    """Return the lines of one field; those that *text* has are kept, for what is to be copied."""
    indent = " " * 12
    lines: List[str] = []
    for line in text.splitlines() or [""]:
        lines.extend(
            textwrap.wrap(line, _WIDTH - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
        )
    return [f"    {name:<8}{lines[0]}".rstrip()] + [f"{indent}{line}".rstrip() for line in lines[1:]]


def _count(findings: List[Finding]) -> str:
    if not findings:
        return "Nothing found."
    counts = [(_how_many(findings, severity), severity) for severity in SEVERITIES]
    return ", ".join(f"{count} {word}{'s' * (count != 1)}" for count, word in counts if count) + "."


def _how_many(findings: Iterable[Finding], severity: str) -> int:
    return sum(finding.severity == severity for finding in findings)
