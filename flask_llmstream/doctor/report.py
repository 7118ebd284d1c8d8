"""The whole of a look as a page that needs nothing else: ``--report FILE``. Pure."""

from __future__ import annotations

from html import escape
from typing import List, Sequence, Tuple

from flask_llmstream.doctor.analysis import Look
from flask_llmstream.doctor.drawing import facts_of, headers_of
from flask_llmstream.doctor.findings import Finding, by_severity

__all__ = ["as_html", "as_svg"]

_WIDTH, _LEFT, _LANE = 900, 130, 34
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; }
table { border-collapse: collapse; }
td, th { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } td:first-child { color: #57606a; }
section { border-left: 4px solid #57606a; padding: .1rem 1rem; margin: 1rem 0; }
section.problem { border-color: #b3261e; } section.warning { border-color: #9a6700; }
pre { background: #f3f4f6; padding: .6rem; overflow: auto; white-space: pre-wrap; }
svg { max-width: 100%; height: auto; }
"""


def as_html(looks: Sequence[Look], findings: Sequence[Finding], verdict: str) -> str:
    """Return the page."""
    names = "".join(f"<th>{escape(look.seen.hop.name)}</th>" for look in looks)
    rows = [f"<tr><td></td>{names}</tr>"]
    for name, values in facts_of(looks):
        cells = "".join(f"<td>{escape(value)}</td>" for value in values)
        rows.append(f"<tr><td>{escape(name)}</td>{cells}</tr>")
    headers = "".join(f"<li>{escape(line)}</li>" for line in headers_of(looks))
    sections = "".join(_section(finding) for finding in by_severity(findings))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(verdict)}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(verdict)}</h1>\n{as_svg(looks)}\n<table>{''.join(rows)}</table>\n<ul>{headers}</ul>\n"
        f"{sections}\n</body></html>\n"
    )


def as_svg(looks: Sequence[Look]) -> str:
    """Return the timeline: a lane for what was sent, and one for what came through each hop."""
    readable = [look for look in looks if look.seen.events]
    lanes: List[Tuple[str, List[float]]] = []
    for look in readable[:1]:
        sent = [event.sent for event in look.seen.events if event.sent is not None]
        if sent:
            lanes.append(("sent", [look.seen.events[0].at + each for each in sent]))
    lanes += [(look.seen.hop.name, [event.at for event in look.seen.events]) for look in readable]
    span = max([times[-1] for _, times in lanes if times], default=1.0) or 1.0
    height = _LANE * (len(lanes) + 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="When events were sent, and when they came through each hop" '
        'font-family="sans-serif" font-size="13">'
    ]
    for number, (name, times) in enumerate(lanes):
        y = _LANE * number + 8
        colour = "#57606a" if name == "sent" else "#0a58ca"
        parts.append(f'<text x="0" y="{y + 14}">{escape(name[:18])}</text>')
        parts.append(f'<path d="M{_LEFT} {y + 20}H{_WIDTH}" stroke="#d0d7de"/>')
        ticks = "".join(f"M{_LEFT + at / span * (_WIDTH - _LEFT - 4) + 2:.1f} {y}v20" for at in times)
        parts.append(f'<path d="{ticks}" stroke="{colour}" stroke-width="2" stroke-opacity=".7"/>')
    parts.append(f'<text x="{_LEFT}" y="{height - 8}">0 s</text>')
    parts.append(f'<text x="{_WIDTH}" y="{height - 8}" text-anchor="end">{span:.1f} s</text></svg>')
    return "".join(parts)


def _section(finding: Finding) -> str:
    return (
        f'<section class="{escape(finding.severity)}"><h2>{escape(finding.code)}: {escape(finding.subject)}'
        f"</h2><p>{escape(finding.seen)}</p><p>{escape(finding.why)}</p><pre>{escape(finding.change)}</pre>"
        "</section>\n"
    )
