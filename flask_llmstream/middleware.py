"""Retrofit: a WSGI middleware that takes streaming responses into its care.

``LLMStream(app)`` puts it around a Flask app; any other WSGI app is wrapped by hand::

    application = LLMStreamMiddleware(application)

Decisions
    1. What streams is known by its ``Content-Type``. A response with a length, without a body, or
       of another type passes as it is and costs one object and one look at its headers.
    2. The body stays where it is: the server's ``next()`` on our stream is ``next()`` on the app's
       iterable, in the same greenlet or thread, so contexts, thread-locals and scoped sessions are
       what the app was written for.
    3. An app that uses the ``write()`` of ``start_response`` sends by itself; it is left alone.

PEP 3333: https://peps.python.org/pep-3333/
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from flask_llmstream.adopted import AdoptedStream
from flask_llmstream.culprits import look_for_list
from flask_llmstream.disconnect import find_peer
from flask_llmstream.exceptions import ConfigurationError, LimitReached
from flask_llmstream.failures import describe_failure
from flask_llmstream.limits import OWNER_KEY, Seat, current_limits
from flask_llmstream.measuring import measure
from flask_llmstream.release import release_connections
from flask_llmstream.sansio.headers import adopted_headers, essence
from flask_llmstream.settings import PREFIX, Settings
from flask_llmstream.stream import ENVIRON_KEY

__all__ = ["LLMStreamMiddleware"]

_Headers = List[Tuple[str, str]]
#: Beginnings of the names of headers that say something of a body, in lower case.
_OF_THE_BODY = ("content-", "cache-control", "etag", "expires", "last-modified", "transfer-encoding")
#: So many different content types are looked up without a second thought.
_REMEMBERED = 256


class LLMStreamMiddleware:
    """Gives every streaming response of *app* what streams need; others pass untouched.

    That is: headers that keep proxies from buffering, an opening comment, heartbeats, the
    detection of clients that leave, cancellation, time limits and signals.

    :param app: any WSGI app.
    :param settings: the settings by lower-case name, see :mod:`flask_llmstream.settings`.
    :raises TypeError: for something that is no app, or a setting that does not exist.
    :raises ConfigurationError: for a setting with an impossible value.
    """

    def __init__(self, app: Callable[..., Any], **settings: Any) -> None:
        if not callable(app):
            raise TypeError(f"expected a WSGI app, which is callable, got {type(app).__name__}")
        #: The wrapped app.
        self.app = app
        given = Settings(**settings)
        if given.release is True:
            raise ConfigurationError("LLMSTREAM_RELEASE", True, "a callable, outside of a Flask app")
        for name in ("metrics", "live", "log_streams", "otel"):
            if getattr(given, name):
                raise ConfigurationError(PREFIX + name.upper(), True, "False, outside of a Flask app")
        self._release = given.release
        self.configure(given, app)

    def configure(
        self,
        settings: Settings,
        sender: Any,
        around_end: Optional[Callable[[Callable[[], None]], None]] = None,
    ) -> None:
        """Set what adopted streams get.

        :param settings: the settings in force.
        :param sender: sender of the signals.
        :param around_end: is called with a function that runs the ``on_end`` callbacks.
        """
        self._settings = settings
        self._types = _Types(settings.retrofit)
        self._sender = sender
        self._around_end = around_end

    def __call__(self, environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request; see PEP 3333."""
        answer = _Answer(start_response, self._types)
        body: Iterable[bytes] = self.app(environ, answer)
        if answer.adopted is None:
            if answer.started:
                return body
            if ENVIRON_KEY in environ:
                answer.passing = True  # a stream of ours already, which starts with its first byte
                return body
            # An app that is itself a generator: nothing of it has run yet.
            return _Late(body, lambda rest: self._adopt(environ, answer, rest), answer)
        if environ.get("REQUEST_METHOD") == "HEAD":
            answer.pass_on()
            return body
        return self._adopt(environ, answer, body)

    def _adopt(self, environ: Dict[str, Any], answer: _Answer, body: Iterable[bytes]) -> Iterable[bytes]:
        status, headers, content_type, encoding = answer.adopted  # type: ignore[misc]
        answer.passing = True
        seat: Optional[Seat] = None
        if self._settings.max_streams or self._settings.max_streams_per_owner:
            seat = Seat()
            try:
                current_limits().admit(seat, self._sender, self._settings, environ.get(OWNER_KEY, ""))
            except LimitReached as error:
                return _refuse(error, answer.start_response, headers, body)
        look_for_list(body, self.app)
        release_connections(None, self._release)
        stream = AdoptedStream(
            body, content_type=content_type, encoding=encoding,
            settings=self._settings.for_client(environ.get("HTTP_USER_AGENT"), content_type),
            sender=self._sender, around_end=self._around_end,
        )
        measure(stream, environ)
        start_response = answer.start_response
        peer = find_peer(environ, start_response)
        stream.attach(peer, start_response, status, adopted_headers(headers), stream.release_body)
        stream.seat = seat
        return stream


def _refuse(
    error: LimitReached, start_response: Callable[..., Any], headers: _Headers, body: Iterable[bytes]
) -> Iterable[bytes]:
    """Answer in place of the app, with those of its headers that are not about its body."""
    close = getattr(body, "close", None)
    if close is not None:
        close()
    failure = describe_failure(error)
    kept = [(name, value) for name, value in headers if not name.lower().startswith(_OF_THE_BODY)]
    start_response(failure.status_line(), kept + failure.headers())
    return [failure.body()]


class _Types(Dict[str, bool]):
    """Whether a response streams, by its ``Content-Type`` as it was written; learns as it is asked."""

    def __init__(self, types: Iterable[str]) -> None:
        self._essences = frozenset(map(essence, types))

    def __missing__(self, content_type: str) -> bool:
        if len(self) >= _REMEMBERED:
            self.clear()  # somebody makes up a new one for each response
        found = self[content_type] = essence(content_type) in self._essences
        return found


class _Answer:
    """The ``start_response`` that the app is given; it looks at what goes by."""

    __slots__ = ("start_response", "adopted", "started", "passing", "_types", "_server_write")

    def __init__(self, start_response: Callable[..., Any], types: _Types) -> None:
        #: The server's own.
        self.start_response = start_response
        #: Status, headers, content type and encoding of a response that streams.
        self.adopted: Optional[Tuple[str, _Headers, str, str]] = None
        #: Whether the app has called us.
        self.started = False
        #: Whether nothing is adopted any more.
        self.passing = False
        self._types = types
        self._server_write: Optional[Callable[[bytes], Any]] = None

    def __call__(self, status: str, headers: _Headers, exc_info: Any = None) -> Callable[[bytes], Any]:
        self.started = True
        if not self.passing:
            self.adopted = self._look_at(status, headers)
            if self.adopted is not None:
                return self._write
        write: Callable[[bytes], Any] = (
            self.start_response(status, headers)
            if exc_info is None
            else self.start_response(status, headers, exc_info)
        )
        return write

    def _look_at(self, status: str, headers: _Headers) -> Optional[Tuple[str, _Headers, str, str]]:
        # This runs for every response of the app, so it asks for the type first.
        for name, content_type in headers:
            if name == "Content-Type" or len(name) == 12 and name.lower() == "content-type":
                break
        else:
            return None
        if not self._types[content_type] or status[:1] != "2" or status[:3] in ("204", "205"):
            return None
        fields = {name.lower(): value for name, value in headers}
        if "content-length" in fields:
            return None
        return status, headers, content_type, fields.get("content-encoding", "")

    def pass_on(self) -> Callable[[bytes], Any]:
        """Start the response as the app has asked for; return the server's ``write()``."""
        status, headers, _, _ = self.adopted  # type: ignore[misc]
        self.adopted = None
        self.passing = True
        write: Callable[[bytes], Any] = self.start_response(status, headers)
        return write

    def _write(self, data: bytes) -> None:
        if self._server_write is None:
            if self.passing:
                raise RuntimeError("write() may only be called before the app has returned (PEP 3333)")
            self._server_write = self.pass_on()
        self._server_write(data)


class _Late:
    """The body of an app that calls ``start_response`` while its first item is made."""

    __slots__ = ("_body", "_adopt", "_answer", "_advance", "_close")

    def __init__(
        self,
        body: Iterable[bytes],
        adopt: Callable[[Iterable[bytes]], Iterable[bytes]],
        answer: _Answer,
    ) -> None:
        self._body = body
        self._adopt = adopt
        self._answer = answer
        self._advance: Optional[Callable[[], bytes]] = None
        self._close: Optional[Callable[[], Any]] = getattr(body, "close", None)

    def __iter__(self) -> _Late:
        return self

    def __next__(self) -> bytes:
        if self._advance is not None:
            return self._advance()
        items = iter(self._body)
        first = next(items)
        if self._answer.adopted is None:
            self._advance = items.__next__
            return first
        adopted = self._adopt(_Rest(first, items, self._close))
        self._close = getattr(adopted, "close", None)
        self._advance = iter(adopted).__next__
        return self._advance()

    def close(self) -> None:
        """Close the app's iterable, or the stream that was made of it."""
        if self._close is not None:
            self._close()


class _Rest:
    """An iterable whose first item was taken already."""

    __slots__ = ("_first", "_items", "close")

    def __init__(self, first: bytes, items: Iterator[bytes], close: Optional[Callable[[], Any]]) -> None:
        self._first: Optional[bytes] = first
        self._items = items
        self.close = close if close is not None else _nothing

    def __iter__(self) -> _Rest:
        return self

    def __next__(self) -> bytes:
        first, self._first = self._first, None
        return next(self._items) if first is None else first


def _nothing() -> None:
    """Close what has no ``close``."""
