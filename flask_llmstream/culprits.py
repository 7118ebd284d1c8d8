"""Who in this process holds a stream back? Answered from frames, to name the place in a warning."""

from __future__ import annotations

import logging
import sys
from types import CodeType, FrameType
from typing import Any, Dict, FrozenSet, List, Optional, Set, Union

__all__ = [
    "collector_above", "describe_frame", "describe_stack", "look_for_collector", "look_for_list",
    "outside_frame", "tracker_above", "warn_of_reader", "warn_once",
]

_log = logging.getLogger(__name__)

#: Servers that send each item of a body as it comes; a C server has no frame at all.
_SERVERS: FrozenSet[str] = frozenset(
    {"a2wsgi", "cheroot", "cherrypy", "eventlet", "gevent", "gunicorn", "hypercorn", "paste", "twisted",
     "uvicorn", "waitress", "wsgiref"}
)
#: Modules of packages that are also something else than servers.
_SERVER_MODULES: FrozenSet[str] = frozenset({"werkzeug.serving", "werkzeug.test"})
#: Packages whose middleware reports every exception that passes through it.
_TRACKERS: FrozenSet[str] = frozenset(
    {"bugsnag", "ddtrace", "elasticapm", "honeybadger", "newrelic", "opentelemetry", "raven", "rollbar",
     "scout_apm", "sentry_sdk"}
)
#: What a producer waits in on behalf of whoever called it.
_PLUMBING: FrozenSet[str] = frozenset(
    {"anyio", "flask", "flask_llmstream", "gevent", "h11", "http", "httpcore", "httpx", "requests",
     "select", "selectors", "socket", "ssl", "threading", "urllib3", "werkzeug"}
)
_GENERATOR = 0x20  # inspect.CO_GENERATOR, without importing inspect in every worker

#: Where a warning was given already.
_warned: Set[CodeType] = set()
#: Who was named for a list.
_with_lists: Set[Union[CodeType, type]] = set()
#: Who was looked at already, by identity: to hash the code of a function is to read all of it.
_asked: Dict[int, CodeType] = {}
#: Files of this package that streams begin in.
_own: Set[str] = set()


def look_for_collector(name: str) -> None:
    """Warn where whoever asks for the first item of the stream *name* is no server.

    It costs a look at one frame, except for the first stream of each caller.
    """
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename in _own:
        frame = frame.f_back
    if frame is None or id(frame.f_code) in _asked:
        return
    caller = outside_frame("flask_llmstream")
    while frame is not caller:  # files of ours that were not known yet
        _own.add(frame.f_code.co_filename)
        frame = frame.f_back
        if frame is None:
            return
    collector = collector_above(frame)
    if collector is None or collector is frame:
        _asked[id(frame.f_code)] = frame.f_code
    if collector is not None:
        warn_once(
            collector,
            f"stream {name}: %s takes its items, and is no server that is known to send each at once."
            " If it collects them, nothing streams: let it pass streams on, or put the streaming"
            " routes outside of it",
        )


def collector_above(frame: Optional[FrameType]) -> Optional[FrameType]:
    """Return the frame that asks for the items of a body without being a server, or ``None``.

    Generators and iterators hand each item on and are passed over; whoever stands above them asks.

    :param frame: the innermost frame outside of this package.
    """
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.partition(".")[0] in _SERVERS or module in _SERVER_MODULES:
            return None
        code = frame.f_code
        if not code.co_flags & _GENERATOR and code.co_name not in ("__next__", "next", "<genexpr>"):
            return frame
        frame = frame.f_back
    return None


def look_for_list(body: Any, app: Any) -> None:
    """Warn where the response of *app*, which should stream, has come complete."""
    if not isinstance(body, (list, tuple)):
        return
    code: Optional[CodeType] = getattr(app, "__code__", None)
    if (code or type(app)) not in _with_lists:
        _with_lists.add(code or type(app))
        owner = type(app) if code is None else app
        place = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
        _log.warning(
            "%s.%s%s returns as a list what by its content type is a stream: it was complete before"
            " its first byte could be sent. If it collects what it wraps, let it pass streams on, or"
            " put the streaming routes outside of it",
            owner.__module__, owner.__qualname__, place,
        )


def warn_of_reader() -> None:
    """Warn of whoever reads or replaces the body of a stream before it is sent: our caller's caller."""
    frame = outside_frame("flask_llmstream", "flask", "werkzeug")
    if frame is not None:
        warn_once(
            frame,
            "%s reads or replaces the body of a response that streams. It was shown an empty one; the"
            " client gets the real one. Leave streams alone there (if response.is_streamed: return"
            " response), and change items where they are made",
        )


def tracker_above() -> bool:
    """Return whether an error tracker stands between this package and the server."""
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        package = module.partition(".")[0]
        if package in _TRACKERS:
            return True
        if package in _SERVERS or module in _SERVER_MODULES:
            return False
        frame = frame.f_back
    return False


def outside_frame(*packages: str) -> Optional[FrameType]:
    """Return the innermost frame whose module is in none of *packages*."""
    frame: Optional[FrameType] = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] not in packages:
            return frame
        frame = frame.f_back
    return None


def describe_frame(frame: FrameType) -> str:
    """Return function, file and line of *frame*."""
    code = frame.f_code
    owner = frame.f_locals.get("self")
    name = code.co_name if owner is None else f"{type(owner).__name__}.{code.co_name}"
    return f"{frame.f_globals.get('__name__')}.{name} ({code.co_filename}:{frame.f_lineno})"


def describe_stack(frame: Optional[FrameType], depth: int = 3) -> str:
    """Return the innermost places of a stack that say something, innermost first.

    What only waits or carries bytes for others (sockets, gevent, an HTTP client) says nothing, unless
    there is nothing else.

    :param frame: the innermost frame.
    :param depth: how many places at most.
    """
    places: List[str] = []
    innermost = frame
    while frame is not None and len(places) < depth:
        module = str(frame.f_globals.get("__name__", ""))
        if module == "flask_llmstream.stream":
            break  # above it is the server
        if module.partition(".")[0] not in _PLUMBING:
            places.append(describe_frame(frame))
        frame = frame.f_back
    if not places and innermost is not None:
        places.append(describe_frame(innermost))
    return ", called by ".join(places)


def warn_once(frame: FrameType, message: str) -> None:
    """Log *message*, with ``%s`` for the place, as a warning: once for each place."""
    if frame.f_code not in _warned:
        _warned.add(frame.f_code)
        _log.warning(message, describe_frame(frame))
