"""Gives database connections back before a stream begins.

A view that queries holds a connection of the pool until its request is over. With a stream that may
be minutes, and a pool of five serves five streams.

Decisions
    1. It happens when the response is handed to the server, still in the request's context: after
       the view and after every ``after_request`` hook, so whatever has queried is done.
    2. An error is logged and the stream goes on: its client has done nothing wrong, and the
       connection goes back when the stream is over, as it would without us.
"""

from __future__ import annotations

import logging
from typing import Any

from flask_llmstream.exceptions import ConfigurationError

__all__ = ["release_connections"]

_log = logging.getLogger(__name__)


def release_connections(app: Any, release: Any) -> None:
    """Give back what the request holds; nothing is raised.

    :param app: the Flask app; ``None`` where *release* is callable.
    :param release: ``True`` for the session of Flask-SQLAlchemy, or what is called instead;
        ``None`` and ``False`` do nothing.
    """
    if not release:
        return
    try:
        if callable(release):
            release()
        else:
            _session_of(app).remove()
    except Exception:
        _log.exception(
            "LLMSTREAM_RELEASE: the connection could not be given back before the stream began; it"
            " stays in use until the stream is over"
        )


def _session_of(app: Any) -> Any:
    held = app.extensions.get("sqlalchemy")
    # Flask-SQLAlchemy 3 registers itself, version 2 an object that knows it.
    session = getattr(held if hasattr(held, "session") else getattr(held, "db", None), "session", None)
    if session is None:
        raise ConfigurationError(
            "LLMSTREAM_RELEASE", True,
            "a callable, such as the remove of your scoped_session: this app has no Flask-SQLAlchemy",
        )
    return session
