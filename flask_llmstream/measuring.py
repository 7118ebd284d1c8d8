"""Where the streams of an app are measured and seen; nothing here loads what does so."""

from __future__ import annotations

from typing import Any, Mapping

__all__ = ["ROUTE_KEY", "UNSEEN_KEY", "measure", "observer_of", "route_of", "tallies_of"]

#: Says in a WSGI environ which endpoint has answered, where the retrofit takes the answer over.
ROUTE_KEY = "flask_llmstream.route"
#: Says in a WSGI environ that its stream is about streams, and neither measured nor seen.
UNSEEN_KEY = "flask_llmstream.unseen"


def tallies_of(app: Any) -> Any:
    """Return what measures *app*, see :mod:`flask_llmstream.metrics`; ``None`` where nothing does.

    :param app: a Flask app, or whatever else sends signals.
    """
    extensions = getattr(app, "extensions", None)
    return None if not extensions else getattr(extensions.get("llmstream"), "tallies", None)


def observer_of(app: Any) -> Any:
    """Return what sees the streams of *app*, see :mod:`flask_llmstream.observed`, or ``None``.

    :param app: as for :func:`tallies_of`.
    """
    extensions = getattr(app, "extensions", None)
    return None if not extensions else getattr(extensions.get("llmstream"), "observer", None)


def measure(stream: Any, environ: Mapping[str, Any]) -> None:
    """Have *stream* counted and seen, as far as that is switched on in its app.

    :param environ: of the request that it answers.
    """
    extensions = getattr(stream._sender, "extensions", None)
    state = extensions.get("llmstream") if extensions else None
    if state is None or UNSEEN_KEY in environ:
        return
    for each in (state.tallies, state.observer):
        if each is not None:
            each.measure(stream, environ)


def route_of(environ: Mapping[str, Any]) -> str:
    """Return the endpoint that has answered, ``none`` where none has.

    :param environ: of the request.
    """
    # Flask's request is there until it is popped, which is before the retrofit sees the answer.
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return str(environ.get(ROUTE_KEY) or getattr(rule, "endpoint", "none"))
