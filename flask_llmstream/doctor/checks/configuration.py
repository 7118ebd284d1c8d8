"""Settings that are out of range, that contradict each other, or that nobody reads."""

from __future__ import annotations

import difflib
from typing import Iterator

from flask_llmstream.doctor.facts import AppFacts
from flask_llmstream.doctor.findings import Finding
from flask_llmstream.settings import PREFIX, SETTINGS, Settings

__all__ = ["check"]

_KEYS = tuple(setting.key for setting in SETTINGS)


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at the settings in force, and at those in ``app.config``."""
    if facts.config_error:
        yield Finding(
            "setting-impossible", "problem", "app.config", facts.config_error,
            "the app was set up before this value was there, and does not heed it",
            "a value that can work, before LLMStream(app)",
        )
    yield from _unread(facts)
    if facts.settings is not None:
        yield from _silence(facts, facts.settings)
        yield from _resuming(facts, facts.settings)
        yield from _others(facts, facts.settings)


def _unread(facts: AppFacts) -> Iterator[Finding]:
    for key in sorted(facts.config):
        if not key.startswith(PREFIX):
            continue
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, 1, 0.75)
            if close:
                yield Finding(
                    "setting-unknown", "warning", key, f"there is no setting {key}",
                    "nobody reads it, so the default is in force", f"{close[0]}, if that is what was meant",
                )
        elif facts.settings is not None and not facts.config_error:
            value = getattr(facts.settings, key[len(PREFIX):].lower())
            if value != facts.config[key]:
                yield Finding(
                    "setting-not-in-force", "note", key,
                    f"app.config has {facts.config[key]!r}, in force is {value!r}",
                    "it was set after LLMStream(app), or an argument of LLMStream wins over it",
                    "set it before, and in one place",
                )


def _silence(facts: AppFacts, settings: Settings) -> Iterator[Finding]:
    limit, beat = facts.proxy_timeout, settings.heartbeat_interval
    if not beat:
        yield Finding(
            "heartbeat-off", "warning", "LLMSTREAM_HEARTBEAT_INTERVAL", "heartbeats are off",
            f"a proxy cuts a stream whose model thinks for {limit:g} s, and behind HAProxy or Apache nobody"
            " notices that a client has left",
            "LLMSTREAM_HEARTBEAT_INTERVAL = 15",
        )
    elif beat * 2 > limit:
        yield Finding(
            "heartbeat-too-slow", "problem" if beat >= limit else "warning", "LLMSTREAM_HEARTBEAT_INTERVAL",
            f"a heartbeat every {beat:g} s, and a hop that gives up after {limit:g} s of silence",
            "one that is late or lost, and the stream is cut",
            f"LLMSTREAM_HEARTBEAT_INTERVAL = {max(1, int(limit / 4))}; --proxy-timeout says how patient the"
            " nearest hop is",
        )
    if settings.status_hold >= limit:
        yield Finding(
            "hold-too-long", "problem", "LLMSTREAM_STATUS_HOLD",
            f"the status waits for {settings.status_hold:g} s, a hop gives up after {limit:g} s",
            "a model that thinks for long gets its user a 504", "LLMSTREAM_STATUS_HOLD = 2",
        )
    if 0 < settings.max_duration <= settings.idle_timeout:
        yield Finding(
            "limit-without-effect", "warning", "LLMSTREAM_IDLE_TIMEOUT",
            f"idle_timeout is {settings.idle_timeout:g} s, max_duration {settings.max_duration:g} s",
            "every stream is over before the first of the two could matter",
            "LLMSTREAM_IDLE_TIMEOUT below LLMSTREAM_MAX_DURATION",
        )


def _resuming(facts: AppFacts, settings: Settings) -> Iterator[Finding]:
    resumable = [route for route in facts.routes if route.resumable]
    workers = facts.deployment.workers if facts.deployment is not None else 1
    if resumable and not facts.has_secret_key:
        yield Finding(
            "no-secret-key", "problem", f"the view {resumable[0].endpoint}",
            "it is resumable, and the app has no secret_key",
            "cursors are signed with it: every request of this view fails",
            "app.secret_key, the same in all workers", resumable[0].where,
        )
    if resumable and workers > 1 and settings.event_log.startswith("memory:"):
        yield Finding(
            "log-per-worker", "problem", "LLMSTREAM_EVENT_LOG", f"{settings.event_log} and {workers} workers",
            "a client that comes back meets another worker, which knows nothing of its stream",
            "LLMSTREAM_EVENT_LOG = 'sqlite:////var/lib/app/streams.db', or redis://",
        )
    for package in facts.missing:
        yield Finding(
            "log-driver-missing", "problem", "LLMSTREAM_EVENT_LOG",
            f"the package {package} is not installed", "every resumable stream fails",
            f"pip install 'flask-llmstream[{package}]'",
        )


def _others(facts: AppFacts, settings: Settings) -> Iterator[Finding]:
    if settings.release is True and not facts.has_sqlalchemy:
        yield Finding(
            "release-without-session", "problem", "LLMSTREAM_RELEASE",
            "True, and the app has no Flask-SQLAlchemy",
            "nothing is given back, and each stream logs an error",
            "the remove of your own scoped_session, as in LLMSTREAM_RELEASE = Session.remove",
        )
    prefix = settings.url_prefix
    for rule, endpoint in facts.rules if prefix else ():
        if rule == prefix or rule.startswith(prefix + "/"):
            yield Finding(
                "prefix-collides", "warning", f"the view {endpoint}", f"{rule} is below LLMSTREAM_URL_PREFIX",
                "one of the two answers for the other: streams cannot be followed, or the view is not there",
                "LLMSTREAM_URL_PREFIX = '/…', with a path that nothing else has",
            )
