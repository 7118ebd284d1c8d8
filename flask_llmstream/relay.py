"""A provider's stream, passed on byte for byte, with everything else that a stream has.

Decisions
    1. Nothing is sent before the provider has answered: status and content type are its own. What
       comes late is late as it would be without us, and may still be a 429.
    2. A refusal reaches the client in the provider's words. Not so where it is about the key, which
       the client does not have and should not hear of: that becomes 502.
    3. What breaks off is said in the provider's manner (:class:`RelayedSSE`), since its own client
       reads this, and the connection breaks off behind that.
"""

from __future__ import annotations

import secrets
from typing import Any, Callable, Iterable, Mapping, Optional

from flask import current_app, has_request_context, stream_with_context

from flask_llmstream.admission import admission_of, refusal
from flask_llmstream.adopted import PassingStream
from flask_llmstream.ending import StreamEnd
from flask_llmstream.exceptions import LimitReached
from flask_llmstream.mixins import with_mixin
from flask_llmstream.outlet import NEVER
from flask_llmstream.producing import total_usage
from flask_llmstream.responses import (
    StreamResponseMixin,
    callbacks_of,
    for_this_client,
    settings_of,
)
from flask_llmstream.sansio.adopted import Opaque, RelayedSSE
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.headers import check_passed, essence, stream_headers
from flask_llmstream.servers import break_off
from flask_llmstream.upstream.relayed import PASSED_HEADERS, Head, Refusal, RelayedAnswer

__all__ = ["RelayStream", "relay"]

_SSE = "text/event-stream"


class RelayStream(PassingStream):
    """Passes the answer of a provider on; made by :func:`relay`.

    :param source: the answer, or a wrapper around it.
    :param inner: the answer.

    Other parameters as for :class:`~flask_llmstream.stream.Stream`.
    """

    __slots__ = ()

    def __init__(self, source: Any, inner: RelayedAnswer, **options: Any) -> None:
        # Until the answer has begun nobody knows what could be added to it.
        super().__init__(source, inner=inner, format=Opaque(), **options)

    def _first_or_last(self) -> bytes:
        if self._state != "attached":
            return super()._first_or_last()
        self._begin()
        self._hold_until = NEVER
        return self.__next__()

    def _take(self, item: Any) -> bytes:
        if item.__class__ is Head:
            self._take_head(item)
            return b""
        self._format.pass_on(item)
        data: bytes = item
        return data

    def _take_head(self, head: Head) -> None:
        self._use(head)
        if essence(head.content_type) == _SSE:
            self._format = RelayedSSE()
        # From here on a client hears that it is served, if need be by a comment.
        self._hold_until = self._touched + self._settings.status_hold
        self._look_at(self._hold_until)
        self._turn = -1  # the first token is what comes next

    def _use(self, head: Head) -> None:
        """Answer with the status and the header fields of *head*, beside those of the app."""
        names = {name.lower() for name, _ in head.headers}
        self._status = head.status
        self._headers = [pair for pair in self._headers if pair[0].lower() not in names] + head.headers

    def _first_item(self, at: float) -> None:
        if self._turn != -1:
            super()._first_item(at)

    def _fail(self, error: BaseException) -> bytes:
        failure = self._describe_and_log(error)
        self._close_source()
        if self._opened or self._frames:
            return self._break("error", failure, break_off(self._peer))
        if isinstance(error, Refusal) and error.head is not None:
            self._use(error.head)
            return self._last("error", error.body)
        return self._last("error", b"", failure)

    def _make_end(self, reason: str) -> StreamEnd:
        end = super()._make_end(reason)
        meter = self._inner.meter
        if meter is None:
            return end
        said = meter.usage
        cut: Optional[Usage] = None
        if said is not None and not meter.complete:
            # What providers report at the beginning of the output is not what has come since.
            counted = max(meter.events, said.output_tokens or 0)
            cut = Usage(said.input_tokens, counted, cached_tokens=said.cached_tokens)
            said = None
        usage, estimated = total_usage(said, cut, meter.events)
        return end._replace(usage=usage, estimated=estimated)


def relay(
    upstream: Any,
    *,
    on_end: Optional[Callable[[StreamEnd], Any]] = None,
    hide_usage: bool = False,
    pass_headers: Iterable[str] = PASSED_HEADERS,
    on_disconnect: Any = None,
    heartbeat_interval: Optional[float] = None,
    status_hold: Optional[float] = None,
    max_duration: Optional[float] = None,
    max_bytes: Optional[int] = None,
    max_streams: Optional[int] = None,
    headers: Optional[Mapping[str, str]] = None,
) -> Any:
    """Return a Flask response that passes a provider's answer on, byte for byte.

    ::

        @app.post("/v1/chat/completions")
        def chat_completions():
            return relay(lambda: session.post(URL, data=request.get_data(), headers=KEY, stream=True))

    Status, content type and refusals are the provider's. Comments are added between two events, and
    only there. The usage is read as it passes: ``on_end`` gets it in a
    :class:`~flask_llmstream.StreamEnd`, whose ``text`` stays empty.

    :param upstream: a function without arguments that makes the call and returns a
        ``requests.Response`` (made with ``stream=True``) or an ``httpx.Response`` (of ``stream``).
        Or such a response itself; but a client that leaves before the provider has answered then
        is noticed only afterwards.
    :param on_end: called once, when the stream is over.
    :param hide_usage: take out of OpenAI's chat streams the chunk that only reports the usage: for
        clients that have not asked for what you have asked for. Defaults to ``False``.
    :param pass_headers: names of the provider's header fields that clients see. Those that say how its
        body was sent are refused.
    :param on_disconnect: as for :func:`~flask_llmstream.stream_response`, like those that follow.
    :param heartbeat_interval: seconds of silence before a comment; 0 for none.
    :param status_hold: seconds from the provider's headers to an opening comment, where nothing else
        has come.
    :param max_duration: seconds after which the stream fails with ``timeout``; 0 for never.
    :param max_bytes: bytes after which the stream fails with ``too_long``; 0 for no limit.
    :param max_streams: limit of this route, as for :func:`~flask_llmstream.stream_response`.
    :param headers: further headers of the response.
    :raises TypeError: *upstream* is neither a response nor a function.
    :raises ValueError: for a header or limit that cannot be.
    :raises ConfigurationError: for an option with an impossible value.
    """
    inner = RelayedAnswer(upstream, check_passed(pass_headers), hide_usage)
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    settings = settings_of(app).replace(
        on_disconnect=on_disconnect, heartbeat_interval=heartbeat_interval, status_hold=status_hold,
        max_duration=max_duration, max_bytes=max_bytes,
    )
    admission = admission_of(app, settings, max_streams)
    if admission is not None:
        try:
            admission.enter()
        except LimitReached as error:
            inner.close()
            return refusal(app, error)
    response = with_mixin(StreamResponseMixin, app.response_class)(
        (), headers=stream_headers(_SSE, headers, identity=True)
    )
    settings = for_this_client(settings, _SSE)
    describe, around_end = callbacks_of(app, settings.expose_errors)
    response.llmstream = RelayStream(
        stream_with_context(inner) if has_request_context() else inner, inner, settings=settings,
        describe=describe, around_end=around_end, sender=app,
    )
    response.llmstream_seat = None if admission is None else admission.seat
    response.llmstream.id = secrets.token_hex(8)
    if on_end is not None:
        response.llmstream.on_end(on_end)
    return response
