"""What was seen, as a table and a timeline: in plain text, or by rich where that is installed. Pure."""

from __future__ import annotations

from typing import Any, List, Optional, Sequence, Tuple

from flask_llmstream.doctor.analysis import Look
from flask_llmstream.terminal import on_one_line

__all__ = ["facts_of", "headers_of", "plain_table", "rich_table", "timeline"]

#: Characters that a timeline is wide, and that a value may have.
_WIDTH, _LONGEST = 64, 28
#: Headers whose coming and going is told.
_TELLING = (
    "content-encoding", "content-length", "transfer-encoding", "cache-control", "x-accel-buffering", "vary",
    "age", "via", "etag", "x-cache", "cf-cache-status", "surrogate-control", "expires", "pragma",
)


def facts_of(looks: Sequence[Look]) -> List[Tuple[str, List[str]]]:
    """Return the rows of the table: a name, and what each hop shows."""
    rows: List[Tuple[str, List[str]]] = []
    columns = [_column(look, looks[number - 1] if number else None) for number, look in enumerate(looks)]
    for number, (name, _) in enumerate(columns[0] if columns else ()):
        values = [_short(column[number][1]) for column in columns]
        if any(value not in ("", "-") for value in values):
            rows.append((name, values))
    return rows


def headers_of(looks: Sequence[Look]) -> List[str]:
    """Return a line for each hop that adds, changes or takes off a header."""
    lines = []
    for before, look in zip(looks, looks[1:]):
        if look.seen.error or before.seen.error:
            continue
        ours, theirs = look.headers, before.headers
        added = [name for name in _TELLING if name in ours and name not in theirs]
        changes = [f"adds {name}: {ours[name][:60]}" for name in added]
        changes += [f"takes off {name}" for name in _TELLING if name in theirs and name not in ours]
        changes += [
            f"changes {name} to {ours[name][:60]}"
            for name in _TELLING if name in ours and name in theirs and ours[name] != theirs[name]
        ]
        if changes:
            lines.append(on_one_line(f"{look.seen.hop.name} {', '.join(changes)}"))
    return lines


def timeline(looks: Sequence[Look]) -> List[str]:
    """Return lines that show when events were sent, and when they came through each hop."""
    readable = [look for look in looks if look.seen.events]
    if not readable:
        return []
    span = max(look.seen.events[-1].at for look in readable) or 1.0
    lanes: List[Tuple[str, List[float]]] = []
    sent = [event.sent for event in readable[0].seen.events if event.sent is not None]
    if sent:
        began = readable[0].seen.events[0].at
        lanes.append(("sent", [began + each for each in sent]))
    lanes += [(look.seen.hop.name, [event.at for event in look.seen.events]) for look in readable]
    width = max(len(name[:16]) for name, _ in lanes)
    lines = [f"{on_one_line(name[:16]):<{width}}  {_ticks(times, span)}" for name, times in lanes]
    scale = f"0 s{f'{span:.1f} s':>{_WIDTH - 3}}"
    return [*lines, f"{'':<{width}}  {scale}"]


def plain_table(looks: Sequence[Look]) -> str:
    """Return the table as text, a column for each hop."""
    rows = [("", [_short(look.seen.hop.name) for look in looks]), *facts_of(looks)]
    widths = [max(len(values[column]) for _, values in rows) for column in range(len(looks))]
    first = max(len(name) for name, _ in rows)
    lines = []
    for name, values in rows:
        cells = [f"{value:<{width}}" for value, width in zip(values, widths)]
        lines.append(f"{name:<{first}}  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)


def rich_table(looks: Sequence[Look]) -> Any:
    """Return a table for rich to print; ``None`` where rich is not installed."""
    try:
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return None
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for look in looks:
        table.add_column(Text(_short(look.seen.hop.name)))
    for name, values in facts_of(looks):
        table.add_row(Text(name, style="dim"), *map(Text, values))
    return table


def _ticks(times: Sequence[float], span: float) -> str:
    counts = [0] * _WIDTH
    for at in times:
        counts[min(_WIDTH - 1, max(0, int(at / span * _WIDTH)))] += 1
    signs = ".|23456789"
    return "".join(signs[count] if count < len(signs) else "#" for count in counts)


def _column(look: Look, before: Optional[Look]) -> List[Tuple[str, str]]:
    seen, rhythm, headers = look.seen, look.rhythm, look.headers
    sized = "Content-Length" if "content-length" in headers else "to the close"
    framing = headers.get("transfer-encoding", sized)
    answered = bool(seen.status)
    return [
        ("product", ", ".join(look.products(before)) or "-"),
        ("cannot be read", seen.error or ""),
        ("status", str(seen.status) if answered else "-"),
        ("HTTP", f"{seen.version}{', h2 offered' if seen.alpn == 'h2' else ''}" if answered else "-"),
        ("HTTP to the app", (seen.hello or {}).get("protocol", "-").replace("HTTP/", "")),
        ("framing", framing if answered else "-"),
        ("Content-Length", headers.get("content-length", "-")),
        ("Content-Encoding", headers.get("content-encoding", "-")),
        ("Cache-Control", headers.get("cache-control", "-")),
        ("connected after", _ms(seen.connect_time or None)),
        ("first byte after", _ms(seen.first_byte)),
        ("gaps sent", _ms(rhythm.sent_gap)),
        ("gaps received", _ms(rhythm.received_gap)),
        ("together with another", "-" if rhythm.joined is None else f"{100 * rhythm.joined:.0f} %"),
        ("latest token", _ms(rhythm.late)),
        ("smallest block", "-" if rhythm.smallest is None else f"{rhythm.smallest} bytes"),
        ("tokens", rhythm.kind if seen.events else "-"),
        ("heartbeats", str(len(seen.comments)) if seen.events else "-"),
        ("ended", f"{seen.end} after {seen.end_at:.1f} s" if seen.end else "-"),
        ("silence survived", _survived(look.idle, look.idle_seconds)),
        ("whole time survived", _survived(look.long, look.long_seconds)),
        ("departure seen after", _departed(look)),
    ]


def _survived(seen: Any, seconds: float) -> str:
    if seen is None:
        return "-"
    if seen.error and not seen.events:
        return "not known"
    return f"{seconds:g} s" if seen.last else f"cut after {seen.end_at - (seen.first_byte or 0.0):.1f} s"


def _departed(look: Look) -> str:
    if look.departure is None:
        return "-" if not look.seen.is_probe else "not known"
    after, waited = look.departure
    return f"not in {waited:.0f} s" if after is None else _ms(after)


def _ms(seconds: Optional[float]) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.0f} ms"


def _short(text: str) -> str:
    text = on_one_line(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
