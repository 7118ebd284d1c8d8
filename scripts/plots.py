"""Plots as SVG text: bars with their spread, and lines over percentiles. Readable on light and dark pages.

Every text is escaped, and the same figures always give the same bytes, so that a test can compare.
"""

from __future__ import annotations

import math
from html import escape
from typing import List, NamedTuple, Optional, Sequence, Tuple

__all__ = ["Bar", "Line", "bars", "lines"]


class Bar(NamedTuple):
    """One bar."""

    label: str
    #: ``None``: there is no figure, and :attr:`text` says why.
    value: Optional[float]
    #: The lowest and the highest of the rounds.
    spread: Optional[Tuple[float, float]]
    text: str
    #: Whether it is the one that the page is about.
    is_ours: bool = False


class Line(NamedTuple):
    """One line: a value for each tick, ``None`` where there is none."""

    label: str
    values: Sequence[Optional[float]]
    is_ours: bool = False


_WIDTH = 760
_LABELS = 250
_ROW = 24
_TOP = 52

# An SVG in an <img> has no colours of the page around it; it does know what the reader prefers.
_STYLE = """\
  <style>
    text { font: 13px system-ui, sans-serif; fill: #24292f; }
    .title { font-weight: 600; font-size: 15px; }
    .note { fill: #57606a; font-size: 12px; }
    .bar { fill: #8c959f; }
    .ours { fill: #0969da; }
    .spread { stroke: #24292f; stroke-width: 1.5; }
    .grid { stroke: #d0d7de; }
    .line { fill: none; stroke-width: 1.5; }
    .bold { fill: none; stroke-width: 3.5; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; }
      .note { fill: #9198a1; }
      .bar { fill: #6e7681; }
      .ours { fill: #4493f8; }
      .spread { stroke: #e6edf3; }
      .grid { stroke: #3d444d; }
    }
  </style>
"""

#: Seen on white and on black alike; the first is for ours.
_COLOURS = (
    "#2f81f7", "#d1632a", "#2da44e", "#a371f7", "#bf8700", "#db61a2", "#1b9e9e", "#8c6d46", "#e5534b",
    "#7d8590", "#6cb33f",
)


def bars(title: str, note: str, rows: Sequence[Bar]) -> str:
    """Return a plot of *rows*, one below the other, from zero.

    :param note: what the figures are, below the title.
    """
    known = [row.value for row in rows if row.value is not None]
    known += [row.spread[1] for row in rows if row.spread]
    room = _WIDTH - _LABELS - 110
    scale = room / (max(known, default=0) or 1)
    parts: List[str] = []
    for number, row in enumerate(rows):
        middle = _TOP + number * _ROW + _ROW / 2
        parts.append(_text(_LABELS - 8, middle + 4, row.label, 'text-anchor="end"'))
        end = float(_LABELS)
        if row.value is not None:
            kind = "ours" if row.is_ours else "bar"
            parts.append(
                f'  <rect class="{kind}" x="{_LABELS}" y="{middle - 8:.1f}"'
                f' width="{row.value * scale:.1f}" height="16"/>\n'
            )
            end += row.value * scale
        if row.spread:
            low, high = (_LABELS + each * scale for each in row.spread)
            parts.append(
                f'  <path class="spread" d="M{low:.1f} {middle:.1f}H{high:.1f}'
                f'M{low:.1f} {middle - 4:.1f}v8M{high:.1f} {middle - 4:.1f}v8"/>\n'
            )
            end = max(end, high)
        parts.append(_text(end + 8, middle + 4, row.text))
    return _svg(title, note, _TOP + len(rows) * _ROW + 12, parts)


def lines(title: str, note: str, ticks: Sequence[str], series: Sequence[Line]) -> str:
    """Return a plot of *series* over *ticks*, on a logarithmic scale.

    :param note: what the figures are, below the title.
    """
    height, right = max(240, 17 * len(series) + 20), _WIDTH - 230
    known = [value for line in series for value in line.values if value and value > 0]
    low = math.floor(math.log10(min(known, default=1)) * 2) / 2
    high = max(low + 1, math.ceil(math.log10(max(known, default=10)) * 2) / 2)

    def x(number: int) -> float:
        return 60 + number * (right - 60) / max(1, len(ticks) - 1)

    def y(value: float) -> float:
        # What is nothing, or less than the clock can tell, is at the bottom.
        share = 0.0 if value <= 0 else (math.log10(value) - low) / (high - low)
        return _TOP + height * (1 - max(0.0, share))

    parts: List[str] = []
    for exponent in range(math.ceil(low), math.floor(high) + 1):
        at = y(10.0 ** exponent)
        parts.append(f'  <path class="grid" d="M60 {at:.1f}H{right}"/>\n')
        parts.append(_text(52, at + 4, f"{10.0 ** exponent:g}", 'text-anchor="end" class="note"'))
    for number, tick in enumerate(ticks):
        parts.append(_text(x(number), _TOP + height + 20, tick, 'text-anchor="middle" class="note"'))
    ends: List[Tuple[float, int]] = []
    others = iter(range(1, len(series) + 1))
    colours = [0 if line.is_ours else next(others) for line in series]
    for number, line in enumerate(series):
        points = [f"{x(at):.1f} {y(value):.1f}" for at, value in enumerate(line.values) if value is not None]
        if points:
            colour = _COLOURS[colours[number] % len(_COLOURS)]
            kind = "bold" if line.is_ours else "line"
            parts.append(f'  <path class="{kind}" stroke="{colour}" d="M{"L".join(points)}"/>\n')
            ends.append((float(points[-1].split()[1]), number))
    parts += _legend(sorted(ends), right, series, colours)
    return _svg(title, note, _TOP + height + 36, parts)


def _legend(
    ends: List[Tuple[float, int]], right: float, series: Sequence[Line], colours: List[int]
) -> List[str]:
    """Name each line where it ends, moved down or up where names would lie on each other."""
    places: List[float] = []
    for end, _ in ends:
        places.append(max(end, places[-1] + 17) if places else end)
    bottom = _TOP + max(240, 17 * len(series) + 20)
    for number in reversed(range(len(places))):
        places[number] = min(places[number], bottom - 17 * (len(places) - 1 - number))
    parts: List[str] = []
    for (end, number), place in zip(ends, places):
        colour = _COLOURS[colours[number] % len(_COLOURS)]
        parts.append(
            f'  <path class="line" stroke="{colour}" d="M{right} {end:.1f}L{right + 18} {place:.1f}"/>\n'
        )
        weight = ' style="font-weight: 600"' if series[number].is_ours else ""
        parts.append(_text(right + 24, place + 4, series[number].label, weight.strip()))
    return parts


def _svg(title: str, note: str, height: float, parts: List[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}"'
        f' height="{height:.0f}" role="img">\n'
        f"  <title>{escape(title)}</title>\n  <desc>{escape(note)}</desc>\n{_STYLE}"
        + _text(8, 20, title, 'class="title"') + _text(8, 40, note, 'class="note"')
        + "".join(parts) + "</svg>\n"
    )


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    space = " " if attributes else ""
    return f'  <text x="{x:.1f}" y="{y:.1f}"{space}{attributes}>{escape(text)}</text>\n'
