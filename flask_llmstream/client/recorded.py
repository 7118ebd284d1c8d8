"""Streams as files: what came, byte for byte, and when; and a session that plays it again.

A recording is text, one JSON object a line, each written as soon as it is known. ::

    {"llmstream_recording":1,"method":"POST","url":"http://localhost:8000/chat","at":"2026-01-31T12:00:00Z"}
    {"t":0.021,"open":200,"headers":{"Content-Type":"text/event-stream"}}
    {"t":0.35,"data":"data: {\\"text\\":\\"Hel\\"}\\n\\n"}
    {"t":0.41,"base64":"…"}                        a piece that is no UTF-8, or cut inside a character
    {"t":0.9,"lost":"Connection reset by peer"}    it broke, and was opened again: "open" comes next
    {"t":2.5,"end":null}                           the end; a text says what broke

``t`` is in seconds since the request was sent. The URL is without user, password and query, and of
the headers only those that a reader needs are kept; the answer itself is all there.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import http.client
import json
import time
from collections import deque
from typing import IO, Any, Dict, Iterator, Mapping, Optional, Tuple

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict

from flask_llmstream.client.faults import is_timeout, reason_of
from flask_llmstream.exceptions import LLMStreamError, StreamRefused
from flask_llmstream.sansio.jsontext import dump
from flask_llmstream.upstream.errors import name_of

__all__ = ["Recording", "RecordingError", "RecordingWriter"]

_MARK = "llmstream_recording"
_VERSION = 1
#: What a reader decides by.
_HEADERS = ("Content-Type", "Content-Location", "Retry-After")


class RecordingError(LLMStreamError):
    """A file is no recording, or not a whole one; the message begins with its name and line."""


class RecordingWriter:
    """Writes what a :class:`~flask_llmstream.client.StreamClient` receives to a file, as it comes.

    :param file: open for writing text, in UTF-8.
    :param method: of the request.
    :param url: of the request.
    """

    def __init__(self, file: IO[str], method: str, url: str) -> None:
        self._file = file
        self._begun = time.monotonic()
        self._ended = False
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write({_MARK: _VERSION, "method": method, "url": name_of(url), "at": at})

    def end(self, exc: Optional[BaseException] = None) -> None:
        """Write the last line.

        :param exc: what has ended the stream, where it is not complete.
        """
        if not self._ended:
            self._ended = True
            self._broke("end", exc)

    def answered(self, response: requests.Response) -> None:
        """Write that an answer has begun."""
        kept = {name: response.headers[name] for name in _HEADERS if name in response.headers}
        self._note({"open": response.status_code, "headers": kept})

    def received(self, piece: bytes) -> None:
        """Write a piece of its body."""
        try:
            self._note({"data": piece.decode("utf-8")})
        except UnicodeDecodeError:
            self._note({"base64": base64.b64encode(piece).decode("ascii")})

    def lost(self, exc: BaseException) -> None:
        """Write that the stream will be opened again, because of *exc*."""
        self._broke("lost", exc)

    def _broke(self, what: str, exc: Optional[BaseException]) -> None:
        cause = None if exc is None else exc.__cause__
        if isinstance(exc, StreamRefused):
            self._note({"data": exc.body})
        elif isinstance(exc, KeyboardInterrupt):
            cause = InterruptedError(errno.EINTR, "interrupted")
        reason = None
        if cause is not None:
            reason = "no byte in time" if is_timeout(cause) else reason_of(cause)
        self._note({what: reason})

    def _note(self, fields: Dict[str, Any]) -> None:
        self._write({"t": round(time.monotonic() - self._begun, 4), **fields})

    def _write(self, fields: Dict[str, Any]) -> None:
        # One write for each line, at once: whatever ends us leaves whole lines, the last excepted.
        self._file.write(dump(fields) + "\n")
        self._file.flush()


class Recording:
    """A recording that is played again: give its :attr:`session` and :attr:`url` to a client.

    :param file: open for reading, in binary mode.
    :param name: what it is called in errors.
    :param speed: 2.0 is twice as fast as it was; 0 does not wait at all.
    :raises RecordingError: it does not begin as a recording does.
    """

    def __init__(self, file: IO[bytes], name: str, speed: float = 1.0) -> None:
        self._lines: Iterator[Tuple[int, bytes]] = enumerate(iter(file.readline, b""), 1)
        self._name = name
        self._speed = speed
        self._begun: Optional[float] = None
        self._line = 0
        #: Whether the last line was read.
        self.over = False
        first = self._next()
        found = first.get(_MARK)
        if found is None:
            raise self._error('is not the first line of a recording: it has no "llmstream_recording"')
        if found != _VERSION:
            raise self._error(f"is of a recording of version {found!r}; this reads version {_VERSION}")
        #: Of the request that was recorded.
        self.method = str(first.get("method", "GET"))
        self.url = str(first.get("url", "http://recording/"))
        #: Answers each request with what was recorded, and sends none.
        self.session = requests.Session()
        self.session.trust_env = False
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, _Player(self))

    def connect(self) -> Tuple[int, Mapping[str, str]]:
        """Return status and headers of the next connection.

        :raises OSError: it could not be made.
        """
        fields = self._next()
        if "open" not in fields:
            self._raise_end(fields)
            raise OSError(errno.EIO, "the recording has no further connection")
        status, headers = fields["open"], fields.get("headers")
        if not isinstance(status, int) or not isinstance(headers, dict):
            raise self._error('has no number as "open" and no object as "headers"')
        return status, headers

    def pieces(self) -> Iterator[bytes]:
        """Yield what that connection has received, in its time."""
        while True:
            fields = self._next()
            piece = fields.get("data")
            if isinstance(piece, str):
                yield piece.encode("utf-8", "surrogatepass")
            elif isinstance(fields.get("base64"), str):
                try:
                    yield base64.b64decode(fields["base64"], validate=True)
                except ValueError:
                    raise self._error('has something else than Base64 as "base64"') from None
            else:
                self._raise_end(fields)
                return

    def _raise_end(self, fields: Dict[str, Any]) -> None:
        """Raise what has broken the connection, where *fields* say that something has."""
        if "lost" not in fields and "end" not in fields:
            raise self._error("is none that a recording has here")
        self.over = "end" in fields
        reason = fields.get("lost") or fields.get("end")
        if reason:
            raise OSError(errno.EIO, str(reason))

    def _next(self) -> Dict[str, Any]:
        """Return the next line, not before its time."""
        self._line, line = next(self._lines, (self._line, b""))
        if not line:
            raise self._error("is the last one, but says no end: the recording was cut there")
        try:
            fields = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            what = "is cut" if not line.endswith(b"\n") else "is not JSON"
            raise self._error(f"{what}, a recording has one JSON object a line") from None
        if not isinstance(fields, dict):
            raise self._error("is not a JSON object")
        moment = fields.get("t", 0)
        if not isinstance(moment, (int, float)) or not 0 <= moment < float("inf"):
            raise self._error('has no number of seconds as "t"')
        if self._speed and moment:
            now = time.monotonic()
            if self._begun is None:
                self._begun = now
            time.sleep(max(0.0, self._begun + moment / self._speed - now))
        return fields

    def _error(self, what: str) -> RecordingError:
        return RecordingError(f"{self._name}: line {self._line} {what}")


class _Player(BaseAdapter):
    """Takes the place of the network."""

    def __init__(self, recording: Recording) -> None:
        super().__init__()
        self._recording = recording

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
        """Return the next answer that was recorded."""
        status, headers = self._recording.connect()
        response = requests.Response()
        response.status_code = status
        response.reason = http.client.responses.get(status, "")
        response.headers = CaseInsensitiveDict((str(name), str(headers[name])) for name in headers)
        response.url = request.url or ""
        response.request = request
        response.raw = _Played(self._recording, status)
        return response

    def close(self) -> None:
        """Nothing is open."""


class _Played:
    """A body, as far as requests and our reader look at one."""

    #: So that a piece is read as one.
    chunked = True

    def __init__(self, recording: Recording, status: int) -> None:
        self._pieces = recording.pieces()
        self._status = status

    def stream(self, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        """Yield the pieces."""
        return self._pieces

    def close(self) -> None:
        """Pass over what is left of a refusal, of which nobody reads more than the first words."""
        if self._status != 200:
            with contextlib.suppress(OSError):
                deque(self._pieces, 0)

    def release_conn(self) -> None:
        """Nothing is open."""
