"""Starts the app of the tests with React, with the pages of docs/react.md and the bundles."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any, Dict, Iterator, List

from bundling import BUNDLES, bundle

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server

APPS = Path(__file__).resolve().parent / "apps"
DOCS = APPS.parent.parent.parent / "docs"


@contextlib.contextmanager
def serving(packages: Path, folder: Path, upstream: ScriptedUpstream) -> Iterator[LiveServer]:
    """Serve the pages ``probe``, and ``ask`` and ``chat`` of the docs."""
    pages = {"probe": str(APPS / "react_probe.html")}
    text = (DOCS / "react.md").read_text(encoding="utf-8")
    for name, page in zip(("ask", "chat"), re.findall(r"^```html\n(.*?)^```", text, re.M | re.S)):
        pages[name] = str(folder / f"{name}.html")
        Path(pages[name]).write_text(page, encoding="utf-8")
    env: Dict[str, str] = {
        "PAGES": json.dumps(pages),
        "BUNDLES": json.dumps({name: str(bundle(name, packages)) for name in BUNDLES}),
        "EVENT_LOG": f"sqlite:///{folder}/log.db", "CHATS": str(folder), "UPSTREAM": upstream.url,
    }
    # The browser keeps connections that are idle: at the end each of them would be waited for.
    with gunicorn_server(APPS / "react_app.py", workers=2, env=env, config_lines="keepalive = 0") as server:
        yield server
        assert "Traceback" not in server.log(), server.log()[-5000:]


def complaints(browser: Any) -> List[str]:
    """Return what the console shows, but for the browser's own line on a failed request."""
    messages = [entry["message"] for entry in browser.get_log("browser")]
    return [
        message for message in messages
        if "Failed to load resource" not in message and "React DevTools" not in message
    ]
