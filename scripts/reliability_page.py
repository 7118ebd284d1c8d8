"""Write docs/reliability.md from docs/reliability.json; ``--check`` only compares.

What clients got is recorded by ``LLMSTREAM_RECORD=docs/reliability.json make faults``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Tuple

from generated import write_or_check

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TARGET = ROOT / "docs" / "reliability.json", ROOT / "docs" / "reliability.md"
#: What stands around the tables.
FRAME = Path(__file__).with_suffix(".md")

#: What the tests record of each fault, and its heading.
COLUMNS = [
    ("client", "what the client gets"),
    ("model", "the model's connection"),
    ("log", "the log says, and the reason"),
]


class Fault(NamedTuple):
    """One row: its name in the record, and what is not measured."""

    name: str
    fault: str
    injected: str
    setting: str


GROUPS: List[Tuple[str, List[Fault]]] = [
    ("The model fails", [
        Fault("killed-before", "its process dies before the answer", "SIGKILL", "nothing"),
        Fault(
            "killed-middle", "its process dies in the middle", "SIGKILL", "nothing; let clients retry",
        ),
        Fault(
            "reset-middle", "the connection is reset", "a RST in the middle",
            "nothing; let clients retry",
        ),
        Fault(
            "hole-before", "it cannot be reached, and nobody says so",
            "packets dropped before the connection", "`timeout=(5, 120)` of the call: the first number",
        ),
        Fault(
            "hole-after", "it vanishes before the first byte", "packets dropped behind the request",
            "the second number of `timeout`",
        ),
        Fault(
            "hole-middle-read", "it vanishes in the middle", "packets dropped",
            "the second number of `timeout`; the client sees heartbeats until then",
        ),
        Fault(
            "hole-middle-idle", "the same, under the app's own limit", "packets dropped",
            "`LLMSTREAM_IDLE_TIMEOUT`, which holds for every source, SDKs too",
        ),
        Fault(
            "byte-a-second", "it crawls", "one byte a second, in the middle of a letter",
            "`LLMSTREAM_IDLE_TIMEOUT` asks for tokens; `timeout` of the call is content with bytes",
        ),
        Fault(
            "garbage-model", "it sends garbage", "bytes of a socket server, each case twice",
            "`LLMSTREAM_MAX_DURATION`, for what never ends and never stalls",
        ),
    ]),
    ("The client fails", [
        Fault(
            "client-hole", "it vanishes: no FIN, no RST", "packets dropped in the middle",
            "`LLMSTREAM_SLOW_READER_TIMEOUT` (120 s; 2 s here), which comes up to half of it late",
        ),
        Fault(
            "never-reads", "it never reads", "a socket that is not read, a model that floods",
            "`LLMSTREAM_SLOW_READER_TIMEOUT`",
        ),
        Fault(
            "half-heads", "it never finishes the head of its request",
            "more of them than `worker_connections`", "a proxy in front; `keepalive` above 0",
        ),
        Fault(
            "half-bodies", "it never finishes the body of its request",
            "more of them than `worker_connections`",
            "a proxy that collects request bodies, as nginx does unless told otherwise",
        ),
        Fault(
            "crowd", "10,000 come in 10 seconds",
            "a tenth with a stream, a tenth with half a request, a tenth leaves at once, the"
            " others are silent",
            "`worker_connections` and the limit of descriptors above that number",
        ),
        Fault("garbage-clients", "it sends garbage", "raw bytes on a socket", "nothing"),
    ]),
    ("The server fails", [
        Fault(
            "worker-killed", "a worker dies", "SIGKILL, one of two workers",
            "[`resumable=True`](resuming.md), so that readers get what was written",
        ),
        Fault(
            "worker-stopped", "a worker stands still for a while", "SIGSTOP, SIGCONT",
            "gunicorn's `timeout`",
        ),
        Fault("worker-hangs", "a worker stands still for good", "SIGSTOP", "gunicorn's `timeout`"),
        Fault("master-killed", "gunicorn's master dies", "SIGKILL", "a supervisor that starts it again"),
        Fault(
            "clock", "the clock jumps by hours, forward and backward",
            "a wall clock of the server's own, underneath C code too", "`LLMSTREAM_KEEP`",
        ),
        Fault(
            "no-files", "descriptors run out", "`RLIMIT_NOFILE` of 64 and 80 clients",
            "`LimitNOFILE` of systemd: two for each stream, and some",
        ),
    ]),
    ("The log of resumable streams fails", [
        Fault("log-redis-killed", "Redis dies and comes back", "SIGKILL, a new start", "nothing"),
        Fault("log-redis-stopped", "Redis stands still", "SIGSTOP, SIGCONT", "nothing"),
        Fault("log-redis-hole", "Redis vanishes", "packets dropped", "nothing"),
        Fault(
            "log-sqlite-full", "the disk is full", "a disk of 1 MB, stuffed",
            "room for `LLMSTREAM_KEEP_BYTES` of each stream",
        ),
        Fault("log-sqlite-read-only", "the disk is read-only", "mounted so before the start", "nothing"),
        Fault("log-sqlite-deleted", "the file is deleted", "removed with its journal", "nothing"),
        Fault(
            "log-sqlite-locked", "another process holds the file", "`BEGIN EXCLUSIVE`",
            "`?timeout=` of the URL (0.5 s here)",
        ),
    ]),
]
#: All rows, by their name in the record.
ROWS = {row.name: row for _, rows in GROUPS for row in rows}


def page(data: Dict[str, Any]) -> str:
    """Return the text of the page for what is recorded in *data*."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [f"{versions}.", ""]
    headings = ["fault", "injected by", *[heading for _, heading in COLUMNS], "what to set"]
    for title, rows in GROUPS:
        lines += [f"## {title}", "", "| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
        for row in rows:
            found = [_cell(data["faults"][row.name][column]) for column, _ in COLUMNS]
            lines.append("| " + " | ".join([row.fault, row.injected, *found, row.setting]) + " |")
        lines.append("")
    return FRAME.read_text(encoding="utf-8").replace("{tables}", "\n".join(lines).rstrip("\n"))


def _cell(words: str) -> str:
    return words.replace("|", "\\|").replace("after 0.0 s", "at once").replace("within 0.0 s", "within 0.1 s")


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page(json.loads(SOURCE.read_text(encoding="utf-8")))))
