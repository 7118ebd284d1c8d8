"""Flask responses whose body is a :class:`~flask_llmstream.stream.Stream`.

Decisions
    1. The class is made of ``app.response_class`` plus a mixin: ``make_response`` rewrites the
       class of any response that is not an instance of it.
    2. The body is private. ``after_request`` hooks that read ``response.data``, join the body or
       set a length see an empty response and cannot hold the stream back; what they do to
       lengths, ETags and encodings is undone in ``get_wsgi_headers``.
    3. No ``Connection`` header: it is hop-by-hop, which PEP 3333 forbids an application, and some
       servers answer it with 500.
    4. HEAD answers the headers and starts nothing: the source is closed without a first item.
    5. The context of the request is kept by Flask's own ``stream_with_context``, whose order of
       teardown differs between Flask versions and is what the app was written for.
"""

from __future__ import annotations

import functools
import inspect
import secrets
import time
import weakref
from types import GeneratorType
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Mapping,
    Optional,
    Tuple,
    TypeVar,
    Union,
    cast,
    overload,
)

from flask import Response as FlaskResponse
from flask import current_app, got_request_exception, has_request_context, request, stream_with_context
from werkzeug.exceptions import HTTPException

from flask_llmstream.admission import admission_of, refusal
from flask_llmstream.culprits import warn_of_reader
from flask_llmstream.disconnect import find_peer
from flask_llmstream.exceptions import LimitReached
from flask_llmstream.failures import Failure, describe_failure
from flask_llmstream.limits import Seat
from flask_llmstream.measuring import measure
from flask_llmstream.mixins import with_mixin
from flask_llmstream.release import release_connections
from flask_llmstream.sansio.chunkers import make_chunker
from flask_llmstream.sansio.formats import DEFAULT, make_format, negotiate
from flask_llmstream.sansio.headers import stream_headers
from flask_llmstream.sansio.jsondelta import JsonOptions, JsonStage, OutputSchema, make_options, make_schema
from flask_llmstream.settings import Settings
from flask_llmstream.stream import ENVIRON_KEY, Stream

__all__ = [
    "StreamResponseMixin", "make_stream_format", "run_in_app_context", "settings_of", "stream",
    "stream_response",
]

#: Header fields that do not go with a body of which nobody knows the end.
_WITHHELD = ("content-length", "etag", "content-encoding")
#: Those that Werkzeug makes absolute.
_ADDRESSES = ("location", "content-location")
_LOOKED_AT = frozenset(_WITHHELD + _ADDRESSES)
#: Says that the format was chosen by the request.
_VARY = ("Vary", "Accept")
#: What a view may return that is an answer of its own and no source of items.
_ANSWERS = (str, bytes, bytearray, dict, tuple)


class StreamResponseMixin:
    """Keeps the body to itself and hands it to the server when the request is answered."""

    #: The stream behind this response; ``None`` in responses made by copying.
    llmstream: Optional[Stream] = None
    #: Gives back what the view holds, before the stream begins.
    llmstream_release: Optional[Callable[[], None]] = None
    #: What the stream will hold of the limits.
    llmstream_seat: Optional[Seat] = None

    #: Whether the app's class of responses makes the header fields in its own way.
    _has_own_headers = True
    #: Whether it closes in its own way.
    _has_own_close = True

    implicit_sequence_conversion = True
    automatically_set_content_length = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        theirs: Any = super(StreamResponseMixin, cls)
        cls._has_own_headers = (
            cls.get_wsgi_headers is not StreamResponseMixin.get_wsgi_headers
            or getattr(theirs, "get_wsgi_headers", None) is not FlaskResponse.get_wsgi_headers
        )
        cls._has_own_close = getattr(theirs, "close", None) is not FlaskResponse.close

    @property
    def response(self) -> Any:
        """Always empty: the body is not to be had here."""
        return ()

    @response.setter
    def response(self, value: Any) -> None:
        if self.llmstream is not None:  # that is, not the constructor
            warn_of_reader()

    @property
    def is_sequence(self) -> bool:
        """Never: the body has no length."""
        return False

    @property
    def is_streamed(self) -> bool:
        """Always, whatever the public body looks like."""
        return True

    def calculate_content_length(self) -> None:
        """There is no length."""

    def add_etag(self, *args: Any, **kwargs: Any) -> None:
        """A stream has no ETag."""

    def make_conditional(self, *args: Any, **kwargs: Any) -> Any:
        """A stream is never answered with 304."""
        return self

    def freeze(self, *args: Any, **kwargs: Any) -> None:
        """A stream cannot be frozen."""

    def get_wsgi_headers(self, environ: Any) -> Any:
        """Return the headers without what would hold the stream back."""
        headers = super().get_wsgi_headers(environ)  # type: ignore[misc]
        for name in _WITHHELD:
            headers.remove(name)
        return headers

    def _fields(self, environ: Any, status: str) -> List[Tuple[str, str]]:
        """Return what :meth:`get_wsgi_headers` does, as pairs of plain texts."""
        pairs: List[Tuple[str, str]] = []
        # Werkzeug copies all headers, and then changes one of a 2xx at most: one that is an address.
        if not self._has_own_headers and status[:1] == "2":
            for name, value in self.headers:  # type: ignore[attr-defined]
                lower = name.lower()
                if lower not in _LOOKED_AT:
                    pairs.append((str(name), str(value)))
                elif lower in _ADDRESSES:
                    break
            else:
                return pairs
        return [(str(name), str(value)) for name, value in self.get_wsgi_headers(environ)]

    def _make_closer(self) -> Callable[[], Any]:
        """Return what closes this response when the server closes its body.

        One that nobody waits for is not kept: it has all headers, and an idle stream should be small.
        """
        close: Callable[[], Any] = super().close  # type: ignore[misc]
        return close if self._has_own_close or getattr(self, "_on_close", True) else _Closer(self)

    def close(self) -> None:
        """Release the source of a response that was thrown away, then Flask's own callbacks."""
        if self.llmstream is not None:
            self.llmstream.close()
        if self.llmstream_seat is not None:
            self.llmstream_seat.leave()
        super().close()  # type: ignore[misc]

    def __call__(self, environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer the request; see PEP 3333."""
        body = self.llmstream
        environ[ENVIRON_KEY] = body
        # The retrofit has nothing to add, and find_peer() looks at the server's own.
        start_response = getattr(start_response, "start_response", start_response)
        status: str = self.status  # type: ignore[attr-defined]
        pairs = self._fields(environ, status)
        if body is None or environ.get("REQUEST_METHOD") == "HEAD":
            start_response(status, pairs)
            self.close()  # a stream that was not attached is discarded
            return []
        if self.llmstream_release is not None:
            self.llmstream_release()
        measure(body, environ)
        peer = find_peer(environ, start_response)
        body.attach(peer, start_response, status, pairs, self._make_closer())
        body.seat, self.llmstream_seat = self.llmstream_seat, None
        return body


class _Closer(weakref.ref):  # type: ignore[type-arg]
    """Closes a response if somebody has kept it, who then may have asked to be called."""

    __slots__ = ()

    def __call__(self) -> None:
        response = super().__call__()
        if response is not None:
            FlaskResponse.close(response)


def settings_of(app: Any) -> Settings:
    """Return the settings in force for *app*, whether or not the extension was initialised."""
    state = app.extensions.get("llmstream")
    if state is None:
        return Settings.from_config(app.config)
    settings: Settings = state.settings
    return settings


def make_stream_format(format: Any, id: str, options: Optional[Mapping[str, Any]]) -> Any:
    """Return the format object of a stream; for the arguments see :func:`stream_response`.

    :param id: of the stream.
    """
    if options and not isinstance(format, str):
        raise ValueError(
            f"format_options ({', '.join(options)}) are for a format that is named, got format={format!r}"
        )
    if format is None:
        # The default where there is no request, and so nobody who asks.
        format = negotiate(request.environ.get("HTTP_ACCEPT")) if has_request_context() else DEFAULT
    return format() if callable(format) else make_format(format, id, int(time.time()), options)


@functools.lru_cache(maxsize=256)
def _schema_of_model(model: type) -> Optional[OutputSchema]:
    return make_schema(model)


def _prepared(schema: Any) -> Optional[OutputSchema]:
    """Return *schema* ready for use; models are known again, a dict should be prepared once."""
    return _schema_of_model(schema) if isinstance(schema, type) else make_schema(schema)


def _make_chunker(encoder: Any, chunk: Any, structured: Any, schema: Any, validate: str) -> Any:
    """Return what the text of a stream passes through, ``None`` where it goes out as it comes."""
    options = None if structured is False and schema is None else make_options(structured, schema is not None)
    if options is None:
        return make_chunker(chunk)
    if chunk is not None:
        raise ValueError(
            f"chunk is {chunk!r}, but with structured or schema the text is read as JSON and not cut;"
            " leave one of them out"
        )
    as_text = not getattr(encoder, "sends_json", True)
    return JsonStage(options, _prepared(schema), validate, as_text)


def _add_vary(headers: Any) -> None:
    """Tell caches that the answer depends on ``Accept``, beside what the caller has said of it."""
    names = [name.strip() for line in headers.getlist("Vary") for name in line.split(",")]
    if not {"*", "accept"} & {name.lower() for name in names}:
        headers["Vary"] = ", ".join([*filter(None, names), "Accept"])


def describe_in_app(error: BaseException, expose: bool) -> Failure:
    """Return what clients are told about *error*, which may be a refusal such as ``abort(503)``."""
    if isinstance(error, HTTPException) and error.code is not None and error.code >= 400:
        text = error.description or error.name
        return Failure(error.code, error.name.lower().replace(" ", "_"), text, error.code >= 500)
    return describe_failure(error, expose)


def _describer(app: Any, expose: bool) -> Callable[[BaseException], Failure]:
    def describe(error: BaseException) -> Failure:
        failure = describe_in_app(error, expose)
        if failure.code == "internal_error":
            # What error trackers listen to; Flask itself never sees an exception of a body.
            got_request_exception.send(app, exception=error)
        return failure

    return describe


def run_in_app_context(app: Any) -> Callable[[Callable[[], None]], None]:
    """Return what runs a function in the context of *app*."""

    def around(run: Callable[[], None]) -> None:
        with app.app_context():
            run()

    return around


def callbacks_of(app: Any, expose: bool) -> Tuple[Any, Any]:
    """Return what streams call in *app*: to describe a failure, and around their end."""
    state = app.extensions.get("llmstream")
    callbacks: Optional[Tuple[Any, Any]] = None if state is None else state.callbacks
    if callbacks is None:
        callbacks = _describer(app, expose), run_in_app_context(app)
        if state is not None:
            state.callbacks = callbacks  # one for all: an idle stream should be small
    return callbacks


_Maker = TypeVar("_Maker", bound=Callable[..., Any])


def _closing_in_vain(make: _Maker) -> _Maker:
    """Have the source closed where *make* raises: it may have a connection open, and nobody else will."""

    @functools.wraps(make)
    def making(source: Any, **options: Any) -> Any:
        try:
            return make(source, **options)
        except BaseException:
            close = getattr(source, "close", None)
            if close is not None:
                close()
            raise

    return cast(_Maker, making)


@_closing_in_vain
def stream_response(
    source: Iterable[Any],
    *,
    format: Union[str, Callable[[], Any], None] = None,
    format_options: Optional[Mapping[str, Any]] = None,
    chunk: Any = None,
    structured: Union[bool, Mapping[str, Any], JsonOptions] = False,
    schema: Any = None,
    validate: str = "field",
    max_delay: Optional[float] = None,
    resumable: bool = False,
    resume_key: Optional[str] = None,
    on_disconnect: Any = None,
    heartbeat_interval: Optional[float] = None,
    padding: Union[int, str, None] = None,
    status_hold: Optional[float] = None,
    max_duration: Optional[float] = None,
    max_bytes: Optional[int] = None,
    max_age: Optional[float] = None,
    release: Any = None,
    max_streams: Optional[int] = None,
    status: int = 200,
    headers: Optional[Mapping[str, str]] = None,
) -> Any:
    """Return a Flask response that streams *source*.

    Options that are ``None`` have the app's setting; see :mod:`flask_llmstream.settings`.

    :param source: any iterable of ``str``, ``bytes`` (text in UTF-8), ``dict`` or ``list`` (sent as
        JSON), ``Event``, ``Comment``, or deltas.
    :param format: wire format by name, or a callable that makes one; see docs/formats.md. Defaults to
        what the request's ``Accept`` likes best, and to ``"sse"`` where that names none.
    :param format_options: what the format named by *format* should say of itself, such as ``model`` in
        those of OpenAI and Anthropic, or ``thread_id`` and ``run_id`` in ``ag-ui``.
    :param chunk: how text is cut: ``None`` as it comes; ``"token"``, ``"word"``, ``"sentence"``,
        ``"line"``, ``"paragraph"``, ``"markdown"`` or ``"json"``; a compiled regular expression; a
        function of the text held so far; or an object with ``feed(text)``, ``flush()`` and
        ``reset()``. See :func:`~flask_llmstream.sansio.chunkers.make_chunker`.
    :param structured: ``True`` reads the text as JSON and sends its changes
        (:class:`~flask_llmstream.JsonDelta`) in its place; options of
        :class:`~flask_llmstream.sansio.jsondelta.JsonOptions`, as an object or by name in a dict, do
        so, too. A format that has no word for changes sends the text as it is written. Does
        not go with *chunk*. Defaults to false. See docs/structured.md.
    :param schema: what the JSON must look like: a pydantic model class, a JSON schema as a dict, or
        what :func:`~flask_llmstream.sansio.jsondelta.make_schema` has made of one. Implies
        *structured*. What breaks it ends the stream with ``output_invalid``. Defaults to none.
    :param validate: when *schema* is looked at: ``"field"``, at each value that is complete, so that
        the model need not go on for nothing; ``"end"``, when it has ended. Defaults to ``"field"``.
    :param max_delay: seconds for which text may be held back by *chunk*.
    :param resumable: write what is sent to the event log, so that a reader who has lost the connection gets
        the rest, from any worker. Defaults to ``False``. See docs/resuming.md.
    :param resume_key: a key, such as the id of a chat, under which its owner finds a resumable stream with
        :func:`~flask_llmstream.resume_response` while it runs; the last stream of a key counts. Where nobody
        is known to send the request it must be a secret of 16 characters or more; a shorter one is
        answered with 400. Defaults to none.
    :param on_disconnect: ``"cancel"``, ``"detach"`` or a number of seconds.
    :param heartbeat_interval: seconds of silence before a comment; 0 for none.
    :param padding: bytes of the first comment; ``"auto"`` goes by the client. See docs/old-clients.md.
    :param status_hold: seconds for which the status line waits for the first item.
    :param max_duration: seconds after which the stream fails with ``timeout``; 0 for never.
    :param max_bytes: bytes after which the stream fails with ``too_long``; 0 for no limit.
    :param max_age: seconds after which the connection of a resumable stream ends, so that its reader comes
        back before somebody on the way cuts it; 0 for never.
    :param release: ``True`` gives back the Flask-SQLAlchemy session's connection before the stream
        begins; a callable without arguments is called instead; ``False`` for neither.
    :param max_streams: streams of this route (its endpoint) that may run at the same time, in all workers of
        the machine; a further one is answered with 503 and ``Retry-After``. Beside the setting of the same
        name, which counts all streams of a worker. Defaults to no limit. See docs/limits.md.
    :param status: HTTP status of a stream that begins well. Defaults to 200.
    :param headers: further headers; hop-by-hop headers and ``Content-Length`` are refused.
    :raises TypeError: where *source* is not an iterable of items.
    :raises ValueError: for a format, chunker, schema, status, header or limit that cannot be.
    :raises RuntimeError: where *schema* needs a package that is not installed.
    :raises ConfigurationError: for an option with an impossible value.
    """
    check_source(source)
    if not isinstance(status, int) or not 200 <= status < 300 or status in (204, 205):
        raise ValueError(f"a stream needs a status of 2xx that may have a body, got {status!r}")
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    if resumable:
        from flask_llmstream import joining, resuming

        if resume_key is not None:
            joining.check_key(resume_key)
        on_disconnect = resuming.departure(on_disconnect, settings_of(app))
    elif resume_key is not None:
        raise ValueError(
            f"resume_key is {resume_key!r:.80}, but nothing is kept of this stream; set resumable=True"
        )
    elif max_age:
        raise ValueError(
            f"max_age is {max_age!r}, but readers of this stream cannot come back for the rest; set"
            " resumable=True, or take max_duration to end it"
        )
    settings = settings_of(app).replace(
        max_delay=max_delay, on_disconnect=on_disconnect, heartbeat_interval=heartbeat_interval,
        padding=padding, status_hold=status_hold, max_duration=max_duration, max_bytes=max_bytes,
        max_age=max_age, release=release,
    )
    id = secrets.token_hex(8)
    encoder = make_stream_format(format, id, format_options)
    settings = for_this_client(settings, encoder.content_type)
    chunker = _make_chunker(encoder, chunk, structured, schema, validate)
    recording = answer = stream = None
    admission = admission_of(app, settings, max_streams)
    enter = None if admission is None else admission.enter
    try:
        if resumable:
            answer, recording = joining.take_up(
                app, settings, encoder, id, negotiated=format is None, resume_key=resume_key, enter=enter
            )
        elif enter is not None:
            enter()
    except LimitReached as error:
        answer = refusal(app, error)
    if answer is not None:
        close = getattr(source, "close", None)
        if close is not None:
            close()  # it is not needed
        return answer
    try:
        inner = iter(source)
        describe, around_end = callbacks_of(app, settings.expose_errors)
        stream = Stream(
            stream_with_context(inner) if has_request_context() else inner,
            format=encoder if recording is None else recording.format, settings=settings, chunker=chunker,
            describe=describe, around_end=around_end, sender=app, inner=inner, id=id,
        )
        response = respond(app, stream, encoder, status, headers, negotiated=format is None)
        if recording is not None:
            recording.attach(stream, settings)
            response.headers["Content-Location"] = recording.url
        if admission is not None:
            response.llmstream_seat = admission.seat
    except BaseException as error:
        if admission is not None:
            admission.seat.leave()
        if recording is not None:
            recording.abandon(error)
        if stream is not None:
            stream.close()
        raise
    if settings.release:
        response.llmstream_release = functools.partial(release_connections, app, settings.release)
    return response


def respond(
    app: Any,
    stream: Stream,
    encoder: Any,
    status: int = 200,
    headers: Optional[Mapping[str, str]] = None,
    *,
    negotiated: bool,
) -> Any:
    """Return the response of *app* that sends *stream*.

    :param encoder: its wire format.
    :param status: HTTP status. Defaults to 200.
    :param headers: further headers.
    :param negotiated: whether the format was chosen by the request.
    """
    own = getattr(encoder, "headers", ())
    kind = with_mixin(StreamResponseMixin, app.response_class)
    fields = stream_headers(encoder.content_type, headers, identity=True)
    if negotiated and not headers and not own and kind.__init__ is FlaskResponse.__init__:
        fields.append(_VARY)  # nobody has said anything of that
        negotiated = False
    response = kind((), status=status, headers=fields)
    for name, value in own:
        response.headers.setdefault(name, value)
    if negotiated:
        _add_vary(response.headers)
    response.llmstream = stream
    return response


def for_this_client(settings: Settings, content_type: str) -> Settings:
    """Return *settings* as they are for the client of this request, if there is one."""
    if settings.padding != "auto":
        return settings  # the same for all
    name = request.headers.get("User-Agent") if has_request_context() else None
    return settings.for_client(name, content_type)


def negotiated_format() -> Any:
    """Return the format object that this request asks for."""
    return make_stream_format(None, secrets.token_hex(8), None)


def check_source(source: Any) -> None:
    """Raise :class:`TypeError` where *source* is no iterable of items."""
    if source.__class__ is GeneratorType:
        return
    if inspect.isasyncgen(source) or inspect.iscoroutine(source) or hasattr(source, "__aiter__"):
        if inspect.iscoroutine(source):
            source.close()  # or Python warns, somewhere else, that nobody has awaited it
        raise TypeError(
            f"a synchronous server cannot iterate {type(source).__name__}; yield from a plain"
            " generator instead"
        )
    if isinstance(source, _ANSWERS) or not hasattr(source, "__iter__"):
        raise TypeError(
            f"expected an iterable of items to stream, got {type(source).__name__}; to stream one"
            " value, put it in a list"
        )


@overload
def stream(view: Callable[..., Any]) -> Callable[..., Any]: ...


@overload
def stream(view: None = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]: ...


def stream(view: Optional[Callable[..., Any]] = None, **options: Any) -> Any:
    """Make a view stream what it yields; with or without parentheses, below ``@app.route``.

    The view is a generator function, or returns an iterable of items. What is an answer of its own
    (a response, text, bytes, a dict, a tuple with a status) is passed on as it is, so that a view
    may still refuse with ``return {"error": "…"}, 400``.

    :param options: as for :func:`stream_response`.
    """

    def decorate(view: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(view)
        def streaming(*args: Any, **kwargs: Any) -> Any:
            answer = view(*args, **kwargs)
            if answer is None or isinstance(answer, _ANSWERS) or _is_response(answer):
                return answer
            return stream_response(answer, **options)

        return streaming

    if options.get("schema") is not None:
        options["schema"] = _prepared(options["schema"])  # once, and what is wrong with it is said now
    if view is None:
        return decorate
    if not callable(view):
        raise TypeError(f"@stream decorates a view, got {type(view).__name__}")
    return decorate(view)


def _is_response(answer: Any) -> bool:
    return isinstance(answer, FlaskResponse) or hasattr(answer, "get_wsgi_headers")
