"""Write docs/benchmarks.md from docs/benchmarks.json; ``--check`` only compares.

The figures come from ``make bench ARGS="--json docs/benchmarks.json"``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from generated import write_or_check

DOCS = Path(__file__).resolve().parent.parent / "docs"
SOURCE, TARGET = DOCS / "benchmarks.json", DOCS / "benchmarks.md"

HEAD = """\
# Benchmarks

`make bench` compares an app that uses this library, with everything switched on, to a bare Flask
generator on the same gunicorn with the gevent worker, in turns within one run. CPU is that of the
worker process. The same bare app runs on a second server, which shows the noise. A ratio below 1
means less than the bare generator needs.

This page is written from the figures of one such run by `scripts/benchmarks_page.py`.

"""


def page(data: Dict[str, Any]) -> str:
    """Return the text of the page for the figures in *data*."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    loads = [row["load_average"] for row in data["results"]]
    lines = [
        f"{versions}; load average {min(loads):.1f} to {max(loads):.1f}.",
        "",
        "| case | unit | bare | with request context | ours | ratio | noise | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in data["results"]]
    lines += ["", "What the cases do:", ""]
    lines += [f"- **{row['case']}**: {row['description']}." for row in data["results"]]
    return HEAD + "\n".join(lines) + "\n"


def _row(row: Dict[str, Any]) -> str:
    medians = row["medians"]
    cells: List[str] = [row["case"], row["unit"]]
    cells += [_number(medians.get(name)) for name in ("bare", "bare + context", "ours")]
    noise = row["noise"]
    cells += [
        _number(row["ratio"]),
        "" if noise is None else f"{noise:.1%}",
        "" if row["bar"] is None else f"≤ {row['bar']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _number(value: Optional[float]) -> str:
    return "" if value is None else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page(json.loads(SOURCE.read_text(encoding="utf-8")))))
