"""For scripts on sseclient-py: the same class, without what it does differently.

sseclient-py misses events behind a byte order mark or mixed line ends, hands out the half event
at the end of a broken stream, fails on invalid UTF-8, forgets ids, and over a body that is not
chunked waits for 128 bytes. All of that depends on the bytes that it is given. So it is given
other ones: every event is decoded as the specification says and written again in the one way
that it reads right, as a piece of its own, with the id and the retry that hold for it.
"""

from __future__ import annotations

from typing import Any, Iterator, Optional

import requests
from urllib3.exceptions import DecodeError

from flask_llmstream.client.body import Body
from flask_llmstream.client.faults import is_timeout
from flask_llmstream.reading import READ_ERRORS
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.sse import SSEDecoder

__all__ = ["sse_client"]


def sse_client(response: requests.Response, *, max_buffer: int = 1 << 20) -> Any:
    """Return a :class:`sseclient.SSEClient` that reads *response* without delay and to the letter.

    ::

        response = requests.get(url, stream=True, headers={"Accept": "text/event-stream"})
        for event in sse_client(response).events():
            print(event.event, event.data)

    Its ``close()`` returns at once from any thread and ends the iteration. Each event has the last
    ``id`` that the stream has set (``None``: none yet); the first one handed out once a valid
    ``retry`` line was read has that as its ``retry``. Status and type of *response* are yours to
    check, as before; a connection that breaks raises what ``requests`` raises.

    :param response: of a request made with ``stream=True``.
    :param max_buffer: characters that one event may have before
        :class:`~flask_llmstream.exceptions.BufferLimitExceeded` is raised. Defaults to 1,048,576.
    """
    import sseclient

    source: Any = _CanonicalEvents(response, max_buffer)
    return sseclient.SSEClient(source)


class _CanonicalEvents:
    """The event source of an ``SSEClient``: one piece of bytes per event."""

    def __init__(self, response: requests.Response, max_buffer: int) -> None:
        self._body = Body(response)
        self._decoder = SSEDecoder(max_buffer)
        self._retry: Optional[int] = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            piece = b"-"
            while piece:
                piece = self._body.read()
                for event in self._decoder.feed(piece):
                    if self._body.closed:
                        return
                    yield self._encode(event)
            self._decoder.flush()
        except requests.RequestException:
            raise
        except READ_ERRORS as exc:
            raise _as_requests_says(exc) from exc
        finally:
            # Whoever drops the iterator is done with the answer, as with that of requests.
            self._body.close()

    def close(self) -> None:
        """End the response now, from any thread."""
        self._body.close()

    def _encode(self, event: Event) -> bytes:
        # Not the encoder for servers: that refuses what no server should send, a client takes it.
        lines = []
        if event.event is not None:
            lines.append(f"event: {event.event}")
        if event.id is not None:
            lines.append(f"id: {event.id}")
        if self._decoder.retry != self._retry:
            self._retry = self._decoder.retry
            lines.append(f"retry: {self._retry}")
        lines += [f"data: {line}" for line in event.data.split("\n")]
        return ("\n".join(lines) + "\n\n").encode("utf-8")


def _as_requests_says(exc: Exception) -> requests.RequestException:
    """Return what ``iter_content`` would have raised, so that ``except`` clauses keep working."""
    if isinstance(exc, DecodeError):
        return requests.exceptions.ContentDecodingError(exc)
    if is_timeout(exc):
        return requests.exceptions.ConnectionError(exc)
    return requests.exceptions.ChunkedEncodingError(exc)
