"""How a life asks and reads: bare sockets on gevent, which can stall, leave and break off at any byte."""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, Iterator, List, Optional, Tuple
from urllib.parse import urlencode

from gevent import socket

from benchmarks.soak.words import script, text
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.testing import StreamReader, read_stream, send_request

__all__ = ["Answer", "Cut", "Missed", "Unexpected", "compare", "target"]

#: Seconds of silence after which an answer has hung; every stream has heartbeats far more often.
PATIENCE = 60.0


class Unexpected(Exception):
    """A life did not end as it was planned."""


class Missed(Unexpected):
    """A stream is gone, or was ended for want of readers."""


class Cut(Exception):
    """A life was cut short, as a worker may do that goes. Whether one went is for others to judge."""


def target(route: str, life: str, models: List[str], **options: Any) -> str:
    """Return the path that asks for a stream of the app."""
    query: List[Tuple[str, str]] = [("life", life)] + [("model", model) for model in models]
    if options:
        query.append(("options", json.dumps(options)))
    return f"/{route}?{urlencode(query)}"


def compare(found: str, key: str, count: int, whole: bool = True) -> None:
    """Raise :class:`Unexpected` unless *found* is the text, or, if it is not *whole*, begins it."""
    wanted = text(key, count)
    if found == wanted or not whole and wanted.startswith(found):
        return
    at = next((n for n, pair in enumerate(zip(found, wanted)) if pair[0] != pair[1]), None)
    at = min(len(found), len(wanted)) if at is None else at
    raise Unexpected(
        f"text differs at {at}: {len(found)} characters, not {len(wanted)};"
        f" {found[at:at + 30]!r}, not {wanted[at:at + 30]!r}"
    )


class Answer:
    """One connection with one request, and what has come of it.

    :param address: of the server.
    :param path: the request target.
    :param sock: a connection that is open already; *path* is asked on it.
    :param reads_little: have small buffers, so that the server is soon held up.

    Other parameters as for :func:`~flask_llmstream.testing.send_request`.
    """

    def __init__(
        self, address: Tuple[str, int], path: str, *, sock: Any = None, reads_little: bool = False,
        **request: Any
    ) -> None:
        self.text = ""
        #: Of each channel.
        self.texts: Dict[str, str] = {}
        #: The event that has ended the stream: its name and its data.
        self.end: Optional[Tuple[str, Any]] = None
        self.last_id = ""
        self.reader: Optional[StreamReader] = None
        self._decoder = SSEDecoder()
        self._events: Optional[Iterator[Event]] = None
        self.sock = sock or socket.socket()
        try:
            if sock is None:
                if reads_little:
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                self.sock.settimeout(PATIENCE)
                self.sock.connect(address)
            headers = {"Accept": "text/event-stream", **(request.pop("headers", None) or {})}
            send_request(self.sock, path, headers=headers, **request)
        except OSError as error:
            self.sock.close()
            raise Cut(f"could not ask: {error}") from error

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.sock.close()

    def begin(self, status: int = 200) -> StreamReader:
        """Wait for the head; it must have this status.

        :raises Cut: the server says that it goes.
        """
        try:
            self.reader = read_stream(self.sock, PATIENCE)
        except socket.timeout as error:
            raise Unexpected(f"hangs: no head in {PATIENCE:g} s") from error
        except OSError as error:
            raise Cut(f"no head: {error}") from error
        if self.reader.status != status:
            body = self.reader.read()
            gone = Missed if self.reader.status == 410 else Unexpected
            kind = Cut if b'"shutdown"' in body else gone
            raise kind(f"status {self.reader.status}, not {status}: {body[:200]!r}")
        return self.reader

    @property
    def url(self) -> str:
        """Where the stream can be followed and stopped."""
        assert self.reader is not None
        if "content-location" not in self.reader.headers:
            raise Missed("cannot be resumed: the event log could not be written when it began")
        return self.reader.headers["content-location"]

    def events(self) -> Iterator[Event]:
        """Iterate over the events that come."""
        assert self.reader is not None
        try:
            for _, data in self.reader:
                yield from self._decoder.feed(data)
        except socket.timeout as error:
            raise Unexpected(
                f"hangs: nothing in {PATIENCE:g} s, after {len(self.text)} characters"
            ) from error

    def read(self, pieces: int = -1) -> Answer:
        """Read so many pieces of text, or all; stop where the stream or the connection ends."""
        if self.reader is None:
            self.begin()
        if self._events is None:
            self._events = self.events()
        for event in self._events if pieces else ():
            self.last_id = event.id or self.last_id
            if event.event in ("done", "failed"):
                if "channel" not in json.loads(event.data):
                    if self.end is not None:
                        raise Unexpected(f"a second end: {event.event} {event.data}, after {self.end}")
                    self.end = (event.event, json.loads(event.data))
            elif event.event is None:
                said = json.loads(event.data)
                if "channel" in said:
                    self.texts[said["channel"]] = self.texts.get(said["channel"], "") + said["text"]
                self.text += said["text"]
                pieces -= 1
                if not pieces:
                    break
        return self

    def spoken(self) -> Tuple[str, bool]:
        """Read what comes in OpenAI's own words; return the text and whether it has ended well."""
        said, whole = "", False
        self.begin()
        for event in self.events():
            if event.event in ("failed", "error"):
                if '"shutdown"' in event.data:
                    raise Cut(event.data)
                break
            if whole:
                raise Unexpected(f"more behind the end: {event}")
            if event.data == "[DONE]":
                whole = True
            else:
                said += json.loads(event.data)["choices"][0]["delta"].get("content", "")
        return said, whole

    def leave(self, how: str) -> None:
        """Close the connection: with a ``fin`` or a ``rst``."""
        if how == "rst":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def ended(self, name: str = "done", codes: Tuple[str, ...] = (), stopped: bool = False) -> Any:
        """Return the data of the event that has ended the stream, which must be *name*.

        :param codes: what a failure may be called.
        :param stopped: whether somebody has asked for its end.
        :raises Cut: it says that the worker goes, or has not come at all.
        """
        if self.end is None:
            raise Cut(f"ended without an end, after {len(self.text)} characters")
        found, data = self.end
        if data.get("code") in ("shutdown", "interrupted"):
            raise Cut(f"failed: {data['code']}")
        if found != name or codes and data.get("code") not in codes:
            raise Unexpected(f"ended with {found} {data}, not {name} {' or '.join(codes)}")
        if data.get("reason") == "cancelled" and not stopped:
            raise Missed(f"was cancelled after {len(self.text)} characters")
        return data


def make_script(
    key: str, rng: Any, pace: float, longest: float = 24.0, **more: Any
) -> Tuple[str, int]:
    """Return a random script and how many pieces it has.

    :param longest: seconds that it takes at most, at a pace of 1.
    """
    count = rng.randint(4, 30)
    seconds = rng.uniform(2.0, longest) * pace
    # Some come in one go, which is coalesced.
    pause = 0.0 if rng.random() < 0.1 else seconds / count
    if rng.random() < 0.3:
        more["close"] = 1
    if rng.random() < 0.2:
        more["hold"] = round(rng.uniform(0.0, 1.5) * pace, 3)
    return script(key, count, pause, **more), count
