"""Collects the facts of a Flask app and of its deployment, without serving."""

from __future__ import annotations

import inspect
import re
from typing import Any, Dict, Iterator, List, Optional, Tuple

from flask_llmstream.doctor.databases import has_sqlalchemy, look_at_pools
from flask_llmstream.doctor.facts import AppFacts, Deployment, Route
from flask_llmstream.doctor.hooks import look_at_hooks
from flask_llmstream.doctor.layers import look_at_layers
from flask_llmstream.doctor.libraries import blocking_libraries, is_patched, late_holders, missing_packages
from flask_llmstream.doctor.routes import look_at_routes, permanent_sessions, queries
from flask_llmstream.doctor.sources import Source, name_of, source_of
from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.settings import Settings

__all__ = ["collect"]


def collect(
    app: Any, deployment: Optional[Deployment] = None, *, call: bool = True, proxy_timeout: float = 60.0
) -> AppFacts:
    """Return the facts of *app*.

    :param deployment: how it is served, see :func:`.gunicorn_facts.look_at_gunicorn`.
    :param call: whether hooks and middleware may be called, with a response made for that.
        Defaults to ``True``.
    :param proxy_timeout: seconds of silence after which the nearest hop gives up.
    """
    settings = getattr(app.extensions.get("llmstream"), "settings", None)
    routes = tuple(look_at_routes(app))
    layers, has_middleware = look_at_layers(app) if call else ([], True)
    before = list(_hooks_before(app))
    return AppFacts(
        app.name,
        settings=settings,
        config={str(key): value for key, value in app.config.items()},
        config_error=_config_error(app),
        has_secret_key=bool(app.secret_key),
        hooks=tuple(look_at_hooks(app, _streams(routes), call)),
        permanent=tuple(use for source in before for use in permanent_sessions(source)),
        routes=routes,
        rules=tuple(
            (rule.rule, rule.endpoint) for rule in app.url_map.iter_rules()
            if not rule.endpoint.startswith("llmstream.")
        ),
        layers=tuple(layers),
        has_middleware=has_middleware,
        session_interface=name_of(app.session_interface),
        pools=look_at_pools(app, _names(app, routes)),
        has_sqlalchemy=has_sqlalchemy(app),
        queries_of_hooks=tuple(use for source in before for use in queries(source, source.node)),
        ends_context_early=_flask_version() >= (3, 1, 2),
        blocking=tuple(blocking_libraries()),
        patched=is_patched(),
        late=tuple(late_holders()),
        missing=tuple(missing_packages(settings.event_log)) if settings is not None else (),
        deployment=deployment,
        proxy_timeout=proxy_timeout,
    )


def _streams(routes: Tuple[Route, ...]) -> List[Tuple[str, str]]:
    """Return path and type of what the routes stream; parameters of a path get some value."""
    found: Dict[Tuple[str, str], None] = {}
    for route in routes:
        path = re.sub(r"<[^>]*>", "1", route.rule)
        for content_type in route.types or ("text/event-stream",):
            found[path, content_type] = None
    return list(found)


def _hooks_before(app: Any) -> Iterator[Source]:
    for functions in app.before_request_funcs.values():
        for function in functions:
            if not str(getattr(function, "__module__", "")).startswith("flask_llmstream"):
                source = source_of(function)
                if source is not None:
                    yield source


def _names(app: Any, routes: Tuple[Route, ...]) -> Iterator[Dict[str, Any]]:
    """Yield what names mean in the views that stream, and in what these call."""
    for route in routes:
        view = inspect.unwrap(app.view_functions[route.endpoint])
        source = source_of(view)
        if source is not None:
            yield source.names
            for function in source.called():
                inner = source_of(function)
                if inner is not None:
                    yield inner.names


def _config_error(app: Any) -> str:
    try:
        Settings.from_config(app.config)
    except ConfigurationError as error:
        return str(error)
    return ""


def _flask_version() -> Tuple[int, ...]:
    try:
        from importlib.metadata import version
    except ImportError:  # Python 3.7
        import flask

        text = str(getattr(flask, "__version__"))
    else:
        text = version("flask")
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
