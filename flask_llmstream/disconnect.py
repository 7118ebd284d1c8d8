"""The watcher, which sees the client of a request leave.

Who that client is, :mod:`flask_llmstream.servers` finds out.

Decisions
    1. One epoll object per process, each client registered for ``EPOLLRDHUP`` alone: nothing is
       read, so a pipelined request, a TLS record or a request body is neither eaten nor in the
       way, and an idle stream costs no CPU.
    2. A FIN alone is not a departure: ``nc -N`` and some HTTP clients close their half and read
       on. The stream probes with a heartbeat; a peer that is really gone answers with RST.
"""

from __future__ import annotations

import logging
import os
import select
from typing import Any, Dict, List, Tuple

from flask_llmstream.runtime import Runtime, current_runtime, per_process
from flask_llmstream.servers import Peer, find_peer, leave_quietly

try:
    from typing import Protocol
except ImportError:  # Python 3.7
    Protocol = object  # type: ignore[assignment]

__all__ = ["Peer", "Watched", "Watcher", "current_watcher", "find_peer", "leave_quietly"]

_log = logging.getLogger(__name__)

_RDHUP = getattr(select, "EPOLLRDHUP", 0x2000)
_ONESHOT = getattr(select, "EPOLLONESHOT", 1 << 30)
_GONE = getattr(select, "EPOLLHUP", 0x10) | getattr(select, "EPOLLERR", 0x8)


class Watched(Protocol):
    """Who wants to know that its client has left."""

    def peer_event(self, gone: bool) -> bool:
        """Take the news; *gone* is false for a FIN. Return whether to go on watching."""


class Watcher:
    """Tells streams, in about a millisecond, that their client has left."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._pid = os.getpid()
        self._epoll = runtime.epoll()
        self._watched: Dict[int, Watched] = {}
        # Table and epoll object change together: on threads a connection may end, and its number
        # be given to the next one, while the news of it are being dealt with.
        self._lock = runtime.lock()
        self._starting = runtime.lock()
        self._task: Any = None
        self._recheck = not runtime.sees_blocking

    def __len__(self) -> int:
        """How many clients are being watched."""
        return len(self._watched)

    def add(self, fd: int, watched: Watched) -> None:
        """Begin to watch the connection *fd* for *watched*."""
        if self._epoll is None:
            return
        with self._lock:
            self._watched[fd] = watched
            try:
                self._epoll.register(fd, _RDHUP | _ONESHOT)
            except FileExistsError:
                self._epoll.modify(fd, _RDHUP | _ONESHOT)
            except OSError:
                self._watched.pop(fd, None)  # a kind of file that cannot be watched
                return
        if self._task is None:
            with self._starting:
                if self._task is None:
                    self._task = self._runtime.watch(self._epoll, self._ready)

    def remove(self, fd: int, watched: Watched) -> None:
        """Stop watching, before the server closes *fd* or takes the next request from it."""
        if self._epoll is None:
            return
        with self._lock:
            if self._watched.get(fd) is not watched:
                return
            del self._watched[fd]
            try:
                self._epoll.unregister(fd)
            except (OSError, ValueError):
                pass  # closed already: the kernel has forgotten it

    def _ready(self, timeout: float) -> None:
        if os.getpid() != self._pid:
            # The child of a fork shares the epoll object, and would take the news from its parent;
            # gevent 24.10 on Python 3.13 gets here before the child becomes another program.
            return
        events: List[Tuple[int, int]] = self._epoll.poll(timeout, 256)  # type: ignore[union-attr]
        for fd, mask in events:
            watched = self._watched.get(fd)
            if watched is None:
                continue
            if self._recheck:
                mask = self._state_of(fd)
                if not mask:
                    # Between the poll and now the request ended in its own thread and the number
                    # was given to a new connection: that one is well.
                    self._rearm(fd, watched, _RDHUP | _ONESHOT)
                    continue
            try:
                stays = watched.peer_event(bool(mask & _GONE))
            except Exception:
                # One stream's fault must not keep the others from being watched.
                _log.exception("a stream failed when its client had left")
                stays = False
            if stays:
                # ERR and HUP are always reported; RDHUP would come again at once, for ever.
                self._rearm(fd, watched, _ONESHOT)
            else:
                self.remove(fd, watched)

    def _rearm(self, fd: int, watched: Watched, mask: int) -> None:
        with self._lock:
            if self._watched.get(fd) is not watched:
                return  # the request has ended meanwhile, and the number may be another's
            try:
                self._epoll.modify(fd, mask)  # type: ignore[union-attr]
            except (OSError, ValueError):
                pass

    @staticmethod
    def _state_of(fd: int) -> int:
        poll = select.poll()
        try:
            poll.register(fd, getattr(select, "POLLRDHUP", 0x2000))
            events: List[Tuple[int, int]] = poll.poll(0)
        except (OSError, ValueError):
            return 0
        return events[0][1] & ~select.POLLNVAL if events else 0


#: Return the :class:`Watcher` of this process.
current_watcher = per_process(lambda: Watcher(current_runtime()))
