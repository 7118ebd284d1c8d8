"""What clients ask of streams that exist: to follow one, and to stop one; and the files for browsers.

``GET <prefix>/streams/<ticket>``
    the stream from its beginning, or from behind ``Last-Event-ID`` (or ``?after=``); 204 when all of it
    was read, 410 when it is gone, 404 when it never was or is somebody else's.
``DELETE <prefix>/streams/<ticket>``
    stops it, from any worker; 204, also when it has ended already.
``GET <prefix>/probe``
    see :mod:`flask_llmstream.probe`.
``GET <prefix>/metrics``
    see :mod:`flask_llmstream.scrape`.
``GET <prefix>/live`` and ``GET <prefix>/live/events``
    see :mod:`flask_llmstream.live`.
``GET <prefix>/llmstream.js`` and the other files of ``static/``
    see :mod:`flask_llmstream.assets`.
"""

from __future__ import annotations

from typing import Any

from flask import Blueprint, current_app

from flask_llmstream import resuming
from flask_llmstream.assets import asset
from flask_llmstream.live import live
from flask_llmstream.probe import probe
from flask_llmstream.responses import negotiated_format, settings_of
from flask_llmstream.scrape import metrics

__all__ = ["make_blueprint"]


def make_blueprint(prefix: str) -> Blueprint:
    """Return the blueprint with the views.

    :param prefix: path that they stand under.
    """
    blueprint = Blueprint("llmstream", __name__, url_prefix=prefix)
    blueprint.add_url_rule("/streams/<ticket>", "follow", follow, methods=["GET"])
    blueprint.add_url_rule("/streams/<ticket>", "stop", stop, methods=["DELETE"])
    blueprint.add_url_rule("/probe", "probe", probe, methods=["GET"])
    blueprint.add_url_rule("/metrics", "metrics", metrics, methods=["GET"])
    blueprint.add_url_rule("/live", "live", live, methods=["GET"])
    blueprint.add_url_rule("/live/events", "live_events", live, methods=["GET"])
    blueprint.add_url_rule("/<path:name>", "asset", asset, methods=["GET"])
    return blueprint


def follow(ticket: str) -> Any:
    """Send what the log has of a stream, and what comes."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    cursor = resuming.cursor_of_request()
    return resuming.resume(app, settings_of(app), negotiated_format(), ticket=ticket, cursor=cursor)


def stop(ticket: str) -> Any:
    """Stop a stream, wherever it runs."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    return resuming.stop(app, settings_of(app), ticket)
