"""What is a suspended producer waiting in? Answered from its frames, without touching it.

Two questions decide how it may be cancelled: which socket is it reading (on threads that socket
is the only thing that can be woken), and is that read part of a conversation on a pooled
connection (a database or Redis reply that is cut in half would be served to the next user).
"""

from __future__ import annotations

import socket
from types import FrameType
from typing import Any, FrozenSet, Iterator, Optional, Tuple

__all__ = ["POOLED_CLIENTS", "peer_name", "pooled_client", "reading_socket", "waiting_socket"]

#: Packages that put a connection back into a pool even when an exception passes through a
#: half-read reply, or that hold one on behalf of others.
POOLED_CLIENTS: FrozenSet[str] = frozenset(
    {
        "amqp", "aiomysql", "cassandra", "elastic_transport", "kombu", "ldap3", "memcache", "MySQLdb",
        "mysql", "oracledb", "pg8000", "psycogreen", "psycopg", "psycopg2", "psycopg_pool",
        "pymemcache", "pymongo", "pymysql", "redis", "rediscluster", "sqlalchemy", "valkey",
    }
)

#: (end of file name, function) of the frames in which a thread is blocked reading a socket, or
#: waiting for its connection.
_READERS: Tuple[Tuple[str, FrozenSet[str]], ...] = (
    ("socket.py", frozenset({"readinto", "create_connection"})),
    ("ssl.py", frozenset({"recv", "recv_into", "read"})),
    ("_backends/sync.py", frozenset({"read"})),
    ("urllib3/util/connection.py", frozenset({"create_connection"})),
)


def _frames(frame: Optional[FrameType]) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def pooled_client(frame: Optional[FrameType], also: Tuple[str, ...] = ()) -> Optional[str]:
    """Return the package with pooled connections that *frame* is inside of, or ``None``.

    :param frame: the innermost frame of the suspended producer.
    :param also: further package names to look for.
    """
    for each in _frames(frame):
        package = str(each.f_globals.get("__name__", "")).partition(".")[0]
        if package in POOLED_CLIENTS or package in also:
            return package
    return None


def _socket_of(frame: FrameType) -> Optional[socket.socket]:
    owner = frame.f_locals.get("self", frame.f_locals.get("sock"))
    found = owner if isinstance(owner, socket.socket) else getattr(owner, "_sock", None)
    return found if isinstance(found, socket.socket) else None


def reading_socket(frame: Optional[FrameType]) -> Optional[socket.socket]:
    """Return the socket that a thread is provably blocked on, or ``None``.

    Only the innermost frame counts: a socket further up may belong to clean-up code (a
    ``close()`` that is just running), and an exception that lands there loses a ``finally``.
    """
    if frame is None:
        return None
    name = frame.f_code.co_filename.replace("\\", "/")
    for ending, functions in _READERS:
        if frame.f_code.co_name in functions and name.endswith(ending):
            return _socket_of(frame)
    return None


def waiting_socket(frame: Optional[FrameType]) -> Optional[Any]:
    """Return the gevent socket that a suspended greenlet waits on, or ``None``."""
    for each in _frames(frame):
        module = str(each.f_globals.get("__name__", ""))
        if not module.startswith("gevent."):
            return None
        owner = each.f_locals.get("self")
        if owner is not None and hasattr(owner, "recv_into") and hasattr(owner, "fileno"):
            return owner
    return None


def peer_name(sock: Optional[Any]) -> str:
    """Return the address at the other end of *sock*, or an empty text."""
    try:
        address = sock.getpeername()  # type: ignore[union-attr]
    except (AttributeError, OSError):
        return ""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
