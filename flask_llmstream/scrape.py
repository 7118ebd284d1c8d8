"""The metrics of all workers, for Prometheus.

``GET <prefix>/metrics``
    in the text format or in OpenMetrics, as ``Accept`` asks; ``?name[]=`` picks some; compressed for who
    takes that. 404 where nothing is measured, 403 where ``authorize`` says no.

Decisions
    1. The answer is that of the library's own WSGI app: what it offers is what scrapers know.
"""

from __future__ import annotations

import logging
from typing import Any

from flask import current_app, request

from flask_llmstream.access import refusal_of
from flask_llmstream.measuring import tallies_of

__all__ = ["metrics"]

_log = logging.getLogger(__name__)


def metrics() -> Any:
    """Answer a scrape; the view of ``GET <prefix>/metrics``."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    tallies = tallies_of(app)
    if tallies is None:
        # As of a page that is not there; but whoever has forgotten the setting should find out.
        return _plain(app, "Nothing is measured here: LLMSTREAM_METRICS is not set.\n", 404)
    refused = refusal_of(app, "metrics")
    if refused is not None:
        return refused
    from prometheus_client import CollectorRegistry, make_wsgi_app

    registry = CollectorRegistry()
    registry.register(tallies)
    try:
        answer = app.response_class.from_app(make_wsgi_app(registry), request.environ)
    except (OSError, ValueError) as error:  # the folder cannot be read, or not now
        _log.error("the metrics cannot be read: %s", error)
        return _plain(app, "The metrics cannot be read now; the log says why.\n", 503)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def _plain(app: Any, text: str, status: int) -> Any:
    return app.response_class(text, status, {"Cache-Control": "no-store"}, mimetype="text/plain")
