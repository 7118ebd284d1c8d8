"""Write docs/servers.md from docs/servers.json and the table of servers; ``--check`` only compares.

The figures come from ``LLMSTREAM_RECORD=docs/servers.json make servers``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Dict, List

from generated import write_or_check

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TARGET = ROOT / "docs" / "servers.json", ROOT / "docs" / "servers.md"

#: (name in the record, heading, what it means)
COLUMNS = [
    ("first byte", "first byte", "from the request to the first byte of the body, the first token being"
     " ready at once"),
    ("token spacing", "token spacing", "the largest deviation of the gaps between tokens that the app yields"
     " every 100 ms"),
    ("disconnect seen", "disconnect seen", "from the client's close (a FIN) to the generator's `finally`,"
     " while the generator is blocked in a read from a silent upstream"),
    ("disconnect seen (RST)", "by a RST", "the same for a client that crashes"),
    ("upstream closed", "upstream closed", "from the client's close to the moment at which the upstream sees"
     " the end of its connection"),
    ("heartbeat while blocked", "heartbeat", "the longest gap between two heartbeats; 500 ms are set"),
    ("graceful end", "graceful end", "what becomes of an open stream when the server is asked to stop"),
]

HEAD = """\
# Servers and proxies

Each row was measured on a real server or proxy that the tests have started (`make servers`), with
one app: a route with `@stream`, `heartbeat_interval=0.5`, and no other configuration than what this
page and [deploy](../deploy) name. Figures are milliseconds. Where only heartbeats can show a
departure, as the text says, the figure is a multiple of their interval, which is 15 s by default.

This page is written from the results of such a run by `scripts/servers_page.py`.

"""

STOPPING = """\
## Being asked to stop

Under gunicorn nothing need be done: streams get most of `graceful_timeout`, then the word `failed`
with the code `shutdown`, and their `finally` blocks run. Other servers do not tell the app. Where it
has the signal in its own hands (gevent.pywsgi, waitress), call `flask_llmstream.draining.drain()`
in its handler, before the server is stopped, as the tests do. "May finish": the server, asked
gracefully (uWSGI: the hook `unix_signal:15 gracefully_kill_them_all`; Apache: `apachectl
graceful-stop`), lets streams go on to their end, until `worker-reload-mercy` (60 s) or
`GracefulShutdownTimeout` (none) is over; what is left then is cut and runs no `finally`.
"""


def page(data: Dict[str, Any]) -> str:
    """Return the text of the page for the figures in *data*."""
    from flask_llmstream.servers import SERVERS

    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = [f"{versions}.", "", "## Servers", "", *_table("server", data["servers"]), ""]
    lines += ["What the columns say:", ""]
    lines += [f"- **{heading}**: {meaning}." for _, heading, meaning in COLUMNS]
    for server in SERVERS:
        lines += ["", f"### {server.name}", "", server.about]
    lines += [
        "", "### Other servers", "",
        "A server that the table does not know streams, too. There are no heartbeats, and a departure"
        " shows when a write fails.",
        "", STOPPING,
        "## Proxies", "", *_table("proxy", data["proxies"]), "",
        "[Proxies](proxies.md) says what each of them needs.",
    ]
    return HEAD + "\n".join(lines) + "\n"


def _table(what: str, rows: Dict[str, Any]) -> List[str]:
    columns = [each for each in COLUMNS if any(each[0] in row for row in rows.values())]
    lines = [
        "| " + " | ".join([what] + [heading for _, heading, _ in columns]) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in rows.items():
        lines.append("| " + " | ".join([name] + [_cell(row.get(key)) for key, _, _ in columns]) + " |")
    return lines


def _cell(figure: Any) -> str:
    if figure is None:
        return ""
    if isinstance(figure, str):
        return figure
    return f"{figure:.0f}" if figure >= 10 else f"{figure:.1f}"


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page(json.loads(SOURCE.read_text(encoding="utf-8")))))
