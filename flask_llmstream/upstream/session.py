"""The HTTP session that all calls of a process share.

Decisions
    1. One per process id: after a fork the child must not read from sockets of its parent.
    2. It keeps no cookies: the next call may be made for somebody else.
    3. It keeps a bounded number of idle connections and drops the others without a word. A
       worker with a thousand streams would otherwise fill its log with "pool is full", or its
       file descriptors with connections that the provider closed long ago.
"""

from __future__ import annotations

import os
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Dict

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

__all__ = ["shared_session"]

#: Providers, and idle connections to each.
_HOSTS = 32
_IDLE_CONNECTIONS = 128

_sessions: Dict[int, requests.Session] = {}


def shared_session() -> requests.Session:
    """Return the session of this process, made at the first call."""
    pid = os.getpid()
    found = _sessions.get(pid)
    if found is None:
        _sessions.clear()
        found = _sessions[pid] = _make()
    return found


def _make() -> requests.Session:
    session = requests.Session()
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for prefix in ("http://", "https://"):
        session.mount(prefix, _Adapter(pool_connections=_HOSTS, pool_maxsize=_IDLE_CONNECTIONS))
    return session


class _QuietPool:
    """Closes what does not fit instead of logging a warning about it."""

    def _put_conn(self, conn: Any) -> None:
        idle = self.pool  # type: ignore[attr-defined]
        if conn is not None and idle is not None and idle.full():
            conn.close()
        else:
            super()._put_conn(conn)  # type: ignore[misc]


class _HTTPPool(_QuietPool, HTTPConnectionPool):
    pass


class _HTTPSPool(_QuietPool, HTTPSConnectionPool):
    pass


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
