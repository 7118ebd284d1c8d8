"""Ways to break the app, each of which the soak must find: ``--broken fd,memory``.

A counter that never finds anything proves nothing. Each of these is done in every few streams.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Any, Callable, Dict, List, Sequence
from urllib.parse import urlsplit

__all__ = ["NAMES", "break_stream"]

_kept: List[Any] = []
_EVERY = 4
_turns: Dict[str, int] = {}


def _upstream(url: str) -> None:
    parts = urlsplit(url)
    sock = socket.create_connection((parts.hostname, parts.port))
    body = b'{"model": "key=leaked&count=1&pause=0&end=silent"}'
    sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    _kept.append(sock)


def _thread(url: str) -> None:
    threading.Thread(target=time.sleep, args=(3600,), name="leaked", daemon=True).start()


def _fd(url: str) -> None:
    _kept.append(os.open(os.devnull, os.O_RDONLY))


def _memory(url: str) -> None:
    _kept.append(b"x" * (1 << 22))


def _objects(url: str) -> None:
    _kept.append([[] for _ in range(5000)])


def _traceback(url: str) -> None:
    try:
        raise ValueError("was not provoked")
    except ValueError:
        logging.getLogger(__name__).exception("broken")


_WAYS: Dict[str, Callable[[str], None]] = {
    "upstream": _upstream, "thread": _thread, "fd": _fd, "memory": _memory, "objects": _objects,
    "traceback": _traceback,
}
#: All ways; the app itself sees to the others.
NAMES = (*_WAYS, "on_end", "on_end_twice", "finished", "text", "entry", "stream")


def is_turn(name: str, ways: Sequence[str]) -> bool:
    """Whether it is time to do what *name* says."""
    if name not in ways:
        return False
    _turns[name] = _turns.get(name, 0) + 1
    # Not two at the same time: one may hide the other.
    return (_turns[name] + len(name)) % _EVERY == 0


def break_stream(ways: Sequence[str], url: str) -> None:
    """Do those of *ways* whose turn it is."""
    for name, way in _WAYS.items():
        if is_turn(name, ways):
            way(url)


def keep(thing: Any) -> None:
    """Keep *thing* for ever."""
    _kept.append(thing)
