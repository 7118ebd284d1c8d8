"""What leaves: items become frames, frames are gathered, and get to the server in one piece.

The request side returns them to the server from ``__next__``; while its source blocks, the ticker
or a greenlet that the hub starts writes them through the server's own ``write()``. The lock
``wire`` keeps the two apart; :mod:`flask_llmstream.stream` says how.
"""

from __future__ import annotations

from typing import Any, Callable, List, Optional, Tuple

from flask_llmstream.disconnect import Peer
from flask_llmstream.runtime import Runtime
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.settings import Settings
from flask_llmstream.streamlog import stream_logger

__all__ = ["NEVER", "Outlet", "find_ready", "ready_behind", "ready_in"]

_log = stream_logger()

#: So many bytes go into the send buffer of every connection that can be written to; a third of it
#: is free then, and the smallest has 4.5 KB.
_FITS = 1024
#: A moment that does not come.
NEVER = float("inf")


class _EachToken:
    """What every token touches, side by side.

    CPython lays slots out class by class, in the order of their names. Between two tokens of one stream
    hundreds of others have had theirs, so each line of memory costs a miss; these are three lines, and
    would be eleven.
    """

    __slots__ = (
        "wire", "_advance", "_cancellation", "_chunker", "_first_at", "_format", "_frames", "_gone",
        "_in_source", "_inner", "_opened", "_ready", "_runtime", "_texts", "_touched", "_turn", "_turn_at",
        "_unshared",
    )


class Outlet(_EachToken):
    """The way of one stream's items to its client; :class:`~flask_llmstream.stream.Stream` drives it.

    :param format: encodes items; see :mod:`flask_llmstream.sansio.native`.
    :param settings: see :mod:`flask_llmstream.settings`.
    :param chunker: cuts text; see :mod:`flask_llmstream.sansio.chunkers`. It may make other items of
        it, have a ``finish()`` that is called at the end instead of ``flush()``, and a ``value``
        for :class:`~flask_llmstream.ending.StreamEnd`; see :mod:`flask_llmstream.sansio.jsondelta.stage`.
    """

    __slots__ = (
        "id", "_settings", "_peer", "_start_response", "_status",
        "_headers", "_unspoken", "_finish_reason", "_usage",
        "_writer", "_beaten", "_armed", "_probing", "_hold_until",
        "_held_since",
    )

    id: str
    _peer: Peer
    _start_response: Callable[..., Any]
    _status: str
    _headers: List[Tuple[str, str]]
    _runtime: Runtime
    _hold_until: float
    _touched: float

    def __init__(self, format: Any, settings: Settings, chunker: Optional[Any] = None) -> None:
        self.wire: Any = None
        self._format = format
        self._settings = settings
        self._chunker = chunker
        self._frames: List[bytes] = []
        self._texts: List[str] = []
        self._unspoken = 0  # pieces of output that are no text of the answer
        self._finish_reason = "stop"
        self._usage: Optional[Usage] = None
        self._in_source = False
        self._opened = False
        self._writer: Optional[Callable[[bytes], Any]] = None
        self._armed = False
        self._gone = False
        self._probing = False
        self._held_since = NEVER
        self._beaten = 0.0

    def _departed(self) -> None:
        """Take note that a write has failed: the client has left."""
        raise NotImplementedError

    def _look_at(self, due: float) -> None:
        """Have the ticker come at *due*, or earlier."""
        raise NotImplementedError

    def _open(self, data: bytes) -> bytes:
        """Send status and headers; return *data*, behind the padding where it is wanted."""
        self._writer = self._start_response(self._status, self._headers)
        self._opened = True
        del self._start_response, self._headers  # an idle stream should be small
        interval = self._settings.heartbeat_interval
        if interval:
            # The ticker may have been told to come when the hold ends, and no earlier.
            self._look_at(self._touched + interval)
        return data

    def _padding(self) -> bytes:
        """Return what stands before the first output, where padding is wanted."""
        data: bytes = self._format.opening(self._settings.padding)
        return data

    def _collect(self) -> bytes:
        """Return what was gathered as one piece."""
        frames = self._frames
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        del frames[:]
        if self._opened:
            return data
        padding = self._settings.padding
        return self._open(self._format.opening(padding) + data if padding else data)

    # -- items ------------------------------------------------------------------------------

    def _take(self, item: Any) -> bytes:
        """Record *item* and return its bytes."""
        kind = item.__class__
        if kind is TextDelta:
            text = item.text
        elif kind is str:
            text = item
        else:
            return self._take_other(item)
        if not text:
            return b""
        self._texts.append(text)
        if self._chunker is None:
            encoded: bytes = self._format.encode(item)
            return encoded
        return self._segment(self._chunker, text)

    def _take_other(self, item: Any) -> bytes:
        if isinstance(item, bytes):
            text = self._format.decode_text(item)
            return self._take(text) if text else b""
        if isinstance(item, str):
            return self._take(str.__str__(item))
        if isinstance(item, Finish):
            self._finish_reason = item.reason
            return b""
        if isinstance(item, Usage):
            self._usage = item
        elif isinstance(item, (ReasoningDelta, ToolCallDelta)):
            self._unspoken += 1
        held = self._flush_chunker()
        encoded: bytes = self._format.encode(item)
        return held + encoded if held else encoded

    def _segment(self, chunker: Any, text: str) -> bytes:
        segments = chunker.feed(text)
        # A chunker that does not say may always hold something; to flush nothing costs little.
        held = getattr(chunker, "characters_held", 1)
        if segments and held <= len(text):
            self._held_since = NEVER
        if held and self._held_since == NEVER:
            self._held_since = self._runtime.now()
            self._look_at(self._held_since + self._settings.max_delay)
        return b"".join([self._format.encode(segment) for segment in segments])

    def _flush_chunker(self) -> bytes:
        self._held_since = NEVER
        if self._chunker is None:
            return b""
        return b"".join([self._format.encode(segment) for segment in self._chunker.flush()])

    def _finish_chunker(self) -> bytes:
        """Return what is left at the end of the text; a chunker that wants to know has ``finish``."""
        finish = getattr(self._chunker, "finish", None)
        if finish is None:
            return self._flush_chunker()
        self._held_since = NEVER
        return b"".join([self._format.encode(segment) for segment in finish()])

    def _flush_quietly(self) -> bytes:
        try:
            return self._flush_chunker()
        except Exception:
            return b""

    # -- while the source blocks -----------------------------------------------------------

    def _seize(self, wait: bool = False) -> bool:
        """Get the wire; return whether that worked.

        :param wait: wait for whoever has it.
        """
        wire = self.wire
        if wire is None:
            # Only on gevent, where most streams never need one; see Stream._begin().
            wire = self.wire = self._runtime.lock()
        got: bool = wire.acquire(wait)
        return got

    def _await_writer(self) -> None:
        """On gevent: the source has returned; wait for whoever writes meanwhile."""
        if self.wire is not None and self.wire.locked():
            self.wire.wait()

    def _quiet_since(self) -> float:
        """When the source or the ticker last had something to send."""
        return max(self._touched, self._beaten)

    def _can_write(self) -> bool:
        return self._peer.can_write and not self._gone

    def _has_due(self, now: float) -> bool:
        """Whether :meth:`_beat` may have something to write."""
        held_until = self._held_since + self._settings.max_delay
        return bool(self._frames) or held_until <= now or self._owes_comment(now)

    def _owes_comment(self, now: float) -> bool:
        """Whether the stream has to be opened without an item, or a heartbeat is due."""
        if self._probing:
            return True
        if not self._opened:
            return now >= self._hold_until
        interval = self._settings.heartbeat_interval
        return bool(interval and now - self._quiet_since() >= interval - 0.001 and self._format.heartbeat)

    def _beat(self, now: float) -> Optional[bool]:
        """Write what is due, holding the wire while the source blocks; as :meth:`_write`.

        :returns: ``None`` where the wire was passed on to a task that writes and releases it.
        """
        if not self._can_write():
            return True
        if self._held_since + self._settings.max_delay <= now:
            text = self._flush_quietly()
            if text:
                self._frames.append(text)
        comment = b""
        if not self._frames:
            if not self._owes_comment(now):
                return True
            opens = not self._opened
            comment = self._format.opening(self._settings.padding) if opens else self._format.heartbeat
        self._probing = False
        self._beaten = now
        fd = self._peer.fd
        if fd is not None and not self._runtime.writable(fd):
            # A full buffer needs no proof of life, and what was gathered is not lost.
            self._hold_until = max(self._hold_until, now + 0.05)
            if self._frames:
                self._held_since = now  # come again for it
            return True
        if fd is None or len(comment) + sum(map(len, self._frames)) > _FITS:
            self._runtime.spawn(lambda: self._write_aside(comment), "llmstream-writer")
            return None
        return self._write(comment)

    def _write_aside(self, comment: bytes) -> None:
        """Write what the ticker must not wait for, and release the wire that it has acquired."""
        written = True
        try:
            written = self._write(comment)
        finally:
            self.wire.release()
        if not written:
            self._departed()

    def _write(self, comment: bytes = b"") -> bool:
        """Write what was gathered, or else *comment*, holding the wire; false: the client has left."""
        frames = self._frames
        data = comment
        if frames:
            data = b"".join(frames)
            del frames[:]
            if not self._opened and self._settings.padding:
                data = self._padding() + data
        if not data and self._opened:
            return True
        try:
            if not self._opened:
                self._open(b"")
            self._writer(data)  # type: ignore[misc]
        except (OSError, self._peer.error):
            return False
        except Exception:
            self._peer = self._peer._replace(can_write=False)
            _log.exception(
                "stream %s: the callable that start_response returned cannot be used;"
                " heartbeats stop", self.id,
            )
            frames.append(data)
        return True

    def _arm(self) -> None:
        """Have what is gathered by then sent as soon as the source blocks."""
        if not self._armed:
            self._armed = True
            self._runtime.when_blocked(self._flush_blocked, self._disarm)

    def _disarm(self) -> bool:
        """Take back :meth:`_arm`; return whether there is something to send."""
        self._armed = False
        return bool(self._frames) and self._in_source

    def _flush_blocked(self) -> None:
        """Send what was gathered: the source has blocked."""
        if not self._seize():
            return
        written = True
        try:
            if self._in_source and self._can_write():
                written = self._write()
        finally:
            self.wire.release()
        if not written:
            self._departed()


def find_ready(source: Any) -> Optional[Callable[[Any], int]]:
    """Return what says how many items *source* has ready, with no other code between them."""
    if hasattr(source, "gi_yieldfrom"):
        return ready_behind
    return ready_in if hasattr(source, "ready") else None


def ready_in(source: Any) -> int:
    ready = getattr(source, "ready", 0)
    return ready if isinstance(ready, int) else 0


def ready_behind(generator: Any) -> int:
    source = generator.gi_yieldfrom
    return 0 if source is None else ready_in(source)
