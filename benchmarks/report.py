"""From figures to ratios: a table for people, JSON for programs."""

from __future__ import annotations

import math
import platform
import statistics
import time
from typing import Any, Dict, List

import flask_llmstream
from benchmarks.cases import Case, Figures, Sizes
from benchmarks.processes import machine

__all__ = ["Report"]

_COLUMNS = ("bare", "bare + context", "ours")
_HEAD = ("case", "unit", *_COLUMNS, "ratio", "lowest - highest", "noise", "target", "bar")


class Report:
    """Collects what was measured.

    :param sizes: how much work was done.
    """

    def __init__(self, sizes: Sizes) -> None:
        self._sizes = sizes
        self._rows: List[Dict[str, Any]] = []

    def add(self, case: Case, figures: Figures, load: float) -> None:
        """Add the figures of one case.

        :param load: load average of the machine when they had been taken.
        """
        # Round by round, against both bare servers of the same round: what disturbs a round
        # disturbs all of it.
        bare = [(one + two) / 2 for one, two in zip(figures["bare"], figures["bare again"])]
        ratios = [_ratio(ours, base) for ours, base in zip(figures["ours"], bare)]
        noises = [abs(_ratio(one, two) - 1) for one, two in zip(figures["bare"], figures["bare again"])]
        self._rows.append({
            "case": case.name,
            "description": case.describe(self._sizes),
            "unit": case.unit,
            "medians": {name: _finite(statistics.median(values)) for name, values in figures.items()},
            "ratio": _finite(statistics.median(ratios)),
            "ratios": [_finite(each) for each in ratios],
            "noise": _finite(statistics.median(noises)),
            "target": case.target,
            "bar": case.bar,
            "load_average": load,
            "figures": {name: [_finite(each) for each in values] for name, values in figures.items()},
        })

    def missed(self) -> List[str]:
        """Return the names of the cases whose ratio is above its target."""
        return [row["case"] for row in self._rows if not _is_within(row["ratio"], row["target"])]

    def data(self) -> Dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "measured": time.strftime("%Y-%m-%d"), "machine": machine(), "versions": _versions(),
            "sizes": self._sizes._asdict(), "results": self._rows,
        }

    def text(self) -> str:
        """Return the table."""
        lines = [_HEAD, *(_cells(row) for row in self._rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in lines]
        table.insert(1, "-" * len(table[0]))
        loads = [row["load_average"] for row in self._rows]
        return "\n".join([
            "",
            ", ".join(f"{name} {version}" for name, version in _versions().items()),
            "Medians of rounds in turns; ratio = ours / bare, less is better; noise = the same bare app on",
            f"two servers; load average {min(loads, default=0):.1f} to {max(loads, default=0):.1f}",
            "",
            *(line.rstrip() for line in table),
        ])


def _cells(row: Dict[str, Any]) -> List[str]:
    known = [each for each in row["ratios"] if each is not None]
    return [
        row["case"],
        row["unit"],
        *(_number(row["medians"][name]) if name in row["medians"] else "-" for name in _COLUMNS),
        "-" if row["ratio"] is None else f"{row['ratio']:.2f}",
        f"{min(known):.2f} - {max(known):.2f}" if known else "-",
        "-" if row["noise"] is None else f"{row['noise']:.1%}",
        _verdict(row["ratio"], row["target"]),
        _verdict(row["ratio"], row["bar"]),
    ]


def _verdict(ratio: Any, limit: Any) -> str:
    if limit is None:
        return "-"
    return f"<= {limit:.2f} {'reached' if _is_within(ratio, limit) else 'MISSED'}"


def _is_within(ratio: Any, limit: Any) -> bool:
    return limit is None or (ratio is not None and ratio <= limit)


def _number(value: Any) -> str:
    if value is None:
        return "never"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _ratio(one: float, two: float) -> float:
    return one / two if two and math.isfinite(one) and math.isfinite(two) else math.inf


def _finite(value: float) -> Any:
    """Return ``None`` for what never happened; JSON has no infinity."""
    return value if math.isfinite(value) else None


def _versions() -> Dict[str, str]:
    from importlib.metadata import version

    names = ("Flask", "gunicorn", "gevent", "greenlet", "requests")
    return {
        "flask-llmstream": flask_llmstream.__version__,
        "Python": platform.python_version(),
        **{name: version(name) for name in names},
    }
