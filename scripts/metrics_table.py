"""Write the table in docs/metrics.md from the one table of metrics; ``--check`` only compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generated import write_or_check  # noqa: E402

from flask_llmstream.metrics.table import METRICS  # noqa: E402

TARGET = Path(__file__).resolve().parent.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- metrics -->\n", "<!-- end of metrics -->\n"


def page() -> str:
    """Return the text of the page, with the table as it should be."""
    rows = "".join(
        f"| `{row.name}` | {row.type} | {', '.join(f'`{label}`' for label in row.labels)} | {row.help} |\n"
        for row in METRICS
    )
    table = f"{BEGIN}| metric | type | labels | |\n|---|---|---|---|\n{rows}{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: table, TARGET.read_text(encoding="utf-8"), flags=re.S)


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page()))
