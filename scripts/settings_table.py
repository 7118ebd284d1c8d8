"""Write docs/settings.md from the one table of settings; ``--check`` only compares."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generated import write_or_check  # noqa: E402

from flask_llmstream.settings import SETTINGS  # noqa: E402

TARGET = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

HEAD = """\
# Settings

Keys of `app.config`, or keywords of `LLMStream(app, …)` in lower case without the prefix. Those
marked with a star can also be given for one stream, as a keyword of `@stream(…)` or
`stream_response(…)`. An impossible value is refused when the app is set up. `flask llmstream
settings` prints what is in force.

| key | default | |
|---|---|---|
"""

#: Settings that are keywords of stream_response too.
PER_STREAM = {
    "heartbeat_interval", "status_hold", "padding", "max_age", "max_bytes", "max_delay", "max_duration",
    "max_streams", "on_disconnect", "release",
}


def table() -> str:
    """Return the text of the page."""
    rows = [
        _row(setting.key, setting.name in PER_STREAM, setting.default, setting.help)
        for setting in SETTINGS
    ]
    return HEAD + "".join(rows)


def _row(key: str, starred: bool, default: object, text: str) -> str:
    star = " \N{BLACK STAR}" if starred else ""
    return f"| `{key}`{star} | `{default!r}` | {text} |\n"


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, table()))
