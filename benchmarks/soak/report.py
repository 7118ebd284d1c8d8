"""What a soak has found, as text."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List, Sequence

from benchmarks.soak.verdict import Finding, growths, was_disturbed

__all__ = ["text"]


def _table(rows: Sequence[Sequence[str]]) -> List[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) if not at else cell.rjust(width)
                         for at, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows
    ]


def text(found: Dict[str, Any], findings: Sequence[Finding]) -> str:
    """Return the report."""
    plan = found["plan"]
    lines = [
        f"soak: {plan['streams']} streams at once for {plan['seconds']:g} s, seed {plan['seed']},"
        f" {plan['worker']}, {plan['log']}", "",
    ]
    lines += _lives(found) + [""] + _moments(found) + [""] + _growth(found) + [""]
    left = found.get("log at the end")
    if left:
        lines += ["event log at the end: " + ", ".join(f"{name} {count}" for name, count in left.items()), ""]
    if not findings:
        return "\n".join(lines + ["nothing is left, and everything has ended as it should"])
    lines.append(f"{len(findings)} findings:")
    lines += [f"* {finding}" for finding in findings]
    lines += [
        "", f"to live some of these again: python -m benchmarks.soak --seed {plan['seed']}"
        f" --worker {plan['worker']} --log {plan['log']} --streams {plan['streams']}"
        " --minutes 0.5 --lives ID[,ID...]",
    ]
    return "\n".join(lines)


def _lives(found: Dict[str, Any]) -> List[str]:
    rows: Dict[str, Counter[str]] = {}
    for life in found["results"]:
        verdict = life["verdict"]
        if verdict == "cut" and was_disturbed(life, found):
            verdict = "cut, excused"
        rows.setdefault(life["kind"], Counter())[verdict] += 1
    columns = ("ok", "sent home", "cut, excused", "cut", "unexpected")
    table = [["lives", *columns]]
    for kind in sorted(rows):
        table.append([kind, *(str(rows[kind][column]) for column in columns)])
    total: Counter[str] = sum(rows.values(), Counter())
    table.append(["all", *(str(total[column]) for column in columns)])
    what = Counter(each["what"] for each in found["disturbances"])
    told = ", ".join(f"{count} x {name}" for name, count in sorted(what.items())) or "none"
    return _table(table) + ["", f"disturbances: {told}; {len(found['gone'])} workers have gone"]


def _moments(found: Dict[str, Any]) -> List[str]:
    rows = [["quiet", "upstream opened", "closed", "idle kept", "worker", "memory KiB", "blocks", "greenlets",
             "threads", "fds", "streams ended"]]
    for moment in found["quiet"]:
        upstream = moment["upstream"]
        for name, worker in sorted(moment["workers"].items()):
            rows.append([
                moment["name"], str(upstream["opened"]), str(upstream["closed"]), str(moment["idle"]), name,
                str(worker["memory"]), str(worker["blocks"]), str(sum(worker["greenlets"].values())),
                str(sum(worker["threads"].values())), str(sum(worker["fds"].values())),
                str(moment["ended"].get(str(worker["pid"]), 0)),
            ])
    return _table(rows)


def _growth(found: Dict[str, Any]) -> List[str]:
    rows = [["growth between phases", "streams", "first", "last", "per 1,000", "grown", "bound"]]
    for row in growths(found):
        figures = [row[name] for name in ("streams", "first", "last", "per 1,000 streams", "grown", "bound")]
        rows.append([f"{row['what']} of {row['worker']}", *(f"{figure:.0f}" for figure in figures)])
    return _table(rows)
