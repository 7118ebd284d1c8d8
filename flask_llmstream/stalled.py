"""A client that does not read, or has vanished: told from one that reads slowly, and cut off.

A full send buffer alone says nothing: a slow reader's is always full. What counts is whether the
client's system has acknowledged anything since the last look. One that has vanished (its machine has
died, a firewall has forgotten the connection) acknowledges nothing, though what waits for it may be a
heartbeat: the kernel alone would send that again for a quarter of an hour.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Optional, Tuple

from flask_llmstream.runtime import Runtime, shut_down

__all__ = ["Stall", "cut_off"]

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
#: Where ``tcpi_unacked`` and ``tcpi_bytes_acked`` stand in ``struct tcp_info`` (linux/tcp.h).
_UNACKED, _BYTES_ACKED = 24, 120
#: Seconds between two looks at a connection whose buffer has room.
_PAUSE = 1.0


class Stall:
    """How long a client has not taken anything."""

    __slots__ = ("taken", "_since", "_look_at")

    def __init__(self) -> None:
        #: Bytes that it had acknowledged at the last look; ``None`` where nobody counts.
        self.taken: Optional[int] = None
        self._since: Optional[float] = None
        self._look_at = 0.0

    def seconds(self, fd: int, now: float, runtime: Runtime) -> float:
        """Return for how long the client has taken nothing of what waits for it.

        :param fd: descriptor of its connection.
        :param now: the time, in seconds.
        """
        has_room = runtime.writable(fd)
        if has_room and now < self._look_at:
            return 0.0
        self._look_at = now + _PAUSE
        in_flight, taken = _look(fd)
        if has_room and not in_flight:
            self._since = None
            return 0.0
        if self._since is None or taken != self.taken:
            self._since, self.taken = now, taken
        return now - self._since


def _look(fd: int) -> Tuple[bool, Optional[int]]:
    """Return whether anything is under way to the other side, and how many bytes it has acknowledged.

    The number is ``None`` where nobody counts.
    """
    try:
        sock = _duplicate(fd)
    except OSError:
        return False, None
    with sock:
        return _acknowledged(sock)


def _acknowledged(sock: socket.socket) -> Tuple[bool, Optional[int]]:
    try:
        data = sock.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
        (taken,) = struct.unpack_from("=Q", data, _BYTES_ACKED)
        (in_flight,) = struct.unpack_from("=I", data, _UNACKED)
    except (OSError, struct.error):
        return False, None  # a unix socket, or an old system
    return bool(in_flight), taken


def cut_off(fd: int, runtime: Runtime, taken: Optional[int] = None) -> bool:
    """Break the connection *fd*, if its client is still stuck; return whether it was.

    Whoever writes to it gets ``EPIPE``, as if the client had left.

    :param taken: how many bytes its client had acknowledged when it was seen to be stuck.
    """
    try:
        sock = _duplicate(fd)
    except OSError:
        return False
    with sock:
        # On threads the number may belong to another connection by now: that one can be written to,
        # or its client has acknowledged something else.
        if runtime.writable(sock.fileno()) and (taken is None or _acknowledged(sock) != (True, taken)):
            return False
        shut_down(sock)
    return True


def hang_up(fd: int) -> None:
    """End the connection *fd*, behind what its buffer holds."""
    try:
        sock = _duplicate(fd)
    except OSError:
        return
    with sock:
        shut_down(sock)


def _duplicate(fd: int) -> socket.socket:
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise
