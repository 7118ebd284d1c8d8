"""One of several sources of a stream, in a greenlet or thread of its own.

What it yields goes into a bounded queue; :mod:`flask_llmstream.gathering` takes it from there, in
the task that drives the stream. To its source a branch is what ``current_stream`` stands for.

Decisions
    1. A branch is interrupted by the one mechanism that interrupts streams
       (:mod:`flask_llmstream.cancellation`). Where it waits for room in its queue, that is said to it
       without an exception: there it runs code of ours.
    2. What is sent by ``current_stream.send()`` goes through the queue, too. So nothing overtakes
       what was yielded before it, and nobody but the driver writes to the client.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, List, Optional, Tuple

from flask_llmstream import current
from flask_llmstream.cancellation import Cancellation
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.producing import Producing
from flask_llmstream.runtime import Runtime
from flask_llmstream.sansio.channels import ChannelFlush
from flask_llmstream.sansio.events import Finish, TextDelta, Usage
from flask_llmstream.settings import Settings
from flask_llmstream.streamlog import stream_logger

__all__ = ["Branch"]

_log = stream_logger()

#: After so many seconds without a switch a branch yields to the others; on gevent nobody else would.
_FAIR_SECONDS = 0.02


class Branch(Producing):
    """Runs one source.

    :param name: of its channel.
    :param source: iterable of items.
    :param runtime: greenlets or threads.
    :param settings: how patient a cancellation is.
    :param parent: the stream that it belongs to, ``None`` outside of one.
    :param max_pending: how many items may wait for the driver.
    :param notify: is called when there is something new, from the task of the branch.
    """

    __slots__ = (
        "id", "name", "queue", "ended", "error", "reason", "usage", "parent", "task", "bound", "shields",
        "waits", "wire", "cut", "_source", "_runtime", "_settings", "_limit", "_notify", "_cancellation",
        "_in_source", "_sending", "_state", "_room", "_waiting", "_turn", "_turn_at",
    )

    def __init__(
        self,
        name: str,
        source: Any,
        *,
        runtime: Runtime,
        settings: Settings,
        parent: Optional[Any],
        max_pending: int,
        notify: Callable[[], None],
    ) -> None:
        #: Of the channel.
        self.name = name
        #: What the driver has not taken yet.
        self.queue: Deque[Any] = deque()
        #: Whether nothing more will come; the queue may hold something still.
        self.ended = False
        #: The exception that has ended it, ``None`` where it has said all or was cancelled.
        self.error: Optional[BaseException] = None
        #: Why the model stopped.
        self.reason = "stop"
        #: What it has cost, as far as the source has said it.
        self.usage: Optional[Usage] = None
        self.parent = parent
        self.id = "(none)" if parent is None else parent.id
        self.task: Any = None
        self.bound: List[Any] = []
        self.shields = 0
        self.waits: Optional[Any] = None
        #: As with a stream: held by the branch whenever it is not inside its source. Threads only.
        self.wire: Any = None if runtime.sees_blocking else runtime.lock()
        self._source = source
        self._runtime = runtime
        self._settings = settings
        self._limit = max_pending
        self._notify = notify
        self._cancellation: Optional[Cancellation] = None
        self._in_source = False
        self._sending = False
        self._state = "new"  # running, over
        self.cut: Optional[Usage] = None
        self._room = runtime.flag()
        self._waiting = False
        self._turn = -1
        self._turn_at = 0.0

    def __repr__(self) -> str:
        return f"<channel {self.name!r} of {self.parent!r}>"

    # -- for the driver ----------------------------------------------------------------------

    def take(self) -> Any:
        """Return the oldest item of the queue, which is not empty."""
        item = self.queue.popleft()
        if self._waiting and len(self.queue) <= self._limit // 2:
            self._waiting = False
            self._room.set()  # not for each item: on threads that would be a switch each time
        return item

    def cancel(self, reason: str = "stop") -> float:
        """Have the source stop; from any greenlet or thread.

        :returns: when :meth:`tick` should be called, on the runtime's clock.
        """
        if self._cancellation is None:
            cancellation = self._begin_cancellation(reason)
            self._room.set()
            self._runtime.call_soon(cancellation.attempt)
        return self._cancellation.retry_at  # type: ignore[union-attr]

    def tick(self, now: float) -> float:
        """Try again to interrupt the source; return when to come back."""
        return self._cancellation.tick(now)  # type: ignore[union-attr]

    def fail(self, error: BaseException) -> None:
        """End the channel with *error*: what its source has yielded cannot be sent."""
        if self.error is None:
            self.error = error
        self.queue.clear()
        self.cancel()

    # -- current_stream ----------------------------------------------------------------------

    def send(self, item: Any) -> None:
        """Send *item* before whatever the source yields next; waits where its queue is full.

        :raises StreamCancelled: where nobody wants the stream any more.
        """
        self._sending = True
        try:
            self._put(item)
        finally:
            self._sending = False
        self.raise_cancellation()

    def flush(self) -> None:
        """Send what a chunker holds of this channel."""
        self.send(ChannelFlush())

    def on_end(self, callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Call ``callback(StreamEnd)`` once, when the whole stream is over; return *callback*.

        :raises RuntimeError: outside of a stream.
        """
        if self.parent is None:
            raise RuntimeError("on_end() needs a stream; these channels are iterated outside of one")
        found: Callable[[Any], Any] = self.parent.on_end(callback)
        return found

    # -- its own task ------------------------------------------------------------------------

    def run(self) -> None:
        """Yield all that the source has into the queue; never raises."""
        runtime = self._runtime
        ident = runtime.ident()
        self.task = runtime.task()
        self._state = "running"
        current.enter_channel(ident, self)
        if self.wire is not None:
            self.wire.acquire()
        try:
            try:
                error = self._produce()
            except StreamCancelled as late:
                # Threads only: what was thrown into the source has come out behind it. Whose the
                # wire is cannot be known; whoever throws holds it for microseconds.
                self._in_source = False
                self.wire.acquire(True, 0.1)
                error = late
            self._end(error)
        except BaseException as failed:
            self.error = self.error or failed
        finally:
            current.leave_channel(ident)
            self._state = "over"
            self.parent = None
            self.ended = True
            self._notify()

    def _produce(self) -> Optional[BaseException]:
        """Take items until there is none; return what has ended it, ``None`` for a regular end."""
        if self._cancellation is not None:
            return None
        iterator, error = self._inside(lambda: iter(self._source))
        while error is None and self._cancellation is None:
            item, error = self._inside(iterator.__next__)
            if error is None and self._cancellation is None:
                if item.__class__ is not TextDelta and item.__class__ is not str:
                    if isinstance(item, Finish):
                        self.reason = item.reason
                    elif isinstance(item, Usage):
                        self.usage = item
                self._put(item)
                if self._runtime.sees_blocking:
                    self._be_fair()
        return None if isinstance(error, StopIteration) else error

    def _inside(self, call: Callable[[], Any]) -> Tuple[Any, Optional[BaseException]]:
        """Run code of the source's, where it may be interrupted; return its value, or what it raised."""
        value = error = None
        wire = self.wire
        self._in_source = True
        if wire is not None:
            wire.release()
        try:
            value = call()
        except BaseException as raised:
            # Without this frame, which would hold the error that holds it, and the stream.
            trace = raised.__traceback__
            error = raised.with_traceback(None if trace is None else trace.tb_next)
            del trace
        self._in_source = False
        if wire is not None:
            wire.acquire()
            self._unthrow()
        return value, error

    def _put(self, item: Any) -> None:
        queue = self.queue
        while len(queue) >= self._limit and self._cancellation is None:
            self._waiting = True
            self._room.clear()
            if len(queue) >= self._limit and self._cancellation is None:
                self._room.wait()
        if self.error is None:
            queue.append(item)
            self._notify()

    def _be_fair(self) -> None:
        runtime = self._runtime
        turn, now = runtime.loop.iteration, runtime.now()
        if turn != self._turn:
            self._turn, self._turn_at = turn, now
        elif now - self._turn_at > _FAIR_SECONDS:
            runtime.pass_turn()

    def _end(self, error: Optional[BaseException]) -> None:
        """Run the source's ``finally`` blocks and note how it has ended."""
        cancellation = self._cancellation
        if cancellation is not None and getattr(self._source, "gi_frame", None) is not None:
            cancellation.told()
            self._close_with(lambda: self._source.throw(StreamCancelled(cancellation.reason)))
        close = getattr(self._source, "close", None)
        if close is not None:
            self._close_with(close)
        for closable in list(self.bound):
            self._close_with(closable.close)
        del self.bound[:]
        if isinstance(error, StreamCancelled) or cancellation is not None:
            self.reason = "cancelled"
            if error is not None:
                error.__traceback__ = None  # with its frames would stay what they have open
        else:
            self.error = self.error or error

    def _close_with(self, close: Callable[[], Any]) -> None:
        _, error = self._inside(close)
        if error is not None and not isinstance(error, (StreamCancelled, StopIteration)):
            _log.error(
                "stream %s: the source of its channel %r failed while it was closed: %s: %s", self.id,
                self.name, type(error).__name__, error,
                exc_info=(type(error), error, error.__traceback__),
            )
