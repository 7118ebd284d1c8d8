"""Sending the reader of a resumable stream elsewhere, while its source goes on into the event log.

Done when the worker is told to go, so that readers are with another one long before this one ends, and
when a connection has reached the age at which a platform would cut it.

Decisions
    1. The connection ends without a terminal event: for every client that is the sign to come back, to
       the same URL and with the cursor that it has. Nothing of ours is to be understood.
    2. The body ends as its framing asks where the server lets us, and the connection with it: the request
       goes on here, so nobody may send the next one on it.
    3. What has not been sent yet need not be: it is in the log, and the cursor stands before it.
    4. A departure whose grace is at least as long as it takes to come back; where the worker goes, as long
       as that lives.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from flask_llmstream.control import Control
from flask_llmstream.outlet import NEVER
from flask_llmstream.servers import end_body
from flask_llmstream.settings import Settings
from flask_llmstream.stalled import cut_off, hang_up
from flask_llmstream.streamlog import stream_logger

__all__ = ["Handover"]

_log = stream_logger()

#: Seconds in which a reader who is sent away can be back.
_RETURN = 10.0
#: Seconds for which a server may go on writing to a reader who is to leave.
_PATIENCE = 0.25
#: Bytes that are still sent to who leaves: they fit into the send buffer.
_FITS = 1024


class Handover(Control):
    """A stream whose reader can be sent elsewhere.

    Parameters as for :class:`~flask_llmstream.outlet.Outlet`.
    """

    __slots__ = ("returning", "lasts", "_rotate_at", "_owed", "_back_until")

    def __init__(self, format: Any, settings: Settings, chunker: Optional[Any] = None) -> None:
        super().__init__(format, settings, chunker)
        #: Says whether its reader can come back for the rest; ``None``: that was never so.
        self.returning: Optional[Callable[[], bool]] = None
        #: Seconds after its beginning at which its reader is sent away.
        self.lasts = NEVER
        self._rotate_at = NEVER
        #: Whether the reader is still to be sent away.
        self._owed = False
        #: Until when it is expected back.
        self._back_until = 0.0

    def _next_due(self) -> float:
        return min(super()._next_due(), self._rotate_at)

    def tick(self, now: float) -> float:
        """Do what is due; called by the ticker."""
        if now >= self._rotate_at:
            self._rotate_at = NEVER
            if self._state == "running":
                if self._owed:
                    self._insist()
                else:
                    self.hand_over()
        return super().tick(now)

    def hand_over(self, going: bool = False) -> bool:
        """Send the reader elsewhere, if it can come back; return whether it was sent just now.

        :param going: the worker goes: the source goes on for as long as that lives.
        """
        if self._state != "running" or self._gone or self._cancellation is not None:
            return False
        if self.returning is None or not self.returning():
            return False
        if not self._opened and not self._ends_aside():
            return False  # it does not know yet where to come back to
        ended = False
        if self._in_source and self._ends_aside() and self._seize():
            try:
                if self._in_source:
                    self._hang_up()
                    ended = True
            finally:
                self.wire.release()
        if not ended:
            # The server is writing, or can only be told by the request itself: with its next turn.
            self._owed = self._gone = True
            self._rotate_at = self._runtime.now() + _PATIENCE
            self._look_at(self._rotate_at)
        _log.debug("stream %s: its reader is asked to come back", self.id)
        policy = self._settings.on_disconnect
        if policy == "cancel":
            self.cancel("disconnect")  # it follows another stream: there is nothing to go on
        elif not going and policy != "detach":
            self._leave_at = self._back_until = self._runtime.now() + max(policy, _RETURN)
            self._look_at(self._leave_at)
        return True

    def end_at(self, at: float) -> None:
        """End it for want of a client at *at*, or when its own could have been back."""
        super().end_at(max(at, self._back_until))

    def _ends_aside(self) -> bool:
        """Whether the connection is this stream's alone, and the server stands its end."""
        return self._peer.fd is not None and self._peer.leaves_with_error

    def _hang_up(self) -> None:
        """End the body and the connection, holding the wire."""
        self._owed = False
        fd = self._peer.fd
        assert fd is not None
        if self._peer.can_write and self._runtime.writable(fd):
            if self._opened and sum(map(len, self._frames)) > _FITS:
                del self._frames[:]
            opening = b"" if self._opened else self._format.opening(self._settings.padding)
            if self._write(opening):
                end_body(self._writer)
        del self._frames[:]
        self._gone = True
        hang_up(fd)

    def _insist(self) -> None:
        """Break a connection whose server still writes to it: the source waits for that."""
        fd = self._peer.fd
        if fd is not None and self._ends_aside():
            cut_off(fd, self._runtime)

    def _take_leave(self) -> bool:
        """Between two items: do what is owed; return whether the server has to end the body itself."""
        if not self._owed:
            return False
        if self._ends_aside():
            self._hang_up()
            return False
        self._owed = False
        return True
