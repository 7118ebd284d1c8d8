"""Streams of routes that know nothing of us: their bytes pass unchanged, all else is added.

Decisions
    1. An exception of the app's body goes on to the server as it would without us: clients see
       the connection break, error trackers see the exception. Before that an event stream says
       ``failed``, for those who listen.
    2. The app's ``close()`` is called once (PEP 3333), in the request's own greenlet or thread.
"""

from __future__ import annotations

from typing import Any, Callable, Iterable, Iterator, Optional

from flask_llmstream.exceptions import StreamTooLong
from flask_llmstream.failures import Failure, describe_failure
from flask_llmstream.sansio.adopted import adopted_format
from flask_llmstream.servers import break_off
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream

__all__ = ["AdoptedStream", "PassingStream"]


class _Body:
    """The iterable that an app has returned; it is closed once, whoever asks."""

    __slots__ = ("_iterable", "_closed")

    def __init__(self, iterable: Iterable[bytes]) -> None:
        self._iterable = iterable
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._iterable)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            close = getattr(self._iterable, "close", None)
            if close is not None:
                close()


class PassingStream(Stream):
    """A stream whose items are bytes that somebody else has written; they pass as they are.

    Parameters as for :class:`~flask_llmstream.stream.Stream`; the format is one of
    :mod:`flask_llmstream.sansio.adopted`.
    """

    __slots__ = ()

    def send(self, item: Any) -> None:
        """Send *item* now; in an event stream any item, elsewhere ``bytes``."""
        super().send(self._format.encode(item))

    def _next_due(self) -> float:
        due = super()._next_due()
        interval = self._settings.heartbeat_interval
        if interval and self._format.has_heartbeats and not self._format.heartbeat:
            # Inside an event there is none. It will end, and nobody says when.
            due = min(due, self._runtime.now() + interval)
        return due

    def _take(self, item: Any) -> bytes:
        if not isinstance(item, bytes):
            raise TypeError(
                f"a WSGI app's body consists of bytes (PEP 3333), got {type(item).__name__}"
            )
        self._format.pass_on(item)
        return item

    def _finish(self) -> bytes:
        return self._last("finish", b"")

    def _last(self, reason: str, data: bytes, failure: Optional[Failure] = None) -> bytes:
        if failure is not None and (self._opened or self._frames):
            # "timeout" or "shutdown": what follows is no regular end of the body.
            return self._break(reason, failure, self._breaks or break_off(self._peer))
        return super()._last(reason, data, failure)

    def _break(self, reason: str, failure: Failure, error: BaseException) -> bytes:
        """Say the failure where that is possible, then leave with *error*."""
        said = b""
        if self._opened or self._frames:
            said = self._format.failed(failure.message, failure.code, failure.retryable)
        if not said and not self._frames:
            self._over(reason)
            raise error
        self._breaks = error
        return super()._last(reason, said)


class AdoptedStream(PassingStream):
    """A stream made of what a WSGI app has returned.

    :param body: the app's iterable of bytes.
    :param content_type: its ``Content-Type``.
    :param encoding: its ``Content-Encoding``.
    :param settings: see :mod:`flask_llmstream.settings`.
    :param sender: sender of the signals.
    :param around_end: is called with a function that runs the ``on_end`` callbacks.
    """

    __slots__ = ("release_body",)

    def __init__(
        self,
        body: Iterable[bytes],
        *,
        content_type: str,
        encoding: str,
        settings: Settings,
        sender: Any,
        around_end: Optional[Callable[[Callable[[], None]], None]] = None,
    ) -> None:
        source = _Body(body)
        super().__init__(
            source, format=adopted_format(content_type, encoding), settings=settings,
            sender=sender, around_end=around_end,
        )
        #: Closes the app's iterable.
        self.release_body = source.close

    def _fail(self, error: BaseException) -> bytes:
        if isinstance(error, StreamTooLong):
            return super()._fail(error)  # our own: the server has nothing to log
        self._error = error
        self._close_source()
        failure = describe_failure(error, self._settings.expose_errors)
        return self._break("error", failure, error)
