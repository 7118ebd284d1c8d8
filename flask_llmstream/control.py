"""What others may ask of a running stream: its generator, the ticker, the watcher.

Nothing here drives the stream; :class:`~flask_llmstream.stream.Stream` does.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Iterator, List, Optional

from flask_llmstream import signals
from flask_llmstream.cancellation import Cancellation
from flask_llmstream.ending import StreamEnd
from flask_llmstream.exceptions import StreamCancelled
from flask_llmstream.outlet import NEVER, Outlet
from flask_llmstream.settings import Settings
from flask_llmstream.ticker import Entry, current_ticker

__all__ = ["Control"]


class Control(Outlet):
    """A stream that can be looked at, cancelled, and used by the generator that feeds it.

    Parameters as for :class:`~flask_llmstream.outlet.Outlet`.
    """

    __slots__ = (
        "task", "bound", "shields", "_callbacks", "_cancellation", "_sending", "_state", "_sender",
        "_entry", "_ends_at", "_leave_at",
    )

    def __init__(self, format: Any, settings: Settings, chunker: Optional[Any] = None) -> None:
        super().__init__(format, settings, chunker)
        #: Handle on the thread or greenlet that runs the source.
        self.task: Any = None
        #: What is closed at the end.
        self.bound: List[Any] = []
        #: How many ``shield()`` blocks are open.
        self.shields = 0
        self._callbacks: List[Callable[[StreamEnd], Any]] = []
        self._cancellation: Optional[Cancellation] = None
        self._sending = False
        self._state = "new"  # attached, running, ending, over
        self._sender: Any = None
        self._entry: Optional[Entry] = None
        self._ends_at = NEVER
        self._leave_at = NEVER

    # -- what happens while the source blocks -----------------------------------------------

    def _next_due(self) -> float:
        """When the ticker should look at this stream next."""
        if self._cancellation is not None:
            return self._cancellation.retry_at
        due = min(self._ends_at, self._leave_at)
        if self._can_write():
            if not self._opened:
                due = min(due, self._hold_until)
            elif self._settings.heartbeat_interval and self._format.heartbeat:
                due = min(due, self._touched + self._settings.heartbeat_interval)
            if self._held_since < NEVER:
                due = min(due, self._held_since + self._settings.max_delay)
        return due

    def _look_at(self, due: float) -> None:
        """Have the ticker come at *due*, or earlier."""
        if self._state != "running":
            return
        entry = self._entry
        if entry is None or due < entry.due:
            if entry is not None:
                entry.ticked = None
            self._entry = current_ticker().schedule(self, due)

    def tick(self, now: float) -> float:
        """Do what is due; called by the ticker."""
        if self._state != "running":
            return NEVER
        if self._cancellation is not None:
            return self._cancellation.tick(now)
        if now >= self._ends_at:
            return self.cancel("timeout")
        if now >= self._leave_at:
            return self.cancel("disconnect")
        if not self.wire.acquire(False):
            # The request side is writing: that is as good as a heartbeat.
            return max(self._next_due(), now + 0.05)
        written = True
        try:
            if self._in_source:
                written = self._beat(now)
        finally:
            self.wire.release()
        if not written:
            self._departed()
        return max(self._next_due(), now + 0.005)

    # -- leaving ----------------------------------------------------------------------------

    def peer_event(self, gone: bool) -> bool:
        """Take the watcher's news; return whether it should go on watching."""
        if self._state != "running":
            return False
        if not gone and self._can_write() and self._format.heartbeat:
            self._probing = True
            if self._in_source:
                self._look_at(self._runtime.now())
            return True
        self._departed()
        return False

    def _departed(self) -> None:
        """The client has left."""
        if self._gone:
            return
        self._note_departure()
        policy = self._settings.on_disconnect
        if policy == "cancel":
            self.cancel("disconnect")
        elif policy != "detach":
            self._leave_at = self._runtime.now() + policy
            self._look_at(self._leave_at)

    def _note_departure(self) -> None:
        self._gone = True
        if signals.client_disconnected.receivers:
            signals.client_disconnected.send(self._sender, stream=self)

    def cancel(self, reason: str = "stop") -> float:
        """Ask the source to stop; callable from any greenlet or thread.

        :param reason: ``disconnect``, ``stop``, ``timeout`` or ``shutdown``.
        :returns: when the ticker should come back.
        """
        if self._state != "running" or self._cancellation is not None:
            return NEVER
        cancellation = Cancellation(
            reason, self, self._runtime, self._settings.cancel_grace,
            self._settings.shielded_modules,
        )
        self._cancellation = cancellation
        self._look_at(cancellation.retry_at)
        self._runtime.call_soon(cancellation.attempt)
        return cancellation.retry_at

    def exposed(self) -> bool:
        """Whether the source is running, not shielded, and not writing."""
        return self._in_source and not self.shields and not self._sending

    # -- current_stream ---------------------------------------------------------------------

    @property
    def cancelled(self) -> Optional[str]:
        """Why nobody wants this stream any more, or ``None``."""
        return None if self._cancellation is None else self._cancellation.reason

    def bind(self, closable: Any) -> Any:
        """Close *closable* when the stream ends or its client leaves; return it.

        :raises TypeError: where it has no ``close``.
        """
        if not hasattr(closable, "close"):
            raise TypeError(f"bind() needs something with close(), got {type(closable).__name__}")
        if self._state == "over":
            closable.close()
        else:
            self.bound.append(closable)
        return closable

    def release(self, closable: Any) -> None:
        """Take back :meth:`bind`; unknown objects are passed over."""
        for index, each in enumerate(self.bound):
            if each is closable:
                del self.bound[index]
                return

    def on_end(self, callback: Callable[[StreamEnd], Any]) -> Callable[[StreamEnd], Any]:
        """Call ``callback(StreamEnd)`` once, when the stream is over; return *callback*."""
        self._callbacks.append(callback)
        return callback

    def send(self, item: Any) -> None:
        """Send *item* now, before whatever the source yields next.

        :raises StreamCancelled: where nobody wants the stream any more.
        :raises RuntimeError: where it is over.
        """
        self._send(self._take(item))

    def flush(self) -> None:
        """Send now what is held back, the text inside a chunker included."""
        self._send(self._flush_chunker())

    def _send(self, frame: bytes) -> None:
        if self._state != "running":
            raise RuntimeError("nothing can be sent: the stream is over")
        written = True
        self._sending = True
        self.wire.acquire()
        try:
            if self._in_source and self._can_write():
                written = self._write(frame)
            elif frame:
                self._frames.append(frame)
        finally:
            self.wire.release()
            self._sending = False
        self._touched = self._runtime.now()
        if not written:
            self._departed()
        if self._cancellation is not None and not self.shields:
            raise StreamCancelled(self._cancellation.reason)

    @contextlib.contextmanager
    def shield(self) -> Iterator[None]:
        """A block inside which no cancellation is raised; it comes at its end."""
        self.shields += 1
        try:
            yield
        finally:
            self.shields -= 1
        if self._cancellation is not None and not self.shields and not self._cancellation.thrown:
            raise StreamCancelled(self._cancellation.reason)
