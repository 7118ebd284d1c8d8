"""The Flask extension: settings, and the state that an app carries."""

from __future__ import annotations

import functools
from typing import Any, Optional

from flask_llmstream.eventlog.base import public_url
from flask_llmstream.measuring import ROUTE_KEY
from flask_llmstream.middleware import LLMStreamMiddleware
from flask_llmstream.release import release_connections
from flask_llmstream.sansio.headers import essence
from flask_llmstream.settings import SETTINGS, Settings
from flask_llmstream.templating import template_names

__all__ = ["LLMStream", "LLMStreamState"]


class LLMStreamState:
    """What ``app.extensions["llmstream"]`` holds."""

    def __init__(self, settings: Settings) -> None:
        #: The settings in force.
        self.settings = settings
        #: What streams call in this app, see ``responses``; made by the first of them.
        self.callbacks: Any = None
        #: What measures its streams, a collector for a registry of ``prometheus_client``; or ``None``.
        self.tallies: Any = None
        #: What sees its streams, see ``observed``; or ``None``.
        self.observer: Any = None


class LLMStream:
    """Set up streaming for an app, or for several with :meth:`init_app`.

    Routes that stream already become streams of ours without a change, see
    :mod:`flask_llmstream.middleware`. Initialise it after other middleware that wraps
    ``app.wsgi_app``: what is put around it later must pass each item on.

    :param app: the Flask app; may come later.
    :param settings: values that win over the ``LLMSTREAM_*`` keys of ``app.config``, by lower-case
        name: ``LLMStream(app, heartbeat_interval=10)``.
    :raises TypeError: for a setting that does not exist.
    :raises ConfigurationError: for a setting with an impossible value.
    """

    def __init__(self, app: Optional[Any] = None, **settings: Any) -> None:
        self._overrides = settings
        Settings(**settings)  # a wrong name or value is said here, where it was written
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Any) -> None:
        """Set up *app*; nothing of it is kept here."""
        settings = Settings.from_config(app.config, self._overrides)
        again = "llmstream" in app.extensions
        state = LLMStreamState(settings)
        if settings.metrics:
            from flask_llmstream.metered import make_measures

            state.tallies = make_measures(app, settings)
        if settings.live or settings.log_streams or settings.otel:
            from flask_llmstream.observed import make_observer

            state.observer = make_observer(app, settings)
        app.extensions["llmstream"] = state
        if not again:
            _add_commands(app)
            if settings.url_prefix:
                from flask_llmstream.views import make_blueprint

                app.register_blueprint(make_blueprint(settings.url_prefix))
            app.context_processor(template_names)
            if settings.otel:
                _note_contexts(app)
        if settings.retrofit:
            _retrofit(app, settings)


def _retrofit(app: Any, settings: Settings) -> None:
    """Take the streams of unmodified routes into our care."""
    from flask import request

    from flask_llmstream.admission import note_owner
    from flask_llmstream.responses import run_in_app_context
    from flask_llmstream.shield import make_shield

    def note_request() -> None:
        note_owner()
        request.environ[ROUTE_KEY] = request.endpoint

    middleware = app.wsgi_app
    if not isinstance(middleware, LLMStreamMiddleware):
        middleware = app.wsgi_app = LLMStreamMiddleware(app.wsgi_app)
        release = functools.partial(release_connections, app, settings.release)
        types = frozenset(map(essence, settings.retrofit))
        shield = make_shield(types, release if settings.release else None, note_request)
        # Not app.before_request(): those before it may answer, or register hooks for this request.
        app.before_request_funcs.setdefault(None, []).insert(0, shield)
    middleware.configure(settings, app, run_in_app_context(app))


def _note_contexts(app: Any) -> None:
    """Have the streams of unmodified routes know in which trace they were made."""
    from flask import request

    from flask_llmstream.measuring import observer_of

    @app.after_request  # type: ignore[untyped-decorator]
    def note_context(response: Any) -> Any:
        observer = observer_of(app)
        if observer is not None:
            observer.note_context(request.environ)
        return response


def _add_commands(app: Any) -> None:
    import click
    from flask.cli import AppGroup

    from flask_llmstream.doctor.check_command import make_check_command

    group = AppGroup("llmstream", help="Look at the streams of this app.")

    @group.command("settings")
    def settings_command() -> None:
        """Print every setting, its value and where it comes from."""
        state = app.extensions["llmstream"]
        for setting in SETTINGS:
            value = getattr(state.settings, setting.name)
            origin = "default" if value == setting.default else "set"
            if setting.name == "event_log":
                value = public_url(value)  # what is printed ends up in logs of builds and in issues
            click.echo(f"{setting.key} = {value!r}  ({origin})")

    @group.command("probe-token")
    @click.option("--hours", default=1.0, show_default=True, help="How long it opens the probe.")
    def probe_token_command(hours: float) -> None:
        """Print a token with which flask-llmstream doctor may read the probe."""
        from flask_llmstream.probe import make_token

        try:
            click.echo(make_token(app, hours * 3600.0))
        except RuntimeError as exc:
            raise click.ClickException(str(exc)) from exc

    group.add_command(make_check_command(app))
    app.cli.add_command(group)
