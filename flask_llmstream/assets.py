"""The files of ``static/``, as browsers want them.

Decisions
    1. The content types are ours: what the operating system says of ``.js`` is wrong on some, and a
       module of another type is not run.
    2. With the version in their path (``v0.1.0/llmstream.js``) they may be kept for ever. Without it, or
       with another, from a page that is older than the app, the browser asks each time whether they have
       changed: they import each other, and must not be of two versions.
    3. Read for each request, and answered by its own code: ``send_file`` has other arguments in each
       version of Flask, and these files are small and rarely asked for.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Dict

from flask import current_app, request

import flask_llmstream

__all__ = ["FOLDER", "TYPES", "asset"]

#: Where they are.
FOLDER = Path(__file__).resolve().parent / "static"

#: Content types by the end of a name; licences and ``.d.ts`` are text.
TYPES = {
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
}

#: The version that a page has asked for, and the file.
_VERSION = re.compile(r"(?:v(\d[^/]*)/)?(.*)", re.S)

#: Seconds for which a file is used without asking again.
_YEAR = 31536000


def asset(name: str) -> Any:
    """Send one of the files; the view of ``GET <prefix>/<name>``.

    With this version before it, or in ``?v=``, it may be kept for ever.

    :param name: its path inside the folder, such as ``llmstream.js``.
    """
    version, name = _VERSION.match(name).groups()  # type: ignore[union-attr]
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    # Looked up, not opened: no dots, slashes and links lead to what is not in there.
    path = _files().get(name)
    if path is None:
        headers = {"Cache-Control": "no-store"}
        return app.response_class("There is no such file.", 404, headers, mimetype="text/plain")
    data = path.read_bytes()
    response = app.response_class(data, content_type=TYPES.get(path.suffix, "text/plain; charset=utf-8"))
    forever = flask_llmstream.__version__ in (version, request.args.get("v"))
    response.headers["Cache-Control"] = f"public, max-age={_YEAR}, immutable" if forever else "no-cache"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(hashlib.sha256(data).hexdigest()[:32])
    return response.make_conditional(request)


def _files() -> Dict[str, Path]:
    return {path.relative_to(FOLDER).as_posix(): path for path in FOLDER.rglob("*") if path.is_file()}
