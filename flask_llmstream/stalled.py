"""A client that is connected and does not read: told from one that reads slowly, and cut off.

A full send buffer alone says nothing: a slow reader's is always full. What counts is whether the
client's system has acknowledged anything since the last look.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Optional

from flask_llmstream.runtime import Runtime, shut_down

__all__ = ["Stall", "cut_off"]

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
#: Where ``tcpi_bytes_acked`` stands in ``struct tcp_info`` (linux/tcp.h).
_BYTES_ACKED = 120


class Stall:
    """How long a client has not taken anything."""

    __slots__ = ("_since", "_taken")

    def __init__(self) -> None:
        self._since: Optional[float] = None
        self._taken: Optional[int] = None

    def seconds(self, fd: int, now: float, runtime: Runtime) -> float:
        """Return for how long the client has taken nothing of what waits for it.

        :param fd: descriptor of its connection.
        :param now: the time, in seconds.
        """
        if runtime.writable(fd):
            self._since = None
            return 0.0
        taken = _taken(fd)
        if self._since is None or taken != self._taken:
            self._since, self._taken = now, taken
        return now - self._since


def _taken(fd: int) -> Optional[int]:
    """Return how many bytes the other side has acknowledged; ``None`` where nobody counts."""
    try:
        info = _duplicate(fd)
    except OSError:
        return None
    with info:
        try:
            data = info.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, 256)
            taken: int = struct.unpack_from("=Q", data, _BYTES_ACKED)[0]
        except (OSError, struct.error):
            return None  # a unix socket, or an old system
    return taken


def cut_off(fd: int, runtime: Runtime) -> bool:
    """Break the connection *fd*, if its buffer is still full; return whether it was.

    Whoever writes to it gets ``EPIPE``, as if the client had left.
    """
    try:
        sock = _duplicate(fd)
    except OSError:
        return False
    with sock:
        # On threads the number may belong to another connection by now: that one can be written to.
        if runtime.writable(sock.fileno()):
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
