"""Reads one answer off a bare socket, and notes when each byte of it came.

Decisions
    1. No HTTP library: they buffer, follow, retry and pool, and none says when a read returned.
    2. gzip is asked for, as a browser does, or a hop that compresses would not be seen. Nothing else that
       we cannot undo is.
    3. Nothing is followed. Where an answer leads elsewhere it says so, and the caller may give that URL.
"""

from __future__ import annotations

import json
import re
import socket
import time
import zlib
from typing import Any, Dict, Iterator, Optional, Tuple
from urllib.parse import urljoin, urlsplit

from flask_llmstream.doctor.connecting import Request, hidden, open_socket
from flask_llmstream.doctor.observations import Arrival, Hop, Observation
from flask_llmstream.doctor.refusals import is_stream, step_after, step_for, step_without_events
from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError, WireError
from flask_llmstream.sansio.chunked import ChunkedDecoder
from flask_llmstream.sansio.sse import SSEDecoder

__all__ = ["answer_of", "observe"]

_RECV = 65536
#: Bytes of the head, and of the body, that are read at most.
_MAX_HEAD, _MAX_BODY = 65536, 16 << 20
#: A comment that is longer is padding.
_MAX_HEARTBEAT = 64
#: Characters that are repeated of an answer that is no stream.
_EXCERPT = 200
#: Seconds that no stream takes.
_FAR = 1e7


class _Refused(OSError):
    """There is nothing to see; the text says why."""

    def __init__(self, why: str, step: Optional[str] = None) -> None:
        super().__init__(why)
        #: What to do about that, where it is known.
        self.step = step


def observe(hop: Hop, request: Request = Request()) -> Observation:
    """Read the answer of *hop* and return what was seen; never raises for what a server does."""
    seen = Observation(hop)
    try:
        sock = open_socket(hop.url, request, seen)
        try:
            _Reading(sock, request, seen).run()
        finally:
            sock.close()
    except _Refused as exc:
        seen.error = str(exc)
        seen.step = step_after(exc) if exc.step is None else exc.step
    except socket.timeout as exc:
        waited = request.timeout if seen.connect_time else request.connect_timeout
        seen.error, seen.step = f"gives no answer within {waited:g} s", step_after(exc)
    except (OSError, ValueError) as exc:
        seen.error, seen.step = f"cannot be read: {exc}", step_after(exc)
    seen.error = seen.error and hidden(seen.error, hop.url)
    return seen


def answer_of(url: str, request: Request, seen: Optional[Observation] = None) -> Tuple[int, bytes]:
    """Return the status and body of a short answer.

    :param seen: gets what is seen of the connection.
    :raises OSError: there is none.
    """
    seen = Observation(Hop("", url)) if seen is None else seen
    sock = open_socket(url, request, seen)
    try:
        reading = _Reading(sock, request, seen)
        return seen.status, reading.read_all()
    finally:
        sock.close()


class _Reading:
    """Reads one answer into an observation."""

    def __init__(self, sock: Any, request: Request, seen: Observation) -> None:
        self._sock = sock
        self._seen = seen
        self._began = time.monotonic()
        self._deadline = self._began + request.limit
        self._timeout = request.timeout
        self._body = 0
        self._rest = self._read_head()
        length = re.fullmatch(r"[0-9]{1,18}", seen.header("content-length") or "")
        self._left = int(length.group()) if length else None
        self._chunked: Optional[ChunkedDecoder] = None
        if (seen.header("transfer-encoding") or "").lower().endswith("chunked"):
            self._chunked = ChunkedDecoder()
        self._inflate = _inflater(seen)
        self._events = SSEDecoder(_MAX_BODY, self._on_comment)
        kind = (seen.header("content-type") or "").partition(";")[0].strip().lower()
        self._is_sse = kind == "text/event-stream"
        self._line = b""

    def run(self) -> None:
        """Read to the end, or as far as is allowed.

        :raises _Refused: the answer is no stream.
        """
        seen = self._seen
        location, step = seen.header("location"), step_for(seen.status, urlsplit(seen.hop.url).path)
        if 300 <= seen.status < 400 and location:
            to = urljoin(seen.hop.url, location) if location.startswith("/") else location
            raise _Refused(f"answers {seen.status} and leads to {to[:200]}", step)
        if seen.status != 200:
            said = self.read_all(_EXCERPT)[:_EXCERPT].decode("utf-8", "replace").strip()
            excerpt = f": {said}" if said and not said.startswith("<") else ""
            raise _Refused(f"answers {seen.status}{excerpt}", step)
        kind = (seen.header("content-type") or "none").partition(";")[0].strip().lower()
        if not is_stream(kind):
            raise _Refused(f"answers with {kind}, which is no stream", step)
        try:
            for at, data in self._pieces():
                self._take(at, data)
        except BufferLimitExceeded:
            seen.end = "unreadable"
            seen.error = f"sends an event of more than {_MAX_BODY >> 20} MB"
            seen.step = "give the URL of a stream of tokens"
        except (WireError, zlib.error) as exc:
            seen.end = "unreadable"
            seen.error = f"is not what its headers say: {exc}"
            seen.step = "look for who writes those headers, or changes the body, on the way"
        seen.end_at = time.monotonic() - self._began
        if not (seen.events or seen.comments or seen.error or seen.unread_encoding):
            silent = seen.end == "silent"
            came = f"nothing for {self._timeout:g} s" if silent else f"{self._body} bytes of {kind}"
            raise _Refused(f"sends no event, but {came}", step_without_events(seen.end))

    def read_all(self, enough: int = _MAX_BODY) -> bytes:
        """Return the body, as far as it is what its headers say; what is compressed as it is.

        :param enough: bytes after which the rest is left.
        """
        body = b""
        try:
            for _, data in self._pieces():
                body += data
                if len(body) >= enough:
                    break
        except WireError:
            self._seen.end = "unreadable"
        return body

    def _receive(self) -> bytes:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise _Enough
        self._sock.settimeout(min(self._timeout, left))
        try:
            data: bytes = self._sock.recv(_RECV)
        except socket.timeout:
            if time.monotonic() >= self._deadline:
                raise _Enough from None
            raise
        return data

    def _read_head(self) -> bytes:
        data = b""
        while True:
            head, found, rest = data.partition(b"\r\n\r\n")
            if found:
                lines = head.decode("latin-1").split("\r\n")
                first = [*lines[0].split(" ", 2), ""]
                if not re.fullmatch(r"HTTP/1\.[0-9]", first[0]) or not re.fullmatch("[0-9]{3}", first[1]):
                    raise _Refused(f"does not speak HTTP/1.1, but begins with {lines[0][:40]!r}")
                if int(first[1]) >= 200 or first[1] == "101":
                    break
                data = rest  # an interim answer
                continue
            if data and not data.startswith(b"HTTP/"[: len(data)]):
                raise _Refused(f"does not speak HTTP/1.1, but begins with {data[:40].decode('latin-1')!r}")
            try:
                more = self._receive()
            except _Enough:
                raise _Refused("has not sent all headers when the time for reading is over") from None
            if not more or len(data) > _MAX_HEAD:
                raise _Refused("closes the connection before the headers are complete" if not more
                               else "sends headers without an end")
            data += more
        seen = self._seen
        seen.head_at = time.monotonic() - self._began
        seen.version, seen.status = first[0][5:], int(first[1])
        pairs = [line.partition(":") for line in lines[1:]]
        seen.headers = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
        return rest

    def _pieces(self) -> Iterator[Tuple[float, bytes]]:
        """Yield (when, bytes of the body) for each read."""
        seen, data = self._seen, self._rest
        while True:
            at = time.monotonic() - self._began
            if self._chunked is not None:
                data = self._chunked.feed(data)
            if self._left is not None:
                data = data[: self._left]
                self._left -= len(data)
            if data:
                self._body += len(data)
                seen.reads.append((at, len(data)))
                yield at, data
            if self._chunked is not None and self._chunked.broken:
                raise WireError(self._chunked.broken)
            if self._left == 0 or (self._chunked is not None and self._chunked.done):
                seen.end = "complete"
                return
            if self._body > _MAX_BODY:
                seen.end = "enough"
                return
            try:
                data = self._receive()
            except _Enough:
                seen.end = "enough"
                return
            except socket.timeout:
                seen.end = "silent"
                return
            except OSError:
                seen.end = "reset"
                return
            if not data:
                framed = self._chunked is not None or self._left is not None
                seen.end = "cut" if framed else "complete"
                return

    def _take(self, at: float, data: bytes) -> None:
        if self._inflate is not None:
            data = self._inflate.decompress(data)
        if self._seen.unread_encoding or not data:
            return
        if self._is_sse:
            self._now = at
            for event in self._events.feed(data):
                self._note(at, event.event, event.data if isinstance(event.data, str) else "")
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            if line.strip():
                self._note(at, None, line.decode("utf-8", "replace"))
        if len(self._line) > _MAX_HEAD:
            self._note(at, None, self._line.decode("utf-8", "replace"))
            self._line = b""

    def _on_comment(self, text: str) -> None:
        if len(text) <= _MAX_HEARTBEAT and self._seen.events:
            self._seen.comments.append(self._now)

    def _note(self, at: float, name: Optional[str], text: str) -> None:
        seen, sent = self._seen, None
        if name in ("done", "failed") and seen.is_probe:
            return
        if name == "probe":
            facts = _facts_of(text)
            sent = _seconds(facts.get("t"))
            if seen.hello is None and isinstance(facts.get("hello"), dict):
                seen.hello = _hello_of(facts["hello"])
            seen.last = seen.last or bool(facts.get("last"))
        seen.events.append(Arrival(at, sent, self._body, len(text)))


class _Enough(Exception):
    """The time for reading is over."""


def _facts_of(text: str) -> Dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError:
        raise DecodeError("an event of the probe is not JSON") from None
    return facts if isinstance(facts, dict) else {}


def _seconds(value: Any) -> Optional[float]:
    """Return what somebody calls seconds, where it can be some."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0 <= value < _FAR else None


def _hello_of(said: Dict[str, Any]) -> Dict[str, Any]:
    """Return what the app says of itself, with each value of the type that it should be."""
    hello = {name: said[name] for name in ("nonce", "protocol", "server") if isinstance(said.get(name), str)}
    hello.update({name: said[name] for name in ("request", "here") if isinstance(said.get(name), dict)})
    return dict(hello, heartbeat_interval=_seconds(said.get("heartbeat_interval")))


def _inflater(seen: Observation) -> Any:
    encoding = (seen.header("content-encoding") or "identity").strip().lower()
    if encoding in ("identity", ""):
        return None
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(47)
    seen.unread_encoding = encoding
    return None
