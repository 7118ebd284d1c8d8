"""From a response object to the socket under it, and how to break that under its reader.

Decisions
    1. ``close()`` of a response waits for the thread that reads it, and that thread waits for a
       next byte that may never come. Shutting the socket down wakes it at once and is seen by
       the peer within a millisecond.
    2. Objects are recognised by their attributes. Nothing is imported for it: of the five HTTP
       stacks that are known here an app has one or two.
    3. A connection that has gone back to its pool is not found. It may be serving somebody else
       by now.
"""

from __future__ import annotations

import _socket
import socket
from types import FrameType, GeneratorType
from typing import Any, List, Optional, Tuple

__all__ = ["find_socket", "generator_frame", "sever"]

#: From an object to its socket, by attributes.
_PATHS: Tuple[Tuple[str, ...], ...] = (
    # urllib3's response; the second also while the body ends with the connection.
    ("_connection", "sock"),
    ("_fp", "fp", "raw", "_sock"),
    # http.client's response and what urllib.request returns.
    ("fp", "raw", "_sock"),
    # http.client's connection.
    ("sock",),
)
#: From a wrapper to what it wraps: our own objects, requests, the SDKs of OpenAI and Anthropic
#: (their streams, their ``chat.completions.stream()`` and their raw responses), LiteLLM.
_WRAPPERS = (
    "_source", "_reader", "raw", "response", "_response", "_raw_stream", "http_response",
    "completion_stream", "streaming_response",
)
#: What a generator may call the response that it reads: Ollama's client, httpx itself.
_LOCALS = ("r", "response", "self")
_DEPTH = 5


def sever(obj: Any) -> bool:
    """Break the connection under *obj*, from any thread.

    Whoever reads from it sees it end at once. Never waits and never raises.

    :param obj: a response or stream of requests, urllib3, http.client, urllib, httpx, httpx2,
        the OpenAI or Anthropic SDK, an upstream of this package, or a socket.
    :returns: whether a live connection was found and broken.
    """
    sock: Any = find_socket(obj)
    try:
        # Not SSLSocket.shutdown, which drops the TLS state under the reader; and gevent's
        # sockets hold the real one inside.
        _socket.socket.shutdown(getattr(sock, "_sock", sock), socket.SHUT_RDWR)
    except (OSError, TypeError, ValueError):
        return False  # none there, or its peer was faster
    return True


def find_socket(obj: Any) -> Optional[Any]:
    """Return the live socket under *obj*, or ``None``; see :func:`sever`."""
    waiting: List[Tuple[Any, int]] = [(obj, 0)]
    for candidate, depth in waiting:
        try:
            found = _socket_of(candidate)
            if found is not None:
                return found
            if depth < _DEPTH:
                frame = generator_frame(candidate)
                if frame is not None:
                    inner = [frame.f_locals.get(name) for name in _LOCALS]
                else:
                    inner = [getattr(candidate, name, None) for name in _WRAPPERS]
                waiting += [(each, depth + 1) for each in inner if _may_hold(each)]
        except Exception:
            continue  # an attribute of a stranger may do anything
    return None


def generator_frame(obj: Any) -> Optional[FrameType]:
    """Return the frame of a generator that has not ended, ``None`` for anything else."""
    return obj.gi_frame if isinstance(obj, GeneratorType) else None


def _may_hold(obj: Any) -> bool:
    return obj is not None and not callable(obj) and not isinstance(obj, (str, bytes, int, float))


def _socket_of(obj: Any) -> Optional[Any]:
    if _is_socket(obj):
        return obj
    extensions = getattr(obj, "extensions", None)
    if isinstance(extensions, dict):
        return _socket_of_httpx(obj, extensions)
    for path in _PATHS:
        found: Any = obj
        for name in path:
            found = getattr(found, name, None)
        # TLS inside TLS, and pyOpenSSL, wrap the socket once more.
        found = found if _is_socket(found) else getattr(found, "socket", None)
        if _is_socket(found) and found.fileno() >= 0:
            return found
    return None


def _is_socket(obj: Any) -> bool:
    return isinstance(obj, _socket.socket) or (
        isinstance(getattr(obj, "_sock", None), _socket.socket) and hasattr(obj, "recv")
    )


def _socket_of_httpx(response: Any, extensions: Any) -> Optional[Any]:
    # The response keeps its way to the connection after the connection went back to the pool.
    if getattr(response, "is_closed", True):
        return None
    # The streams of an HTTP/2 connection share its socket.
    if extensions.get("http_version") == b"HTTP/2":
        return None
    found = extensions["network_stream"].get_extra_info("socket")
    return found if _is_socket(found) else None
