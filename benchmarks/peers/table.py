"""What :mod:`benchmarks.peers.compare` gives, as text for a terminal."""

from __future__ import annotations

from typing import Any, Dict, List

__all__ = ["text"]

_HEAD = ["server", "median", "lowest - highest", "to bare", "ours to it"]


def text(compared: Dict[str, Any]) -> str:
    """Return a table for each figure."""
    lines: List[str] = []
    for work in compared["works"]:
        lines += ["", f"{work['work']}: {work['description']}"]
        for figure in work["figures"]:
            noise = "" if figure["noise"] is None else f"; noise {figure['noise']:.1%}"
            more = ", more is better" if figure["more_is_better"] else ""
            lines += ["", f"  {figure['figure']}, {figure['unit']}{more}{noise}"]
            rows = [_HEAD, *(_cells(name, each) for name, each in figure["servers"].items())]
            widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
            lines += [
                "    " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                for row in rows
            ]
        lines += [f"  {name} failed: {reason}" for name, reason in work["failed"].items()]
    lines += ["", *(f"left out: {name}: {reason}" for name, reason in compared["left_out"].items())]
    return "\n".join(lines)


def _cells(name: str, each: Dict[str, Any]) -> List[str]:
    return [
        name, _number(each["median"]), f"{_number(each['lowest'])} - {_number(each['highest'])}",
        _number(each["to bare"]), _number(each["ours to it"]),
    ]


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
