"""Read one stream of events, without delay, until it is really complete.

Decisions

1. The connection is opened by ``with``, or for the first event. So a refusal is raised where the
   stream is used, and a client that is never used costs nothing.
2. A request with a side effect is sent once. What has broken is followed where the server has
   named it (``Content-Location`` of a resumable stream) with a GET, whatever began it. Else only a
   GET is repeated, and only where the server gave ids, so that ``Last-Event-ID`` continues the
   answer: without them it would begin again. A refusal that says when to ask again (429 and 503 with
   ``Retry-After``) came before anything was begun: what was refused so is repeated, POST or not.
3. An end without a terminal event is an error. The end of the connection says nothing: a
   close-delimited body that was cut looks like a complete one.
4. :meth:`StreamClient.close` may be called from anywhere and returns at once. Whoever was reading
   then sees the iteration end, without an exception: the answer was given up on purpose.
"""

from __future__ import annotations

import random as random_module
import re
import threading
from collections import deque
from types import TracebackType
from typing import Any, Callable, Deque, Iterator, Mapping, Optional, Sequence, Tuple, Type
from urllib.parse import urljoin, urlsplit

import requests
from requests.structures import CaseInsensitiveDict

from flask_llmstream.client.backoff import Backoff
from flask_llmstream.client.body import Body
from flask_llmstream.client.decoding import decoder_of
from flask_llmstream.client.faults import is_cut_head, is_timeout, media_type_of, reason_of, refused
from flask_llmstream.client.native import channel_of, failure_of, fields_of, usage_of
from flask_llmstream.client.opening import Opening
from flask_llmstream.client.progress import Progress
from flask_llmstream.client.reading_events import snapshots_in, texts_in
from flask_llmstream.exceptions import StreamError, StreamInterrupted, StreamRefused
from flask_llmstream.reading import READ_ERRORS
from flask_llmstream.sansio.events import Event, Usage
from flask_llmstream.sansio.jsontext import dump_bytes
from flask_llmstream.upstream.errors import name_of

__all__ = ["StreamClient"]

#: Refusals after which the next attempt may succeed.
_TRANSIENT = frozenset({429, 500, 502, 503, 504})
#: Those of them that, with a Retry-After, say that nothing was begun.
_POSTPONED = frozenset({429, 503})
#: Redirects behind which a POST has become a GET: somebody has acted on it already.
_SEE_OTHER = frozenset({301, 302, 303})
#: Seconds that a server has after its last event to end the body.
_FINISH_TIMEOUT = 0.25
_STREAM_ID = re.compile(r"/streams/([^/?#]+)")


class StreamClient:
    """Iterates over the :class:`~flask_llmstream.Event` objects of one stream: SSE, NDJSON or frames.

    ::

        with StreamClient("http://localhost:8000/chat", json={"messages": [...]}) as stream:
            for piece in stream.text():
                print(piece, end="", flush=True)
        print(stream.finish_reason, stream.usage)

    Leaving the block closes the connection at once, and with it the server stops the model.

    :param url: where the stream is.
    :param method: of HTTP. Defaults to GET, or POST where *json* is given.
    :param json: any value, sent as the JSON body. Defaults to no body.
    :param headers: sent in addition to ours; the same name replaces ours. Never changed.
    :param session: a :class:`requests.Session` with your authentication, proxies or pool. Defaults
        to one of our own, closed with the stream.
    :param last_event_id: id of the last event that was seen in an earlier run; the server goes on
        after it. Defaults to none: from the beginning.
    :param retries: how often in a row a broken stream is opened again, without any progress between,
        before the failure is raised. Happens only where that cannot begin a second answer: the
        stream is resumable, or it is a GET with an id to go on from, or the server has refused with
        429 or 503 and said with ``Retry-After`` when to ask again. Waits as long as the server says
        (``retry``, ``Retry-After``), longer each time. Defaults to 0.
    :param max_retry_after: seconds that a server may ask to wait with ``Retry-After``; one that asks
        for longer is not waited for, its refusal is raised at once. ``None`` waits as long as it
        takes. Defaults to 60.
    :param idle_timeout: seconds without a single byte after which the stream counts as broken;
        heartbeats are bytes, so three of their intervals are right. ``None`` waits for ever.
        Defaults to 45.
    :param connect_timeout: seconds to wait for the connection. Defaults to 10.
    :param terminal: names of the events that end a stream, or ``None`` for a server that has none:
        then the end of the connection is the end. Defaults to those of the native format.
    :param max_buffer: characters that one event may have. Defaults to 1,048,576.
    :param on_heartbeat: called with the text of each comment; these are never events.
    :param on_bytes: called with the bytes of the body as they arrive, before they are decoded.
    :param on_response: called with each answer of the server when its head is there: the first, those
        of reconnects, and refusals.
    :param on_reconnect: called with the failure and the seconds to wait, before each wait.
    :param on_progress: called with :attr:`progress` after each event.
    :param expected_tokens: how long the answer will be, as far as you know; only for :attr:`progress`.
    :param random: returns a number from 0 up to 1; spreads the reconnects of many clients.
    :param sleep: waits that many seconds before a reconnect. Defaults to a wait that
        :meth:`close` ends.
    :raises ValueError: if *json* is no JSON, or *retries* no number of 0 or more.
    :raises TypeError: if *json* holds what JSON has no form for.
    """

    def __init__(
        self,
        url: str,
        *,
        method: Optional[str] = None,
        json: Any = None,
        headers: Optional[Mapping[str, str]] = None,
        session: Optional[requests.Session] = None,
        last_event_id: Optional[str] = None,
        retries: int = 0,
        max_retry_after: Optional[float] = 60.0,
        idle_timeout: Optional[float] = 45.0,
        connect_timeout: Optional[float] = 10.0,
        terminal: Optional[Sequence[str]] = ("done", "failed"),
        max_buffer: int = 1 << 20,
        on_heartbeat: Optional[Callable[[str], Any]] = None,
        on_bytes: Optional[Callable[[bytes], Any]] = None,
        on_response: Optional[Callable[[requests.Response], Any]] = None,
        on_reconnect: Optional[Callable[[StreamError, float], Any]] = None,
        on_progress: Optional[Callable[[Progress], Any]] = None,
        expected_tokens: Optional[int] = None,
        random: Callable[[], float] = random_module.random,
        sleep: Optional[Callable[[float], Any]] = None,
    ) -> None:
        self.url = url
        self.method = (method or ("GET" if json is None else "POST")).upper()
        #: The answer of the server, ``None`` before the connection is open.
        self.response: Optional[requests.Response] = None
        #: Id of the last event that was handed out; give it to a later client to go on after it.
        self.last_event_id: str = last_event_id or ""
        #: Why the answer ended, from the ``done`` event; ``None`` before it.
        self.finish_reason: Optional[str] = None
        #: What the answer has cost, ``None`` where the server did not say.
        self.usage: Optional[Usage] = None
        #: How far it has come: events, tokens, bytes, seconds since the first byte.
        self.progress = Progress(expected_tokens)

        self._headers: CaseInsensitiveDict[Any] = CaseInsensitiveDict(
            {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._content: Optional[bytes] = None
        if json is not None:
            self._content = dump_bytes(json)
            self._headers["Content-Type"] = "application/json"
        self._headers.update(headers or {})
        self._session = requests.Session() if session is None else session
        self._owns_session = session is None
        self._timeout = (connect_timeout, idle_timeout)
        self._terminal = None if terminal is None else frozenset(terminal)
        self._on_bytes = on_bytes
        self._on_response = on_response
        self._on_reconnect = on_reconnect
        self._on_progress = on_progress
        self._backoff = Backoff(retries, random)
        self._max_retry_after = float("inf") if max_retry_after is None else max_retry_after
        self._closing = threading.Event()
        self._sleep: Callable[[float], Any] = sleep or self._closing.wait
        self._opening = Opening()
        self._body: Optional[Body] = None
        #: Where the stream can be followed, and the server's name for it.
        self._following: Optional[str] = None
        self._stream_id: Optional[str] = None
        self._limits = (max_buffer, on_heartbeat)
        self._decoder = decoder_of("text/event-stream", None, *self._limits)
        self._decoder.last_event_id = self.last_event_id
        self._ready: Deque[Event] = deque()
        #: Whether there is nothing more to come: a terminal event, the end, or a failure.
        self._over = False
        self._flushed = False

    def __enter__(self) -> StreamClient:
        self.open()
        return self

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if self._over and exc is None:
            self._finish()
        self.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """Return the next event; the terminal one is the last.

        :raises StreamFailed: the server said that the answer failed.
        :raises StreamInterrupted: the connection could not be opened, has ended without a terminal
            event, or was silent for ``idle_timeout``.
        :raises StreamRefused: the answer is not an event stream.
        :raises BufferLimitExceeded: an event has more than ``max_buffer`` characters.
        :raises DecodeError: a line of NDJSON is not JSON, or a frame not what it says.
        """
        try:
            while not (self._ready or self._over or self.closed):
                self._step()
            if not self._ready or self.closed:
                self._finish()
                raise StopIteration
            event = self._take(self._ready.popleft())
            if self._on_progress is not None:
                self._on_progress(self.progress)
            return event
        except StopIteration:
            raise
        except BaseException:
            self.close()
            raise

    def text(self, channel: Optional[str] = None) -> Iterator[str]:
        """Iterate over the pieces of the answer's text, until the answer is complete.

        All else is left out; :attr:`usage` and :attr:`finish_reason` are there at the end. Raises
        what iterating over the events raises.

        :param channel: of a stream with several. Defaults to all text, as it comes.
        """
        for name, piece in self.channel_texts():
            if channel is None or name == channel:
                yield piece

    def channel_texts(self) -> Iterator[Tuple[Optional[str], str]]:
        """Iterate over the pieces of text, each behind the name of its channel; else as :meth:`text`.

        A channel that has failed ends without a word; its ``failed`` is among the events.
        """
        return texts_in(self, self.progress)

    def snapshots(self, channel: Optional[str] = None) -> Iterator[Any]:
        """Iterate over the JSON value that the stream builds, after each change of it.

        Each is the value so far: objects without the names that are still to come, texts without
        their ends. It is one object that goes on changing: ``copy.deepcopy`` what you keep.

        Raises what iterating over the events raises, and :class:`StreamInterrupted` where a change
        is missing.

        :param channel: of a stream with several. Defaults to the value that belongs to none.
        """
        for name, value in self.channel_snapshots():
            if name == channel:
                yield value

    def channel_snapshots(self) -> Iterator[Tuple[Optional[str], Any]]:
        """Iterate over the JSON values, each behind the name of its channel; else as :meth:`snapshots`."""
        return snapshots_in(self)

    def open(self) -> None:
        """Send the request, unless that was done, and return when the head of the answer is there.

        ``with`` and the first event do this by themselves. Raises what iterating raises.
        """
        try:
            while not (self._body or self._over or self.closed):
                self._step()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the stream now, from any thread or greenlet; returns at once.

        A reader that waits for the next event wakes up, its iteration ends. Only a connection that
        is not established yet is waited for, by the reader.
        """
        self._closing.set()
        self._over = True
        self.progress.ended()
        body = self._body
        if body is not None:
            body.close()
        else:
            self._opening.wake()
        if self._owns_session:
            self._session.close()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called, by you or because the stream was over."""
        return self._closing.is_set()

    @property
    def retry(self) -> Optional[int]:
        """Milliseconds that the server asked to wait before a reconnect, ``None`` if it did not."""
        return self._decoder.retry

    @property
    def stream_id(self) -> Optional[str]:
        """The server's name for this stream, ``None`` where it has none that others could use."""
        return self._stream_id

    def _step(self) -> None:
        """Get one step further: connect, or wait for the next bytes."""
        # All that was decoded has been handed out, so this is how far the caller has come, blocks
        # that have an id but no data included.
        self.last_event_id = self._decoder.last_event_id
        try:
            if self._body is None:
                self._connect()
            else:
                self._receive(self._body)
        except (StreamInterrupted, StreamRefused) as exc:
            if self.closed:
                return  # by somebody who did not wait for the words of a refusal
            delay = self._delay_after(exc)
            if delay is None:
                raise
            self._drop_connection()
            if self._on_reconnect is not None:
                self._on_reconnect(exc, delay)
            self._sleep(delay)

    def _connect(self) -> None:
        name = name_of(self.url)
        try:
            response = self._opening.run(self._send)
            if response is None:
                return
        except READ_ERRORS + (ValueError,) as exc:
            if self.closed:
                return
            if isinstance(exc, ValueError):
                raise  # the URL or a header is wrong: the caller's mistake, no failure of the stream
            raise StreamInterrupted(f"no answer from {name}: {self._describe(exc)}") from exc
        body = Body(response)
        self.response, self._body = response, body
        if self._on_response is not None:
            self._on_response(response)
        if self.closed:  # by somebody who could not see the body yet
            body.close()
            return
        if response.status_code == 204:
            self._over = True  # "there is nothing more": no failure, and not to be asked again
            return
        media_type = media_type_of(response)
        if media_type is None:
            refusal = refused(body)
            if is_cut_head(response) and not refusal.body:
                raise StreamInterrupted(f"{name} broke off inside the head of its answer")
            raise refusal
        self._decoder = decoder_of(media_type, self._decoder, *self._limits)
        self._note_name(response)

    def _note_name(self, response: requests.Response) -> None:
        """Note where the stream can be followed, if the server says so."""
        location = response.headers.get("Content-Location", "")
        found = _STREAM_ID.search(location)
        if found is not None:
            self._stream_id = found.group(1)
            url = urljoin(response.url, location)
            # It will get the same credentials, so it must be who they are meant for.
            if urlsplit(url)[:2] == urlsplit(self.url)[:2]:
                self._following = url

    def _send(self) -> Optional[requests.Response]:
        # Asked here and not before: from here on close() finds the connection.
        if self.closed:
            return None
        headers = CaseInsensitiveDict(self._headers)
        # As bytes: requests would encode text as Latin-1, and ids may be any Unicode.
        last_event_id = self.last_event_id.encode("utf-8").strip()
        if last_event_id:
            headers["Last-Event-ID"] = last_event_id
        method, url, content = self.method, self.url, self._content
        if self._following is not None:
            method, url, content = "GET", self._following, None
            headers.pop("Content-Type", None)
        return self._session.request(
            method,
            url,
            data=content,
            headers=headers,
            timeout=self._timeout,
            stream=True,
        )

    def _receive(self, body: Body) -> None:
        name = name_of(self.url)
        try:
            piece = body.read()
        except READ_ERRORS as exc:
            raise StreamInterrupted(
                f"{name} broke off after {self.progress.events} events: {self._describe(exc)}"
            ) from exc
        if piece:
            self.progress.arrived(len(piece))
            if self._on_bytes is not None:
                self._on_bytes(piece)
            self._ready.extend(self._decoder.feed(piece))
            if any(event.event != "stream" for event in self._ready):
                self._backoff.reset()  # what only says where to come back to is no progress
        elif not self.closed and not self._end_of_body():
            if self._terminal is not None:
                raise StreamInterrupted(
                    f"{name} ended after {self.progress.events} events without one of"
                    f" {', '.join(sorted(self._terminal))}: the answer is not complete"
                )
            self._over = True

    def _end_of_body(self) -> bool:
        """Decode what the end of the body completes; return whether that is something."""
        if not self._flushed:
            self._flushed = True
            self._ready.extend(self._decoder.flush())
        return bool(self._ready)

    def _take(self, event: Event) -> Event:
        """Note what *event* says about the stream, and return it."""
        progress = self.progress
        progress.events += 1
        if event.event is None:
            progress.pieces += 1
        if event.id is not None:
            self.last_event_id = event.id
        if event.event == "stream" and channel_of(event) is None and not fields_of(event).get("url", True):
            self._following = None  # the server has lost what it would be resumed from
        if event.event is None or self._terminal is None or channel_of(event) is not None:
            return event  # what a channel says of itself does not hold for the stream
        if event.event == "usage":
            self._note_usage(fields_of(event))
        if event.event in self._terminal:
            self._over = True
            self._ready.clear()
            if event.event == "failed":
                self._finish()
                raise failure_of(event)
            fields = fields_of(event)
            reason = fields.get("reason")
            self.finish_reason = reason if isinstance(reason, str) else None
            self._note_usage(fields.get("usage"))
        return event

    def _note_usage(self, fields: Any) -> None:
        self.usage = usage_of(fields) or self.usage
        if self.usage is not None:
            self.progress.counted = self.usage.output_tokens

    def _delay_after(self, exc: StreamError) -> Optional[float]:
        """Return the seconds to wait before going on after *exc*, ``None`` to give up."""
        goes_on = self._following is not None or self.method == "GET" and self.last_event_id
        retry_after = None
        if isinstance(exc, StreamRefused):
            if exc.status not in _TRANSIENT:
                return None
            retry_after = exc.retry_after
            if retry_after is not None:
                if retry_after > self._max_retry_after:
                    return None
                goes_on = goes_on or exc.status in _POSTPONED and not self._was_sent_on()
        if not goes_on:
            return None
        return self._backoff.next(None if self.retry is None else self.retry / 1000, retry_after)

    def _was_sent_on(self) -> bool:
        """Whether a server has acted on the request and the refusal is another's."""
        history = [] if self.response is None else self.response.history
        return any(each.status_code in _SEE_OTHER for each in history)

    def _describe(self, exc: Exception) -> str:
        connect_timeout, idle_timeout = self._timeout
        if isinstance(exc, requests.ConnectTimeout):
            return f"no connection in {connect_timeout} s"
        if is_timeout(exc):
            return (
                f"not a byte in {idle_timeout} s, no heartbeat either; raise idle_timeout if this"
                " server may be silent for longer"
            )
        return reason_of(exc)

    def _drop_connection(self) -> None:
        body, self._body = self._body, None
        if body is not None:
            body.close()
        self._decoder.reset()
        self._flushed = False

    def _finish(self) -> None:
        """Leave a stream that is over, without cutting off a server that is still ending it."""
        if self._body is not None and not self.closed:
            self._body.finish(_FINISH_TIMEOUT)
        self.close()
