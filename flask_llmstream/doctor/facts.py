"""What is known of an app and its deployment: the input of the checks."""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, NamedTuple, Optional, Tuple

from flask_llmstream.settings import Settings

__all__ = ["AppFacts", "Deployment", "Hook", "Layer", "Pool", "Route", "Use"]


class Use(NamedTuple):
    """A place in the code that does something of interest."""

    #: The words of the code, such as ``response.get_data()``.
    what: str
    #: ``file:line``.
    where: str


class Hook(NamedTuple):
    """An ``after_request`` hook, and what it does to a response that streams."""

    name: str
    where: Optional[str]
    #: It asked for the body before that was sent.
    reads: Tuple[Use, ...] = ()
    #: It set or computed a length.
    lengths: Tuple[Use, ...] = ()
    #: It made an ETag.
    etags: Tuple[Use, ...] = ()
    #: It set ``Connection``, ``Keep-Alive`` or ``Transfer-Encoding``.
    hop_by_hop: Tuple[Use, ...] = ()
    #: The ``Content-Encoding`` that it gave to streams.
    encoding: str = ""
    #: Content types of streams that came to harm.
    types: FrozenSet[str] = frozenset()


class Route(NamedTuple):
    """A view that streams."""

    endpoint: str
    rule: str
    where: Optional[str]
    #: ``@stream``, ``stream_response`` or ``relay``, and not a response of the app's own.
    own: bool
    #: What its response may be, without parameters.
    types: Tuple[str, ...] = ()
    resumable: bool = False
    #: Writes to the session, or to what lives in it, after the stream has begun.
    session_writes: Tuple[Use, ...] = ()
    #: Hop-by-hop headers of old recipes.
    hop_by_hop: Tuple[Use, ...] = ()
    #: Queries before the stream begins.
    queries_before: Tuple[Use, ...] = ()
    #: Queries inside the stream that do not give their connection back.
    queries_inside: Tuple[Use, ...] = ()
    #: The value of ``release=``; ``None`` where it is left to the settings.
    release: Any = None


class Layer(NamedTuple):
    """One WSGI middleware around the app; what could not be tried is ``None``."""

    name: str
    where: Optional[str]
    #: Whether it is around LLMStream, and not inside of it.
    outside: bool
    #: Whether it takes several items before it passes one on.
    collects: Optional[bool] = None
    #: Whether it hides the server's ``write()``.
    hides_write: Optional[bool] = None
    #: Whether it forgets to close what it wraps.
    drops_close: Optional[bool] = None
    #: The ``Content-Encoding`` that it gives to event streams.
    encoding: str = ""


class Pool(NamedTuple):
    """The connections of one database."""

    name: str
    #: Connections at the same time, overflow included.
    limit: int


class Deployment(NamedTuple):
    """The settings of the server that matter to streams, as they are in the end."""

    #: Where they come from: a file, or words for it.
    source: str
    #: ``gevent``, ``gthread``, ``sync`` … as gunicorn names it; of other servers ``gevent`` or ``threads``.
    worker: str = "sync"
    workers: int = 1
    threads: int = 1
    worker_connections: int = 1000
    timeout: float = 30
    graceful_timeout: float = 30
    max_requests: int = 0
    max_requests_jitter: int = 0
    preload: bool = False
    #: The master has patched the standard library by the time at which it would load the app.
    patched: bool = False
    #: What the configuration has imported before it was patched, and holds on to.
    early: Tuple[str, ...] = ()
    http2: bool = False
    #: gunicorn can send HTTP/2 responses piece by piece.
    http2_streams: bool = True
    #: The configuration calls what makes these libraries cooperate.
    remedies: FrozenSet[str] = frozenset()
    #: What gunicorn said instead of an answer.
    error: str = ""
    #: ``gunicorn``, ``uWSGI``, ``waitress`` or ``flask run``.
    server: str = "gunicorn"
    #: Of servers that are not asked: as they stand there, those that switch something off left out.
    options: Tuple[Tuple[str, str], ...] = ()

    @property
    def is_gevent(self) -> bool:
        """Whether requests are greenlets."""
        return "gevent" in self.worker.lower()

    @property
    def capacity(self) -> int:
        """How many streams one worker process serves at the same time."""
        if self.is_gevent:
            return self.worker_connections
        return self.threads if "thread" in self.worker.lower() else 1


class AppFacts(NamedTuple):
    """All that is known."""

    name: str
    #: The settings in force; ``None`` where the app has no ``LLMStream``.
    settings: Optional[Settings] = None
    #: ``app.config``, of which the checks read what is theirs.
    config: Dict[str, Any] = {}
    #: What is wrong with the ``LLMSTREAM_*`` keys of ``app.config`` now.
    config_error: str = ""
    has_secret_key: bool = True
    hooks: Tuple[Hook, ...] = ()
    #: Places that make the session permanent.
    permanent: Tuple[Use, ...] = ()
    routes: Tuple[Route, ...] = ()
    #: URL rules that are not ours, with their endpoints.
    rules: Tuple[Tuple[str, str], ...] = ()
    layers: Tuple[Layer, ...] = ()
    #: Whether our middleware is among them.
    has_middleware: bool = True
    #: Where sessions are kept: the class of ``app.session_interface``.
    session_interface: str = "flask.sessions.SecureCookieSessionInterface"
    pools: Tuple[Pool, ...] = ()
    has_sqlalchemy: bool = False
    #: Queries of ``before_request`` hooks.
    queries_of_hooks: Tuple[Use, ...] = ()
    #: Flask ends the context of a request before its stream begins (3.1.2 and newer).
    ends_context_early: bool = True
    #: Libraries that block a gevent worker: what they are, what helps, and how they are known here.
    blocking: Tuple[Tuple[str, str, str], ...] = ()
    #: The app itself has patched the standard library.
    patched: bool = False
    #: What holds on to things that were patched after it had taken them.
    late: Tuple[str, ...] = ()
    #: Packages that the settings ask for and that are not there.
    missing: Tuple[str, ...] = ()
    deployment: Optional[Deployment] = None
    #: Seconds of silence after which the nearest hop gives up.
    proxy_timeout: float = 60.0
