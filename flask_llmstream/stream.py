"""One stream's life: the iterable that a WSGI server drives.

The generator stays inline: ``__next__`` calls ``next(source)`` in the request's own greenlet or
thread. What happens meanwhile (heartbeats, the opening, a burst cut short by blocking) goes
through the server's own ``write()``, from the ticker or from a greenlet that the hub starts the
moment the source blocks.

Decisions
    1. ``wire`` is a lock that the request side holds whenever it is *not* inside its source. Who
       gets it without waiting may write; so nothing is ever written into a server that is itself
       writing. On gevent the flag ``_in_source`` says the same, since nobody else runs unless the
       source blocks: there only writers take the lock, and the request side waits for them.
    2. ``start_response`` is called with the first byte and not before. PEP 3333 allows it, and it
       is the only way to a clean 4xx or 5xx for a source that fails before its first item:
       gunicorn appends to its headers when ``start_response`` is called twice.
    3. Items that are ready together leave in one write; a lone item never waits. A source says
       how many are ready (``.ready``); on gevent, one that has not blocked since the last item is
       asked again, and the hub sends what was gathered the moment it does block.
    4. ``on_end`` runs after the terminal event has been handed to the server, so that a slow
       callback does not hold back the end.

PEP 3333: https://peps.python.org/pep-3333/
"""

from __future__ import annotations

import http.client
import logging
import secrets
import sys
from typing import Any, Callable, List, Optional, Tuple

from flask_llmstream import current, signals
from flask_llmstream.control import Control
from flask_llmstream.culprits import look_for_collector
from flask_llmstream.disconnect import Peer, current_watcher, leave_quietly
from flask_llmstream.draining import current_drainage
from flask_llmstream.ending import StreamEnd
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.failures import Failure, describe_failure, failure_of_code
from flask_llmstream.hazards import look_for_hazards
from flask_llmstream.outlet import NEVER, find_ready
from flask_llmstream.runtime import current_runtime
from flask_llmstream.settings import Settings
from flask_llmstream.ticker import current_ticker

__all__ = ["ENVIRON_KEY", "Stream", "StreamEnd"]

#: Says in a WSGI environ that its response is a :class:`Stream`.
ENVIRON_KEY = "flask_llmstream.stream"

_log = logging.getLogger(__name__)

#: After so many frames, or seconds, without a switch a stream yields to the others.
_FAIR_FRAMES = 32
_FAIR_SECONDS = 0.02
#: What ends a worker; by name, since greenlet may not be installed.
_GOING_DOWN = ("GreenletExit", "SystemExit", "KeyboardInterrupt")
#: A burst is sent when it has grown to this; more would only cost memory.
_BURST_BYTES = 16384


class Stream(Control):
    """Iterable of bytes for a WSGI server, fed by a source.

    :param source: iterable of items.
    :param format: encodes items; see :mod:`flask_llmstream.sansio.native`.
    :param settings: see :mod:`flask_llmstream.settings`.
    :param chunker: cuts text; see :mod:`flask_llmstream.sansio.chunkers`.
    :param describe: exception to :class:`~flask_llmstream.failures.Failure`.
    :param around_end: is called with a function that runs the ``on_end`` callbacks.
    :param sender: sender of the signals.
    :param inner: the user's own iterable, where *source* is a wrapper around it.
    """

    __slots__ = (
        "_source", "_inner", "_describe", "_advance", "_end_reason", "_turn", "_turn_at", "_ready",
        "_unshared", "_ident", "_on_close", "__weakref__",
    )

    def __init__(
        self,
        source: Any,
        *,
        format: Any,
        settings: Settings,
        chunker: Optional[Any] = None,
        describe: Optional[Callable[[BaseException], Failure]] = None,
        around_end: Optional[Callable[[Callable[[], None]], None]] = None,
        sender: Any = None,
        inner: Any = None,
    ) -> None:
        super().__init__(format, settings, chunker)
        self.id = secrets.token_hex(8)
        self._source = source
        self._inner = inner if inner is not None else source
        self._describe = describe
        self._around_end = around_end
        self._sender = sender
        self._advance: Optional[Callable[[], Any]] = None
        self._end_reason = "disconnect"
        self._turn = -1
        self._turn_at = 0.0
        self._unshared = 0
        self._ready: Optional[Callable[[Any], int]] = None
        self._ident = 0
        self._on_close: Optional[Callable[[], Any]] = None

    def __repr__(self) -> str:
        return f"<Stream {self.id} {self._state}>"

    # -- the WSGI side ---------------------------------------------------------------------

    def attach(
        self,
        peer: Peer,
        start_response: Callable[..., Any],
        status: str,
        headers: List[Tuple[str, str]],
        on_close: Optional[Callable[[], Any]] = None,
    ) -> Stream:
        """Tie the stream to a request; return it, as the iterable for the server.

        :param peer: what is known of the client.
        :param start_response: the server's; called with the first byte.
        :param status: status line to open with, such as ``200 OK``.
        :param headers: headers to open with.
        :param on_close: called once, after everything else, when the server closes the iterable.
        """
        if self._state != "new":
            raise RuntimeError("a stream can be sent once; make a new response for each request")
        self._state = "attached"
        self._peer = peer
        self._start_response = peer.start_response or start_response
        self._status = status
        self._headers = headers
        self._on_close = on_close
        return self

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> bytes:
        advance = self._advance
        if advance is None:
            return self._first_or_last()
        runtime = self._runtime
        on_hub = runtime.sees_blocking
        frames = self._frames
        wire = self.wire
        if on_hub:
            if frames:
                self._arm()  # another greenlet has sent them while the server was writing
            if self._unshared >= _FAIR_FRAMES or self._touched - self._turn_at > _FAIR_SECONDS:
                self._pass_turn()
        ready = self._ready
        begun = self._touched
        blocked = not on_hub
        try:
            while True:
                if self._cancellation is not None or self._gone:
                    return self._unwanted()
                self._in_source = True
                if not on_hub:
                    wire.release()
                try:
                    item = advance()
                except BaseException as error:
                    self._in_source = False
                    self._await_writer() if on_hub else wire.acquire()
                    return self._source_raised(error)
                self._in_source = False
                if not on_hub:
                    wire.acquire()
                    if self._cancellation is not None:
                        self._unthrow()  # type: ignore[unreachable]
                elif self.wire is not None:
                    self._await_writer()
                at = self._touched = runtime.now()
                turn = runtime.turns()
                if turn != self._turn:
                    blocked = True
                    self._turn, self._turn_at, self._unshared = turn, at, 0
                    if self._first_at is None:
                        self._first_item(at)
                try:
                    frame = self._take(item)
                except Exception as error:
                    return self._fail(error)
                more = ready is not None and ready(self._inner)
                if frame and blocked and not more and not frames and self._opened:
                    return frame  # what happens nearly always, without a list
                if not frames:
                    begun = at
                    if not frame:
                        if on_hub and at - self._turn_at > _FAIR_SECONDS:
                            self._pass_turn()  # nothing to send is no reason to hold the hub
                        continue
                if frame:
                    frames.append(frame)
                if len(frames) < _FAIR_FRAMES and at - begun < _FAIR_SECONDS:
                    if more:
                        continue
                    if not blocked and len(frame) < _BURST_BYTES:
                        # Maybe it has more. If it blocks now, the hub has it sent at once.
                        self._arm()
                        continue
                self._unshared += len(frames)
                return self._collect()
        except StreamCancelled as error:
            return self._cancelled_late(error)

    def _cancelled_late(self, error: StreamCancelled) -> bytes:
        """Threads only: what was thrown into the source has come out behind it.

        CPython raises such an exception when it suits it. In the server it would end the worker.
        """
        self._in_source = False
        # Whose the wire is cannot be known: it may have come before the lock was taken, or after.
        # Whoever throws holds it for microseconds, so if it stays locked it is ours.
        self.wire.acquire(True, 0.1)
        if self._state == "over":
            raise leave_quietly(self._peer)
        return self._source_raised(error)

    def close(self) -> None:
        """End the stream; the server calls this in every case, and only once matters."""
        on_close, self._on_close = self._on_close, None
        try:
            if self._state != "over":
                self._close()
        finally:
            if on_close is not None:
                on_close()

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
            self._close_source()
            self._over("shutdown")
        else:
            # The server has given up between two items: its write failed.
            self._departed()
            cancellation = self._cancellation
            if cancellation is None:
                self._run_dry()
            else:
                self._close_source()
                self._over(cancellation.reason)

    def _never_started(self, reason: str) -> None:
        if self._state in ("new", "attached"):
            self._runtime = current_runtime()
            self._started_at = self._runtime.now()
            self._close_source()
            self._over(reason)

    # -- turns of the server that are not simply "the next item" ----------------------------

    def _first_or_last(self) -> bytes:
        if self._state == "attached":
            self._begin()
            if self._hold_until <= self._started_at or not self._peer.opens_aside:
                return self._open(self._format.opening(self._settings.padding))
            return self.__next__()
        if self._state == "ending":
            self._over(self._end_reason)
        elif self._state == "new":
            raise RuntimeError("a stream was iterated before it was attached to a request")
        raise StopIteration

    def _begin(self) -> None:
        runtime = self._runtime = current_runtime()
        settings = self._settings
        look_for_collector(self.id)
        look_for_hazards()
        now = self._started_at = self._touched = self._turn_at = runtime.now()
        self.task = runtime.task()
        if not runtime.sees_blocking:
            self.wire = runtime.lock()
            self.wire.acquire()
        self._hold_until = now + settings.status_hold
        self._ends_at = now + settings.max_duration if settings.max_duration else NEVER
        self._ident = runtime.ident()
        current.enter(self._ident, self)
        self._state = "running"
        current_drainage().begin()
        if signals.stream_started.receivers:
            signals.stream_started.send(self._sender, stream=self)
        if self._peer.fd is not None:
            current_watcher().add(self._peer.fd, self)
        due = self._next_due()
        if due < NEVER:
            self._entry = current_ticker().schedule(self, due)
        self._advance = iter(self._source).__next__
        self._ready = find_ready(self._inner)

    def _pass_turn(self) -> None:
        """Let others run; a new turn begins."""
        runtime = self._runtime
        runtime.pass_turn()
        self._turn, self._turn_at, self._unshared = runtime.turns(), runtime.now(), 0

    # -- endings ----------------------------------------------------------------------------

    def _source_raised(self, error: BaseException) -> bytes:
        cancellation = self._cancellation
        self._unthrow()
        if isinstance(error, StopIteration) and cancellation is None:
            return self._finish()
        if cancellation is not None or isinstance(error, StreamCancelled):
            if isinstance(error, (StopIteration, StreamCancelled)) or isinstance(error, Exception):
                return self._stopped()
        elif isinstance(error, Exception):
            return self._fail(error)
        # GreenletExit, SystemExit, KeyboardInterrupt: the worker is going down.
        self._close_source()
        self._over("shutdown")
        raise error

    def _unwanted(self) -> bytes:
        """Between two items: the stream was cancelled, or its client has left."""
        self._unthrow()
        if self._cancellation is None:
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
        return self._last(
            reason, self._format.failed(failure.message, failure.code, failure.retryable), failure
        )

    def _finish(self) -> bytes:
        try:
            data = self._flush_chunker() + self._format.done(self._finish_reason, self._usage)
        except Exception as error:  # a chunker of the user's own
            return self._fail(error)
        return self._last("finish", data)

    def _fail(self, error: BaseException) -> bytes:
        failure = self._describe_and_log(error)
        self._close_source()
        data = self._flush_quietly()
        data += self._format.failed(failure.message, failure.code, failure.retryable)
        return self._last("error", data, failure)

    def _describe_and_log(self, error: BaseException) -> Failure:
        self._error = error
        failure = describe_failure(error)
        try:
            if self._describe is not None:
                failure = self._describe(error)
        finally:
            unexpected = failure.code == "internal_error"
            _log.error(
                "stream %s failed after %d pieces of text: %s: %s", self.id, len(self._texts),
                type(error).__name__, error,
                exc_info=(type(error), error, error.__traceback__) if unexpected else None,
            )
        return failure

    def _last(self, reason: str, data: bytes, failure: Optional[Failure] = None) -> bytes:
        """Hand the last bytes to the server; the end itself comes with its next turn."""
        self._state = "ending"
        self._end_reason = reason
        self._advance = None
        if self._gone:
            self._over(reason)
            raise leave_quietly(self._peer)
        # Text that a chunker holds is an answer that has begun, though none of it has been sent.
        begun = self._opened or self._frames or self._texts
        if failure is not None and not begun:
            self._status = f"{failure.status} {http.client.responses.get(failure.status, 'Error')}"
            self._headers = failure.headers()
            return self._open(failure.body())
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
        going_down: Optional[BaseException] = None
        on_hub = self._runtime.sees_blocking
        while advance is not None and not self.cancelled:
            self._in_source = True
            if not on_hub:
                self.wire.release()
            try:
                self._take(advance())
            except StopIteration:
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
        self._close_source()
        self._over(reason)
        if going_down is not None:
            raise going_down

    def _over(self, reason: str) -> None:
        """Give back everything and tell whoever wants to know; the only way to be over."""
        if self._state == "over":
            return
        started = self._state != "attached" and self._state != "new"
        self._state = "over"
        self._advance = None
        del self._frames[:]
        if self._entry is not None:
            self._entry.ticked = None
            self._entry = None
        if started:
            if self._peer.fd is not None:
                current_watcher().remove(self._peer.fd, self)
        for closable in self.bound:
            try:
                closable.close()
            except Exception:
                _log.exception("stream %s: what was bound to it could not be closed", self.id)
        del self.bound[:]
        try:
            if self._callbacks or signals.stream_finished.receivers:
                self._tell(self._make_end(reason))
        except Exception:
            _log.exception("stream %s: what follows its end has failed", self.id)
        finally:
            self._error = None  # its traceback holds this stream
            if started:
                current.leave(self._ident, self)
        if reason != "finish" and reason != "error":
            _log.info(
                "stream %s ended: %s, after %d pieces of text and %.3f s", self.id, reason,
                len(self._texts), self._runtime.now() - self._started_at,
            )
