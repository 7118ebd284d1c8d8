"""What others may ask of a running stream: its generator, the ticker, the watcher.

Nothing here drives the stream; :class:`~flask_llmstream.stream.Stream` does.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional

from flask_llmstream import signals
from flask_llmstream.blocked import peer_name, reading_socket, waiting_socket
from flask_llmstream.cancellation import Cancellation
from flask_llmstream.culprits import describe_stack
from flask_llmstream.ending import StreamEnd
from flask_llmstream.outlet import NEVER
from flask_llmstream.producing import Producing, sum_usage, total_usage
from flask_llmstream.sansio.events import Usage
from flask_llmstream.settings import Settings
from flask_llmstream.stalled import Stall, cut_off
from flask_llmstream.streamlog import stream_logger
from flask_llmstream.tagged import TaggedOutlet
from flask_llmstream.ticker import Entry, current_ticker

__all__ = ["Control"]

_log = stream_logger()

#: So often within each of its limits a stream is looked at.
_LOOKS = 4


class Control(TaggedOutlet, Producing):
    """A stream that can be looked at, cancelled, and used by the generator that feeds it.

    Parameters as for :class:`~flask_llmstream.outlet.Outlet`.
    """

    __slots__ = (
        "task", "bound", "shields", "_callbacks", "_sending", "_state", "_sender",
        "_entry", "_ends_at", "_leave_at", "_idle_from", "_stall", "_around_end", "_error",
        "_started_at", "_stall_told", "cut", "seal",
    )

    def __init__(self, format: Any, settings: Settings, chunker: Optional[Any] = None) -> None:
        super().__init__(format, settings, chunker)
        self.task: Any = None
        self.bound: List[Any] = []
        self.shields = 0
        self._callbacks: List[Callable[[StreamEnd], Any]] = []
        self._cancellation: Optional[Cancellation] = None
        self._sending = False
        self._state = "new"  # attached, running, ending, over
        self._sender: Any = None
        self._entry: Optional[Entry] = None
        self._ends_at = NEVER
        self._leave_at = NEVER
        self._idle_from = 0.0
        self._stall: Optional[Stall] = None
        self._around_end: Optional[Callable[[Callable[[], None]], None]] = None
        self._error: Optional[BaseException] = None
        self._started_at = 0.0
        self._first_at: Optional[float] = None
        self._stall_told = False
        self.cut: Optional[Usage] = None
        #: Is called last, with how it has ended and the code of a failure: it may wait, and a worker that
        #: stops may not let it.
        self.seal: Optional[Callable[[StreamEnd, Optional[str]], Any]] = None

    # -- what happens while the source blocks -----------------------------------------------

    def _next_due(self) -> float:
        """When the ticker should look at this stream next."""
        if self._cancellation is not None:
            return self._cancellation.retry_at
        due = min(self._ends_at, self._leave_at, self._next_look())
        if self._settings.stall_warning and not self._stall_told:
            due = min(due, max(self._touched, self._idle_from) + self._settings.stall_warning)
        if self._can_write():
            if self._probing:
                due = self._touched
            if not self._opened:
                due = min(due, self._hold_until)
            elif self._settings.heartbeat_interval and self._format.heartbeat:
                due = min(due, self._quiet_since() + self._settings.heartbeat_interval)
            if self._held_since < NEVER:
                due = min(due, self._held_since + self._settings.max_delay)
        return due

    def _next_look(self) -> float:
        """When an idle source or a client that does not read should be looked for."""
        settings = self._settings
        limit = settings.idle_timeout or NEVER
        if self._peer.fd is not None and settings.slow_reader_timeout:
            limit = min(limit, settings.slow_reader_timeout)
        return self._runtime.now() + limit / _LOOKS

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
        settings = self._settings
        if self._peer.fd is not None and not self._gone:
            self._look_for_stall(now)
        if not self._in_source:
            self._idle_from = now  # it is the client who lets the source wait
        else:
            idle = now - max(self._touched, self._idle_from)
            if settings.stall_warning and idle >= settings.stall_warning and not self._stall_told:
                self._tell_of_stall("nothing has come from its source for %.0f s; it waits in %s", idle)
            if settings.idle_timeout and idle >= settings.idle_timeout:
                return self.cancel("timeout", "upstream_timeout")
        if self.wire is None and self._in_source and not self._has_due(now):
            return max(self._next_due(), now + 0.005)  # without making what most streams never need
        if not self._in_source or not self._seize():
            # The request side is writing: that is as good as a heartbeat.
            return max(self._next_due(), now + 0.02)
        written: Optional[bool] = True
        try:
            if self._in_source:
                written = self._beat(now)
        finally:
            if written is not None:
                self.wire.release()
        if written:
            self._catch_up()
        elif written is not None:
            self._departed()
        return max(self._next_due(), now + 0.005)

    def _look_for_stall(self, now: float) -> None:
        """Say so if the client has not taken anything for long, and cut it off if for too long."""
        settings = self._settings
        fd = self._peer.fd
        assert fd is not None
        if self._stall is None:
            self._stall = Stall()
        seconds = self._stall.seconds(fd, now, self._runtime)
        if settings.stall_warning and seconds >= settings.stall_warning and not self._stall_told:
            self._tell_of_stall("its client has read nothing of what waits for it for %.0f s", seconds)
        limit = settings.slow_reader_timeout
        if limit and seconds >= limit and cut_off(fd, self._runtime, self._stall.taken):
            _log.info("stream %s: its client has read nothing for %.0f s and is cut off", self.id, seconds)

    def _tell_of_stall(self, message: str, seconds: float) -> None:
        """Log, once, what this stream waits for."""
        self._stall_told = True
        values: List[Any] = [self.id, seconds]
        if message.endswith("%s"):
            frame = self._runtime.frame(self.task)
            values.append(describe_stack(frame) or "code that shows no frame")
            peer = peer_name(waiting_socket(frame) or reading_socket(frame))
            if peer:
                message, values = message + ", for %s", [*values, peer]
        _log.warning("stream %s: " + message, *values)

    def _catch_up(self) -> None:
        """Try a cancellation that came while the ticker held the wire, and could not be tried."""
        if self._cancellation is not None:
            self._runtime.call_soon(self._cancellation.attempt)

    def _first_item(self, at: float) -> None:
        self._first_at = at
        if signals.first_token.receivers:
            signals.first_token.send(self._sender, stream=self)

    # -- leaving ----------------------------------------------------------------------------

    def peer_event(self, gone: bool) -> bool:
        """Take the watcher's news; return whether it should go on watching."""
        if self._state != "running":
            return False
        if not gone and self._can_write() and self._format.heartbeat:
            self._probing = True
            self._look_at(self._runtime.now())
            return True
        self._departed()
        return False

    def _departed(self) -> None:
        """The client has left."""
        with self._runtime.once:  # on threads a write may fail while the watcher sees why
            known, self._gone = self._gone, True
        if known:
            self._catch_up()  # the watcher may have seen it first, while somebody was writing
            return
        self._note_departure()
        policy = self._settings.on_disconnect
        if policy == "cancel":
            self.cancel("disconnect")
        elif policy != "detach":
            self._leave_at = self._runtime.now() + policy
            self._look_at(self._leave_at)

    @property
    def finish_reason(self) -> str:
        """Why the model has stopped, as far as it has said."""
        return self._finish_reason

    @property
    def departed(self) -> bool:
        """Whether its own client has left."""
        return self._gone

    def go_on(self, until: float) -> None:
        """Do not end it for want of a client before *until*: others read it."""
        if self._leave_at < NEVER:
            self._leave_at = max(self._leave_at, until)

    def end_at(self, at: float) -> None:
        """End it for want of a client at *at*: the last of the others who read it has left."""
        if self._leave_at < NEVER:
            self._leave_at = at
            self._look_at(at)

    def _note_departure(self) -> None:
        self._gone = True
        if signals.client_disconnected.receivers:
            try:
                signals.client_disconnected.send(self._sender, stream=self)
            except Exception:
                # The watcher or the hub is here; what the client left behind must still end.
                _log.exception("stream %s: a receiver of client_disconnected failed", self.id)

    def cancel(self, reason: str = "stop", code: Optional[str] = None) -> float:
        """Ask the source to stop; callable from any greenlet or thread.

        :param reason: ``disconnect``, ``stop``, ``timeout`` or ``shutdown``.
        :param code: what the client is told, see :mod:`flask_llmstream.failures`. Defaults to the
            reason.
        :returns: when the ticker should come back.
        """
        if self._state != "running" or self._cancellation is not None:
            return NEVER
        cancellation = self._begin_cancellation(reason, code)
        self._look_at(cancellation.retry_at)
        self._runtime.call_soon(cancellation.attempt)
        return cancellation.retry_at

    # -- current_stream ---------------------------------------------------------------------

    def on_end(self, callback: Callable[[StreamEnd], Any]) -> Callable[[StreamEnd], Any]:
        """Call ``callback(StreamEnd)`` once, when the stream is over; return *callback*.

        :raises RuntimeError: where it is over already: nobody would call it.
        """
        if self._state == "over":
            raise RuntimeError("on_end() was called when the stream was over; call it before that")
        self._callbacks.append(callback)
        return callback

    def send(self, item: Any) -> None:
        """Send *item* now, before whatever the source yields next.

        :raises StreamCancelled: where nobody wants the stream any more.
        :raises RuntimeError: where it is over.
        """
        self._send(lambda: self._take(item))

    def flush(self) -> None:
        """Send now what is held back, the text inside a chunker included."""
        self._send(self._flush_chunker)

    def _send(self, make: Callable[[], bytes]) -> None:
        """Write what *make* returns; it is called once nobody else can use the chunker."""
        if self._state != "running":
            raise RuntimeError("nothing can be sent: the stream is over")
        written = True
        self._sending = True
        try:
            self._seize(wait=True)  # on gevent a timeout of the source's own may end the waiting
            try:
                frame = make()
                if frame and not self._gone:
                    self._frames.append(frame)
                if self._in_source and self._can_write():
                    written = self._write()
            finally:
                self.wire.release()
        finally:
            self._sending = False
        self._touched = self._runtime.now()
        if not written:
            self._departed()
        self.raise_cancellation()

    # -- the end ----------------------------------------------------------------------------

    def _is_awaited(self) -> bool:
        """Whether anybody wants to know how it has ended."""
        return bool(self._callbacks or signals.stream_finished.receivers or self.seal is not None)

    def _tell(self, end: StreamEnd) -> None:
        try:
            if self._callbacks:
                if self._around_end is not None:
                    self._around_end(lambda: self._call_back(end))
                else:
                    self._call_back(end)
            if signals.stream_finished.receivers and self.task is not None:  # one that has begun
                signals.stream_finished.send(self._sender, stream=self, end=end)
        finally:
            seal, self.seal = self.seal, None
            if seal is not None:
                seal(end, None if self._cancellation is None else self._cancellation.code)

    def _make_end(self, reason: str) -> StreamEnd:
        channels = self._channel_ends(reason)
        said = None if channels else self._usage  # with channels it is their sum
        usage, estimated = total_usage(said, self.cut, len(self._texts) + self._unspoken)
        texts = ["".join(self._texts)]
        for channel in channels.values():
            usage = sum_usage(usage, channel.usage)
            estimated = estimated or channel.estimated
            texts.append(channel.text)
        first = self._first_at
        return StreamEnd(
            id=self.id,
            reason=reason,
            text="\n\n".join(filter(None, texts)),
            usage=usage,
            estimated=estimated,
            duration=self._runtime.now() - self._started_at,
            time_to_first_token=None if first is None else first - self._started_at,
            error=self._error,
            value=getattr(self._chunker, "value", None),
            channels=channels,
        )

    def _call_back(self, end: StreamEnd) -> None:
        for callback in self._callbacks:
            try:
                callback(end)
            except Exception:
                _log.exception("stream %s: an on_end callback failed", self.id)
        del self._callbacks[:]
