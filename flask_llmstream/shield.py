"""Keeps ``after_request`` hooks of a Flask app from reading a stream before it is sent.

A hook that asks for ``response.data``, a length or an ETag would collect the whole body first. It
is shown an empty one and named in a warning; the client gets the real one.

Decisions
    1. A hook that *wraps* the body without reading it is what others want to do with a stream, and
       is left alone.
    2. ``Content-Encoding: identity`` keeps compressing extensions away, which would hold back
       what they compress. It is no legal header of a response, so it does not leave.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, FrozenSet, Iterable, Iterator, Optional

from flask import after_this_request

from flask_llmstream.culprits import warn_of_reader
from flask_llmstream.mixins import with_mixin
from flask_llmstream.sansio.headers import essence

__all__ = ["ShieldedResponseMixin", "make_shield"]


class _Guard:
    """A body that seems empty until the response is sent."""

    __slots__ = ("iterable", "is_open", "read_early")

    def __init__(self, iterable: Iterable[Any]) -> None:
        #: The real body.
        self.iterable = iterable
        #: Whether it may be read.
        self.is_open = False
        #: Whether somebody wanted to read it too early.
        self.read_early = False

    def __iter__(self) -> Iterator[Any]:
        if self.is_open:
            return iter(self.iterable)
        self.read_early = True
        warn_of_reader()
        return iter(())

    def close(self) -> None:
        """Close the real body."""
        close = getattr(self.iterable, "close", None)
        if close is not None:
            close()


class ShieldedResponseMixin:
    """A response whose body is behind a :class:`_Guard` while hooks run."""

    _llmstream_guard: _Guard
    _llmstream_release: Optional[Callable[[], None]]

    def get_wsgi_headers(self, environ: Any) -> Any:
        """Return the headers without what was made of the empty body."""
        headers = super().get_wsgi_headers(environ)  # type: ignore[misc]
        if self._llmstream_guard.read_early:
            headers.remove("Content-Length")
            headers.remove("ETag")
            headers.remove("Content-Encoding")
        elif headers.get("Content-Encoding") == "identity":
            headers.remove("Content-Encoding")
        return headers

    def __call__(self, environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer the request with the real body."""
        guard = self._llmstream_guard
        guard.is_open = True
        this: Any = self
        if this.response is guard or guard.read_early and this.is_sequence:
            this.response = guard.iterable
        if self._llmstream_release is not None:
            self._llmstream_release()
        answer: Iterable[bytes] = super().__call__(environ, start_response)  # type: ignore[misc]
        return answer


def make_shield(
    types: FrozenSet[str],
    release: Optional[Callable[[], None]] = None,
    before: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """Return a ``before_request`` hook that shields what the view will stream.

    :param types: content types of responses that stream.
    :param release: is called in the request's context before such a response begins.
    :param before: is called in the request's context, before other hooks, for such a response.
    """

    def shield(response: Any) -> Any:
        if (
            not response.is_streamed
            or essence(response.content_type) not in types
            or hasattr(response, "llmstream")
        ):
            return response
        before()
        if "Content-Encoding" not in response.headers:
            response._llmstream_guard = response.response = _Guard(response.response)
            response._llmstream_release = release
            response.headers["Content-Encoding"] = "identity"
            response.__class__ = with_mixin(ShieldedResponseMixin, response.__class__)
        return response

    def before_request() -> None:
        # Its hooks run before all others, whoever registered them when.
        after_this_request(shield)

    return before_request
