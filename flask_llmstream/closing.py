"""How a stream ends: what its client is told, what is given back, and who hears of it.

Decisions
    1. Every way to the end passes through :meth:`Closing._over`, once.
    2. What ends the whole worker (``GreenletExit``, ``SystemExit``) ends the stream too, and is
       passed on: but with the server's next turn, so that the client is told before.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Callable, Optional

from flask_llmstream import current
from flask_llmstream.disconnect import current_watcher, leave_quietly
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.failures import Failure, describe_failure, failure_of_code
from flask_llmstream.handover import Handover
from flask_llmstream.limits import Seat
from flask_llmstream.runtime import current_runtime
from flask_llmstream.servers import break_off
from flask_llmstream.settings import Settings
from flask_llmstream.streamlog import stream_logger

__all__ = ["Closing"]

_log = stream_logger()

#: What ends a worker; by name, since greenlet may not be installed.
_GOING_DOWN = ("GreenletExit", "SystemExit", "KeyboardInterrupt")


class Closing(Handover):
    """A stream that can be brought to its end; :class:`~flask_llmstream.stream.Stream` drives it.

    :param source: iterable of items.
    :param inner: the user's own iterable, where *source* is a wrapper around it.

    Other parameters as for :class:`~flask_llmstream.outlet.Outlet`.
    """

    __slots__ = ("_source", "_describe", "_end_reason", "_breaks", "_ident", "seat")

    def __init__(
        self, source: Any, inner: Any, format: Any, settings: Settings, chunker: Optional[Any] = None
    ) -> None:
        super().__init__(format, settings, chunker)
        self._source = source
        self._inner = inner
        self._describe: Optional[Callable[[BaseException], Failure]] = None
        self._advance: Optional[Callable[[], Any]] = None
        self._end_reason = "disconnect"
        #: What is raised into the server after the last bytes.
        self._breaks: Optional[BaseException] = None
        self._ident = 0
        #: What it holds of the limits, see :mod:`flask_llmstream.limits`; ``None`` where nothing is limited.
        self.seat: Optional[Seat] = None

    def discard(self) -> None:
        """Release a stream that will not be sent: the request was HEAD, or answered otherwise."""
        self._never_started("finish")

    def _close(self) -> None:
        if self._state == "new":
            self.discard()
        elif self._state == "attached":
            self._never_started("disconnect")
        elif self._state == "ending":
            self._over(self._end_reason)
        elif type(sys.exc_info()[1]).__name__ in _GOING_DOWN:
            self._gone = True  # the server may have stopped inside a write: nothing may follow
            self._close_source_and_end("shutdown")
        else:
            # The server has given up between two items: its write failed.
            self._departed()
            cancellation = self._cancellation
            if cancellation is None:
                self._run_dry()
            else:
                self._close_source_and_end(cancellation.reason)

    def _close_source_and_end(self, reason: str) -> None:
        """Close the source, and be over though that is ended by what ends the worker."""
        try:
            self._close_source()
        finally:
            self._over(reason)

    def _never_started(self, reason: str) -> None:
        if self._state in ("new", "attached"):
            self._runtime = current_runtime()
            self._started_at = self._runtime.now()
            self._close_source_and_end(reason)

    def _source_raised(self, error: BaseException) -> bytes:
        cancellation = self._cancellation
        self._unthrow()
        if isinstance(error, StopIteration) and cancellation is None:
            return self._finish()
        if cancellation is not None or isinstance(error, StreamCancelled):
            if isinstance(error, (StopIteration, StreamCancelled)) or isinstance(error, Exception):
                # What the server gets instead remembers it, and gunicorn 19 keeps that in a cycle:
                # with the frames of the source would stay the connections that it has open.
                error.__traceback__ = None
                return self._stopped()
        elif isinstance(error, Exception):
            return self._fail(error)
        return self._going_down(error)

    def _going_down(self, error: BaseException) -> bytes:
        """End with what ends the worker (``GreenletExit``, ``SystemExit``), after a last word."""
        self._close_source()
        fd = self._peer.fd
        if self._gone or fd is None or not self._runtime.writable(fd):
            self._over("shutdown")
            raise error
        self._breaks = error  # with the server's next turn
        return self._last("shutdown", b"", failure_of_code("shutdown", True))

    def _unwanted(self) -> bytes:
        """Between two items: the stream was cancelled, or its client has left."""
        self._unthrow()
        body_is_open = self._take_leave()
        if self._cancellation is None:
            if body_is_open:
                raise StopIteration  # the source goes on when the server closes
            self._run_dry()
            raise leave_quietly(self._peer)
        self._close_source()
        return self._stopped()

    def _stopped(self) -> bytes:
        reason = self._cancellation.reason if self._cancellation is not None else "stop"
        self._close_source()
        if reason == "disconnect" or self._gone:
            self._over(reason)
            raise leave_quietly(self._peer)
        if reason == "stop":
            return self._last("stop", self._format.done("cancelled", self._usage))
        failure = failure_of_code(self._cancellation.code, True)  # type: ignore[union-attr]
        return self._last(reason, b"", failure)

    def _finish(self) -> bytes:
        try:
            data = self._finish_chunker() + self._format.done(self._finish_reason, self._usage)
        except Exception as error:  # a chunker of the user's own
            return self._fail(error)
        return self._last("finish", data)

    def _fail(self, error: BaseException) -> bytes:
        failure = self._describe_and_log(error)
        self._close_source()
        return self._last("error", self._flush_quietly(), failure)

    def _describe_and_log(self, error: BaseException) -> Failure:
        self._error = error
        return self.describe(error)

    def describe(self, error: BaseException, channel: Optional[str] = None) -> Failure:
        """Return what clients are told about *error*, and log it.

        :param channel: the one that has failed, ``None`` for the stream.
        """
        failure = describe_failure(error)
        try:
            if self._describe is not None:
                failure = self._describe(error)
        finally:
            was_logged = getattr(error, "was_logged", False)  # by the stream that this one follows
            unexpected = failure.code == "internal_error" and not was_logged
            _log.log(
                logging.INFO if was_logged else logging.ERROR,
                "stream %s%s failed after %d pieces of text: %s: %s", self.id,
                "" if channel is None else f": its channel {channel!r}", self._pieces(),
                type(error).__name__, error,
                exc_info=(type(error), error, error.__traceback__) if unexpected else None,
            )
        return failure

    def _last(self, reason: str, data: bytes, failure: Optional[Failure] = None) -> bytes:
        """Hand the last bytes to the server; the end itself comes with its next turn.

        :param data: what stands before the failure, or all there is without one.
        """
        self._state = "ending"
        self._end_reason = reason
        self._advance = None
        if self.seat is not None:
            self.seat.source_ended()  # who reads the end may ask again at once
        if self._gone:
            self._over(reason)
            raise leave_quietly(self._peer)
        # Text that a chunker holds is an answer that has begun, though none of it has been sent.
        begun = self._opened or self._frames or self._pieces()
        if failure is not None:
            if not begun:
                self._status = failure.status_line()
                self._headers = failure.headers()
                return self._open(failure.body())
            said = self._format.failed(failure.message, failure.code, failure.retryable)
            if not said and self._breaks is None:
                # As in plain text: nobody may take half an answer for a whole one.
                self._breaks = break_off(self._peer)
            data += said
        self._frames.append(data)
        return self._collect()

    def _close_source(self) -> None:
        """Run the source's ``finally`` blocks; closing twice is harmless."""
        self._advance = None
        source, inner = self._source, self._inner
        closings = [getattr(inner, "close", None)]
        cancellation = self._cancellation
        if cancellation is not None and getattr(inner, "gi_frame", None) is not None:
            cancellation.told()
            closings.insert(0, lambda: inner.throw(StreamCancelled(cancellation.reason)))
        if source is not inner:
            # The wrapper last: it holds the request's context, which clean-up code may need.
            closings.append(getattr(source, "close", None))
        # Clean-up code is the source's, too: it may send, and may have to be interrupted.
        started = self._state not in ("new", "attached")
        on_hub = self._runtime.sees_blocking
        if started:
            self._in_source = True
            if not on_hub:
                self.wire.release()
        try:
            for close in closings:
                if close is not None:
                    self._close_with(close)
        finally:
            if started:
                self._in_source = False
                self._await_writer() if on_hub else self.wire.acquire()
                self._unthrow()

    def _close_with(self, close: Callable[[], Any]) -> None:
        try:
            close()
        except (StreamCancelled, StopIteration):
            pass
        except Exception as error:
            _log.error(
                "stream %s: its source failed while it was closed: %s: %s", self.id,
                type(error).__name__, error, exc_info=True,
            )

    def _run_dry(self) -> None:
        """Take everything from a source whose client has left but which may go on."""
        advance = self._advance
        reason = "finish"
        is_whole = False
        going_down: Optional[BaseException] = None
        on_hub = self._runtime.sees_blocking
        while advance is not None and not self.cancelled:
            self._in_source = True
            if not on_hub:
                self.wire.release()
            try:
                item = advance()
                self._touched = self._runtime.now()  # or it would be taken for silent since its client left
                self._take(item)
            except StopIteration:
                is_whole = True
                break
            except Exception as error:
                reason = self.cancelled or "error"
                if reason == "error":
                    self._describe_and_log(error)
                break
            except StreamCancelled as error:
                reason = error.reason
                break
            except BaseException as error:
                reason, going_down = "shutdown", error
                break
            finally:
                self._in_source = False
                self._await_writer() if on_hub else self.wire.acquire()
                self._unthrow()
        else:
            reason = self.cancelled or reason
        if is_whole:
            try:
                self._finish_chunker()
            except Exception as error:
                reason = "error"
                self._describe_and_log(error)
        self._close_source_and_end(reason)
        if going_down is not None:
            raise going_down

    def _over(self, reason: str) -> None:
        """Give back everything and tell whoever wants to know; the only way to be over."""
        if self._state == "over":
            return
        started = self._state != "attached" and self._state != "new"
        self._state = "over"
        self._advance = None
        if self.seat is not None:
            self.seat.leave()
        del self._frames[:]
        if self._entry is not None:
            self._entry.ticked = None
            self._entry = None
        if started:
            if self._peer.fd is not None:
                current_watcher().remove(self._peer.fd, self)
        try:
            self._close_bound()
        finally:  # also where what ends the worker has come while something was being closed
            self._tell_of_end(reason, started)

    def _close_bound(self) -> None:
        for closable in list(self.bound):  # each takes itself out of it
            try:
                closable.close()
            except StreamCancelled:
                pass  # from the end of a shield() in its clean-up
            except Exception:
                _log.exception("stream %s: what was bound to it could not be closed", self.id)
        del self.bound[:]

    def _tell_of_end(self, reason: str, started: bool) -> None:
        # Before whoever wants to know is told: they may take their time, and look into the log.
        if reason != "finish" and reason != "error":
            _log.info(
                "stream %s ended: %s, after %d pieces of text and %.3f s", self.id, reason,
                self._pieces(), self._runtime.now() - self._started_at,
            )
        try:
            if self._is_awaited():
                self._tell(self._make_end(reason))
        except Exception:
            _log.exception("stream %s: what follows its end has failed", self.id)
        finally:
            self._error = None  # its traceback holds this stream
            if started:
                current.leave(self._ident, self)
