"""What went wrong with a connection, in words that hold no secret.

The text of a foreign exception often quotes the whole URL, and with it keys and prompts in its
query, so nothing is taken from there but the words of the operating system.
"""

from __future__ import annotations

import socket
import threading
import time
from http.client import RemoteDisconnected
from typing import Optional

import requests
from urllib3.exceptions import DecodeError, ProtocolError, ReadTimeoutError

from flask_llmstream.client.body import Body
from flask_llmstream.client.decoding import MEDIA_TYPES, READABLE
from flask_llmstream.exceptions import StreamRefused
from flask_llmstream.sansio.headers import essence, parse_retry_after
from flask_llmstream.upstream.errors import causes, name_of

__all__ = ["is_cut_head", "is_timeout", "media_type_of", "reason_of", "refused"]

#: As much of a refusal's body as is kept, in bytes, and how long it is waited for, in seconds.
_EXCERPT = 1024
_EXCERPT_TIMEOUT = 5.0


#: What foreign exceptions mean, for those that have no number of the system's.
_WORDS = (
    (requests.TooManyRedirects, "it redirects again and again"),
    (DecodeError, "the body is not compressed as its Content-Encoding says"),
    (RemoteDisconnected, "it closed the connection without an answer"),
    (ProtocolError, "the connection ended inside the body"),
)


def reason_of(exc: BaseException) -> str:
    """Return in a few words why the connection has failed."""
    chain = list(causes(exc))
    for each in chain:
        # Foreign subclasses put whole sentences there; the numbered ones are the system's own.
        if isinstance(each, OSError) and each.errno is not None and each.strerror:
            return each.strerror
    for kind, words in _WORDS:
        if any(isinstance(each, kind) for each in chain):
            return words
    return type(exc).__name__


def is_timeout(exc: BaseException) -> bool:
    """Whether *exc* says that no byte came in time."""
    # Not urllib3's TimeoutError: a connection that was refused is one of those, too.
    timeouts = (socket.timeout, requests.Timeout, ReadTimeoutError)
    # Nor the system's ETIMEDOUT, which newer Pythons raise as the class that socket.timeout is.
    return any(isinstance(each, timeouts) and not getattr(each, "errno", 0) for each in causes(exc))


def media_type_of(response: requests.Response) -> Optional[str]:
    """Return the media type of *response*, ``None`` where a client may not read events from it."""
    # "essence is text/event-stream": letter case and parameters do not matter.
    # https://html.spec.whatwg.org/multipage/server-sent-events.html#sse-processing-model
    found = essence(response.headers.get("Content-Type"))
    return found if response.status_code == 200 and found in READABLE else None


def is_cut_head(response: requests.Response) -> bool:
    """Whether the connection may have broken inside the head of *response*, which has no body.

    Python's http.client takes what there is of a head for the whole.
    """
    found = essence(response.headers.get("Content-Type"))
    return response.status_code == 200 and any(each.startswith(found) for each in READABLE)


def refused(body: Body) -> StreamRefused:
    """Return the error for an answer that is not an event stream; the answer is closed."""
    response = body.response
    status = response.status_code
    seen = f"{status} {response.reason or ''}".rstrip()
    if status == 200:
        found = response.headers.get("Content-Type")
        wanted = " or ".join(map(repr, MEDIA_TYPES.values()))
        seen = f"200 with Content-Type {found!r}, expected {wanted}"
    retry_after = parse_retry_after(response.headers.get("Retry-After"), time.time())
    if retry_after is not None:
        seen += f"; it asks to come back after {retry_after:.0f} s"
    return StreamRefused(
        f"{name_of(response.url)} answered {seen}",
        status=status,
        headers=response.headers,
        body=_excerpt(body),
        retry_after=retry_after,
    )


def _excerpt(body: Body) -> str:
    """Return the first KiB of *body*, or what has come of it in time."""
    found = b""
    # Whoever refuses with a body that never ends must not keep us: the timer cuts it off.
    timer = threading.Timer(_EXCERPT_TIMEOUT, body.close)
    timer.daemon = True
    timer.start()
    try:
        while len(found) < _EXCERPT:
            piece = body.read()
            if not piece:
                break
            found += piece
    except Exception:
        pass  # the refusal is what counts, not how its explanation ended
    finally:
        timer.cancel()
        body.close()
    encoding = body.response.encoding or "utf-8"
    try:
        return found[:_EXCERPT].decode(encoding, "replace")
    except LookupError:
        return found[:_EXCERPT].decode("utf-8", "replace")
