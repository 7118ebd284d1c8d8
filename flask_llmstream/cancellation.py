"""Getting a blocked producer to stop, without harming what it shares with others.

Decisions
    1. gevent: the exception is thrown from the hub into the blocked greenlet, once. Threads: an
       exception is set and the socket that the thread is provably reading is shut down. In both
       cases a second shot follows only after the grace period: the first one's ``finally`` may be
       reporting usage over a socket of its own.
    2. A producer that is inside a client with pooled connections (database, Redis) is left alone
       until its reply is in. If that takes too long its socket is broken first, so that what goes
       back to the pool is a dead connection, never one with half a reply in it.
    3. Never inside ``shield()``, and never while the generator itself is writing to the client:
       half a frame would garble what must still be said.
"""

from __future__ import annotations

from typing import Any, List, Optional, Tuple

from flask_llmstream.blocked import pooled_client, reading_socket, waiting_socket
from flask_llmstream.exceptions import cancelled_because
from flask_llmstream.runtime import Runtime
from flask_llmstream.streamlog import stream_logger
from flask_llmstream.upstream.sockets import sever

try:
    from typing import Protocol
except ImportError:  # Python 3.7
    Protocol = object  # type: ignore[assignment]

__all__ = ["Cancellation", "Producer"]

_log = stream_logger()

#: Seconds between looks at a producer that cannot be interrupted just now.
_RETRY = 0.02
#: The longest such pause; it doubles from the first.
_LONGEST_RETRY = 0.5
#: Seconds for which a moment to interrupt at is waited for: a database or Redis call may take so
#: long before its socket is broken, and a source may read so long without ever waiting.
_POOLED_PATIENCE = 2.0


class Producer(Protocol):
    """What a cancellation must know of the stream it works on."""

    id: str
    task: Any
    bound: List[Any]
    shields: int
    wire: Any

    def exposed(self) -> bool:
        """Whether the source is running, not shielded, and not writing."""


class Cancellation:
    """One stream's cancellation, from the wish to the end of the source."""

    __slots__ = ("reason", "code", "retry_at", "thrown", "_producer", "_runtime", "_grace", "_pause",
                 "_patience_ends", "_also", "_not_before", "_warned")

    def __init__(
        self,
        reason: str,
        producer: Producer,
        runtime: Runtime,
        grace: float,
        also: Tuple[str, ...] = (),
        code: Optional[str] = None,
    ) -> None:
        #: Why: ``disconnect``, ``stop``, ``timeout`` or ``shutdown``.
        self.reason = reason
        #: What the client is told.
        self.code = reason if code is None else code
        #: How often the producer was interrupted.
        self.thrown = 0
        now = runtime.now()
        #: When to look again, on the runtime's clock.
        self.retry_at = now + _RETRY
        self._producer = producer
        self._runtime = runtime
        self._grace = grace
        self._also = also
        self._pause = _RETRY
        self._patience_ends = now + _POOLED_PATIENCE
        self._not_before = now
        self._warned = False

    def tick(self, now: float) -> float:
        """Try again if it is time; return when to come back."""
        if now >= self.retry_at:
            self._later(now)
            self._runtime.call_soon(self.attempt)
        return self.retry_at

    def _later(self, now: float) -> None:
        self.retry_at = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_RETRY)

    def attempt(self) -> None:
        """Interrupt the producer if that is possible now; on gevent only from the hub."""
        if self._runtime.now() < self._not_before:
            return  # the watcher and the ticker may both come, and its clean-up has begun
        if self._runtime.sees_blocking:
            if self._producer.exposed():
                self._throw()
            return
        if self.thrown and self._producer.exposed():
            self._warn()
        # Threads: holding the wire keeps the producer from leaving its source meanwhile.
        if not self._producer.wire.acquire(False):
            return
        try:
            if self._producer.exposed() and self._runtime.now() >= self._not_before:
                self._shoot()
        finally:
            # Before any other call: under a tracer CPython 3.11 waits in it, holding the
            # interpreter, for an exception that its thread may only raise once it has the wire.
            self._producer.wire.release()

    def told(self) -> None:
        """Take note that the producer has the exception from elsewhere; its grace begins."""
        self.thrown += 1
        self.retry_at = self._not_before = self._runtime.now() + self._grace

    def _is_pooled(self, frame: Any, now: float) -> Optional[bool]:
        """Whether *frame* is inside a pooled client; ``None`` means: leave it alone for now."""
        if pooled_client(frame, also=self._also) is None:
            return False
        return True if now >= self._patience_ends else None

    def _throw(self) -> None:
        now = self._runtime.now()
        frame = self._runtime.frame(self._producer.task)
        pooled = self._is_pooled(frame, now)
        if pooled is None:
            return
        if self.thrown:
            self._warn()
        self.told()
        # What goes back to a pool with half a reply in it must be dead.
        broken = waiting_socket(frame) if pooled else None
        self._runtime.throw(self._producer.task, cancelled_because(self.reason), broken)

    def _shoot(self) -> None:
        now = self._runtime.now()
        frame = self._runtime.frame(self._producer.task)
        pooled = self._is_pooled(frame, now)
        if pooled is None:
            return
        sock = reading_socket(frame)
        if sock is not None:
            at = frame.f_lasti
            if self._runtime.readable(sock) and now < self._patience_ends:
                # Its read is over, and may be about to raise: what is thrown now would land in
                # whatever answers that, or be lost in a finalizer.
                return
            # The interpreter has just changed hands, and does not again for some milliseconds:
            # what holds now holds when the exception is set.
            if self._runtime.frame(self._producer.task) is frame and frame.f_lasti == at:
                self.told()
                self._runtime.throw(self._producer.task, cancelled_because(self.reason), sock)
        elif not self.thrown:
            # Not provably in a read: an exception might land in clean-up code. What the stream
            # owns alone can be broken all the same; whoever reads it next will notice.
            for closable in list(self._producer.bound):
                sever(closable)

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "stream %s: its source goes on %.1f s after it was cancelled (%s); let"
                " StreamCancelled pass, or do clean-up inside current_stream.shield()",
                self._producer.id, self._grace, self.reason,
            )
