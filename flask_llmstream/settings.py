"""The one table of settings: defaults, validation and help come from here.

A setting is the key ``LLMSTREAM_<NAME>`` of ``app.config``, or a keyword of ``LLMStream(app, …)``;
many can be given for one stream as a keyword of ``stream_response`` too.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Tuple

from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.sansio.clients import padding_for

__all__ = ["MOST_COUNTED", "PREFIX", "SETTINGS", "Setting", "Settings"]

PREFIX = "LLMSTREAM_"

#: So many variants of the settings of an app are kept; with values of these classes.
_REMEMBERED, _PLAIN = 64, frozenset((bool, int, float, str))

#: The largest limit that all workers of a machine keep together.
MOST_COUNTED = 4096


class Setting(NamedTuple):
    """One row of the table."""

    name: str
    default: Any
    check: Callable[[Any], bool]
    expected: str
    help: str

    @property
    def key(self) -> str:
        """Its name in ``app.config``."""
        return PREFIX + self.name.upper()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def _is_duration(value: Any) -> bool:
    return _is_number(value) and 0 <= value < float("inf")


def _is_policy(value: Any) -> bool:
    return value in ("cancel", "detach") if isinstance(value, str) else _is_duration(value)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65536


def _is_padding(value: Any) -> bool:
    return value == "auto" if isinstance(value, str) else _is_size(value)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_limit(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_small_limit(value: Any) -> bool:
    return _is_limit(value) and value <= MOST_COUNTED


def _is_owner(value: Any) -> bool:
    return value is None or callable(value)


def _is_authorize(value: Any) -> bool:
    return value is None or callable(value)


def _is_prefix(value: Any) -> bool:
    return isinstance(value, str) and (not value or value.startswith("/"))


def _is_release(value: Any) -> bool:
    return value is None or isinstance(value, bool) or callable(value)


_SECONDS = "a number of seconds, 0 or more"

SETTINGS: Tuple[Setting, ...] = (
    Setting(
        "heartbeat_interval", 15.0, _is_duration, _SECONDS,
        "Seconds of silence after which a comment is sent, so that no hop thinks the connection"
        " idle; 0 turns heartbeats off. Keep it below the smallest read timeout on the way.",
    ),
    Setting(
        "status_hold", 2.0, _is_duration, _SECONDS,
        "Seconds for which the status line waits for the first item, so that a failure before it"
        " becomes a real 4xx or 5xx; 0 sends 200 at once.",
    ),
    Setting(
        "padding", 0, _is_padding, "a number of bytes from 0 to 65536, or 'auto'",
        "Length of the first comment, for clients and hops that hold back the first bytes; `'auto'` goes by"
        " the client's `User-Agent`. See [Old clients](old-clients.md).",
    ),
    Setting(
        "max_delay", 0.4, _is_duration, _SECONDS,
        "Longest time for which a chunker may hold back text.",
    ),
    Setting(
        "max_duration", 0.0, _is_duration, _SECONDS,
        "Seconds after which a stream is ended with the failure `timeout`; 0 means never.",
    ),
    Setting(
        "max_bytes", 0, _is_limit, "a number of bytes, or 0 for no limit",
        "Bytes after which a stream is ended with the failure `too_long`; 0 means never. A token takes about"
        " 25 as `sse`, more where it has an id.",
    ),
    Setting(
        "max_age", 0.0, _is_duration, _SECONDS,
        "Seconds after which the connection of a resumable stream is ended, a fifth of them earlier at"
        " most, so that its reader comes back for the rest; 0 means never. Set it below the time after"
        " which a platform cuts every request.",
    ),
    Setting(
        "idle_timeout", 0.0, _is_duration, _SECONDS,
        "Seconds without an item from the source after which a stream is ended with the failure"
        " `upstream_timeout`; 0 means never. Models that think may be silent for minutes.",
    ),
    Setting(
        "slow_reader_timeout", 120.0, _is_duration, _SECONDS,
        "Seconds after which a client that takes nothing of what waits for it is cut off; 0 means"
        " never. A client that reads slowly is not meant.",
    ),
    Setting(
        "stall_warning", 30.0, _is_duration, _SECONDS,
        "Seconds without progress after which the log says what a stream waits for, once for each: its"
        " source, and where in it, or its reader; 0 means never. See [Stalls](stalls.md).",
    ),
    Setting(
        "max_streams", 0, _is_limit, "a number of streams, or 0 for no limit",
        "Streams that run at the same time in one worker process; further requests get 503 with"
        " `Retry-After`; 0 means no limit. As a keyword of one route it limits that route's own streams, in"
        " all workers of the machine. See [Limits](limits.md).",
    ),
    Setting(
        "max_streams_per_owner", 0, _is_small_limit,
        f"a number of streams up to {MOST_COUNTED}, or 0 for no limit",
        "Streams that one owner runs at the same time, in all workers of the machine; further requests get"
        " 429 with `Retry-After`; 0 means no limit. Who is nobody in particular is not counted. See"
        " [Limits](limits.md).",
    ),
    Setting(
        "on_disconnect", "cancel", _is_policy, "'cancel', 'detach' or a number of seconds",
        "What happens when the client leaves: the source is cancelled, goes on to its end, or goes"
        " on for that many seconds.",
    ),
    Setting(
        "event_log", "", _is_text, "a URL such as 'sqlite:////var/lib/app/streams.db'",
        "Where resumable streams are kept: `memory://` (one worker), `sqlite:////path` (the workers of one"
        " machine), `redis://host:6379/0` (many machines). Empty: a SQLite file in a temporary directory that"
        " all workers of the machine share. See [Resuming](resuming.md).",
    ),
    Setting(
        "grace", 30.0, _is_duration, _SECONDS,
        "Seconds for which a resumable stream goes on when its last reader has left, where"
        " `on_disconnect` does not say otherwise.",
    ),
    Setting(
        "keep", 600.0, _is_duration, _SECONDS,
        "Seconds for which a resumable stream can be read after its end.",
    ),
    Setting(
        "keep_events", 5000, _is_count, "a number of 1 or more",
        "Events of a resumable stream that are kept; the oldest go first.",
    ),
    Setting(
        "keep_bytes", 1048576, _is_count, "a number of 1 or more",
        "Bytes of a resumable stream that are kept.",
    ),
    Setting(
        "owner", None, _is_owner, "None or a callable without arguments",
        "Says whose a stream is, where that matters: called in a request, it returns a text, or `None` for"
        " nobody in particular. By default that is the `Authorization` header together with the session's"
        " user, or else the session.",
    ),
    Setting(
        "url_prefix", "/llmstream", _is_prefix, "a path that begins with a slash, or an empty text",
        "Where the streams of the app can be followed and stopped; empty for nowhere.",
    ),
    Setting(
        "shared_dir", "", _is_text, "the path of a directory",
        "Directory that the workers of one deployment share on a machine; it must be the app's alone. Empty:"
        " one in the temporary directory, by the app's name and place. Two deployments of one app under one"
        " user need one each.",
    ),
    Setting(
        "cancel_grace", 5.0, _is_duration, _SECONDS,
        "Seconds that a cancelled source has for its clean-up before it is interrupted again.",
    ),
    Setting(
        "expose_errors", False, _is_bool, "True or False",
        "Whether clients see the text of exceptions; otherwise they see a masked message.",
    ),
    Setting(
        "release", None, _is_release, "True, False, None or a callable without arguments",
        "Gives back the database connection that the view has used, before the stream begins: `True`"
        " removes the session of Flask-SQLAlchemy, a callable is called instead. See"
        " [Neighbours](neighbours.md#database-connections).",
    ),
    Setting(
        "retrofit", ("text/event-stream", "application/x-ndjson"), _is_names, "a list of content types",
        "Content types of the responses of unmodified routes that become streams; an empty list turns"
        " that off. Add `text/plain` where your routes stream it.",
    ),
    Setting(
        "metrics", False, _is_bool, "True or False",
        "Whether streams are measured, for Prometheus, at `GET <prefix>/metrics`. Needs"
        " `flask-llmstream[metrics]`. See [Metrics](metrics.md).",
    ),
    Setting(
        "live", False, _is_bool, "True or False",
        "Whether `GET <prefix>/live` shows the running streams of all workers of the machine: to everybody"
        " where the app is in debug mode, elsewhere to whom `authorize` lets see `'live'`. See"
        " [Observing](observing.md).",
    ),
    Setting(
        "log_streams", False, _is_bool, "True or False",
        "Whether the logger `flask_llmstream.streams` gets a line of `name=value` when a stream has ended."
        " See [Observing](observing.md#a-line-for-each-stream).",
    ),
    Setting(
        "otel", False, _is_bool, "True or False",
        "Whether streams and the calls of providers are traced with OpenTelemetry. Needs"
        " `flask-llmstream[otel]`. See [Observing](observing.md#traces).",
    ),
    Setting(
        "authorize", None, _is_authorize, "None or a callable with one argument",
        "Says who may see what is for the app's operators: called in a request with the name of the page,"
        " `'metrics'` or `'live'`, it returns whether this one may. By default whoever reaches the address"
        " of the metrics may read them, and nobody the live page.",
    ),
    Setting(
        "shielded_modules", (), _is_names, "a list of module names",
        "Further packages with pooled connections inside which no cancellation is thrown.",
    ),
)

_BY_NAME: Dict[str, Setting] = {setting.name: setting for setting in SETTINGS}


class Settings:
    """The values in force for one app, each an attribute in lower case."""

    heartbeat_interval: float
    status_hold: float
    padding: Any
    max_delay: float
    max_duration: float
    max_bytes: int
    max_age: float
    idle_timeout: float
    slow_reader_timeout: float
    stall_warning: float
    max_streams: int
    max_streams_per_owner: int
    on_disconnect: Any
    event_log: str
    grace: float
    keep: float
    keep_events: int
    keep_bytes: int
    owner: Any
    url_prefix: str
    shared_dir: str
    cancel_grace: float
    expose_errors: bool
    release: Any
    retrofit: Tuple[str, ...]
    metrics: bool
    live: bool
    log_streams: bool
    otel: bool
    authorize: Any
    shielded_modules: Tuple[str, ...]

    def __init__(self, **values: Any) -> None:
        for name in values:
            if name not in _BY_NAME:
                raise TypeError(
                    f"there is no setting {name!r}; there are: {', '.join(sorted(_BY_NAME))}"
                )
        for setting in SETTINGS:
            value = values.get(setting.name, setting.default)
            if not setting.check(value):
                raise ConfigurationError(setting.key, value, setting.expected)
            setattr(self, setting.name, value)
        #: What :meth:`replace` has made of these.
        self._replaced: Dict[Any, Settings] = {}

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], overrides: Optional[Mapping[str, Any]] = None
    ) -> Settings:
        """Read the settings of an app.

        :param config: ``app.config``.
        :param overrides: values by lower-case name that win over it.
        :raises ConfigurationError: for a value that cannot work.
        """
        values: Dict[str, Any] = {}
        known = {setting.key: setting.name for setting in SETTINGS}
        for key in config:
            if isinstance(key, str) and key.startswith(PREFIX) and key in known:
                values[known[key]] = config[key]
        values.update(overrides or {})
        return cls(**values)

    def for_client(self, user_agent: Optional[str], content_type: str) -> Settings:
        """Return these settings with ``padding`` as the number that this client needs.

        :param user_agent: the field of the request.
        :param content_type: of the stream.
        """
        if self.padding != "auto":
            return self
        return self.replace(padding=padding_for(user_agent, content_type))

    def replace(self, **overrides: Any) -> Settings:
        """Return these settings with *overrides*; those that are ``None`` change nothing.

        A route gives each of its streams the same, so what was made is kept, and shared.
        """
        changed = {name: value for name, value in overrides.items() if value is not None}
        if not changed:
            return self
        # With the types: true is equal to 1, and no number of bytes.
        key = tuple([(name, value.__class__, value) for name, value in changed.items()])
        if not _PLAIN.issuperset([each[1] for each in key]):
            return self._with(changed)  # a callable may have been made for this stream, and hold things
        found = self._replaced.get(key)
        if found is None:
            found = self._with(changed)
            if len(self._replaced) >= _REMEMBERED:
                self._replaced.clear()  # somebody makes up new ones for each stream
            self._replaced[key] = found
        return found

    def _with(self, changed: Mapping[str, Any]) -> Settings:
        values = {setting.name: getattr(self, setting.name) for setting in SETTINGS}
        values.update(changed)
        return Settings(**values)
