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
    4. How a stream ends is the business of :mod:`flask_llmstream.closing`. ``on_end`` runs after the
       terminal event has been handed to the server, so that a slow callback does not hold it back.

PEP 3333: https://peps.python.org/pep-3333/
"""

from __future__ import annotations

import secrets
from typing import Any, Callable, List, Optional, Tuple

from flask_llmstream import current, signals
from flask_llmstream.bounded import bound
from flask_llmstream.closing import Closing
from flask_llmstream.culprits import look_for_collector
from flask_llmstream.disconnect import Peer, current_watcher, leave_quietly
from flask_llmstream.draining import current_drainage
from flask_llmstream.ending import StreamEnd
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.failures import Failure
from flask_llmstream.hazards import look_for_hazards
from flask_llmstream.outlet import NEVER, find_ready, ready_behind, ready_in
from flask_llmstream.runtime import current_runtime
from flask_llmstream.settings import Settings
from flask_llmstream.ticker import current_ticker
from flask_llmstream.watchdog import watch_loop

__all__ = ["ENVIRON_KEY", "Stream", "StreamEnd"]

#: Says in a WSGI environ that its response is a :class:`Stream`.
ENVIRON_KEY = "flask_llmstream.stream"

#: After so many frames, or seconds, without a switch a stream yields to the others.
_FAIR_FRAMES = 32
_FAIR_SECONDS = 0.02
#: A burst is sent when it has grown to this; more would only cost memory.
_BURST_BYTES = 16384


class Stream(Closing):
    """Iterable of bytes for a WSGI server, fed by a source.

    :param source: iterable of items.
    :param format: encodes items; see :mod:`flask_llmstream.sansio.native`.
    :param settings: see :mod:`flask_llmstream.settings`.
    :param chunker: cuts text; see :mod:`flask_llmstream.sansio.chunkers`.
    :param describe: exception to :class:`~flask_llmstream.failures.Failure`.
    :param around_end: is called with a function that runs the ``on_end`` callbacks.
    :param sender: sender of the signals.
    :param inner: the user's own iterable, where *source* is a wrapper around it.
    :param id: its name in logs and events. Defaults to one that is made here.
    """

    __slots__ = ("_on_close", "_meter", "_notes", "_bytes_left", "__weakref__")

    #: See :mod:`flask_llmstream.metered`; not there where nothing is measured.
    _meter: Any
    #: See :mod:`flask_llmstream.observed`; not there where nobody sees it.
    _notes: Any
    #: See :mod:`flask_llmstream.bounded`; not there where there is no limit.
    _bytes_left: int

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
        id: Optional[str] = None,
    ) -> None:
        super().__init__(source, inner if inner is not None else source, format, settings, chunker)
        self.id = secrets.token_hex(8) if id is None else id
        self._describe = describe
        self._around_end = around_end
        self._sender = sender
        self._turn = -1
        self._turn_at = 0.0
        self._unshared = 0
        self._ready: Optional[Callable[[Any], int]] = None
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
        if self._settings.max_bytes:
            bound(self, self._settings.max_bytes)
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
                turn = runtime.loop.iteration
                if turn != self._turn:
                    blocked = True
                    self._turn, self._turn_at, self._unshared = turn, at, 0
                    if self._first_at is None:
                        self._first_item(at)
                try:
                    frame = self._take(item)
                except Exception as error:
                    return self._fail(error)
                if ready is None:
                    more = 0
                elif ready is ready_behind:  # a call less for every token of a generator
                    delegate = self._inner.gi_yieldfrom
                    more = 0 if delegate is None else ready_in(delegate)
                else:
                    more = ready(self._inner)
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

    # -- turns of the server that are not simply "the next item" ----------------------------

    def _first_or_last(self) -> bytes:
        if self._state == "attached":
            self._begin()
            if self._hold_until <= self._started_at or not self._peer.opens_aside:
                return self._open(self._format.opening(self._settings.padding))
            return Stream.__next__(self)  # not what counts our turns: this is the same one
        if self._state == "ending":
            self._over(self._end_reason)
            if self._breaks is not None:
                raise self._breaks
        elif self._state == "new":
            raise RuntimeError("a stream was iterated before it was attached to a request")
        raise StopIteration

    def _begin(self) -> None:
        runtime = self._runtime = current_runtime()
        settings = self._settings
        look_for_collector(self.id)
        look_for_hazards()
        if settings.stall_warning:
            watch_loop()
        now = self._started_at = self._touched = self._turn_at = runtime.now()
        self.task = runtime.task()
        if not runtime.sees_blocking:
            self.wire = runtime.lock()
            self.wire.acquire()
        self._hold_until = now + settings.status_hold
        self._ends_at = now + settings.max_duration if settings.max_duration else NEVER
        self._rotate_at = now + self.lasts
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
        self._turn, self._turn_at, self._unshared = runtime.loop.iteration, runtime.now(), 0
