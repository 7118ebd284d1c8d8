"""The deltas of an answer that arrives over HTTP, from any provider, whoever made the request."""

from __future__ import annotations

import json
import time
from typing import Any, Callable, Iterable, List, Mapping, Optional
from urllib.parse import urljoin

from flask_llmstream.exceptions import DecodeError, UpstreamInterrupted
from flask_llmstream.reading import READ_ERRORS, read_available
from flask_llmstream.sansio.events import Delta
from flask_llmstream.sansio.headers import essence, parse_retry_after
from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.decoding import AnswerDecoder
from flask_llmstream.upstream.errors import invalid, name_of, read_failed, refused

__all__ = ["Answer"]

#: What the rest of a body may cost after its last word for the sake of the next call, in seconds
#: and bytes. It is a line break and the end of the chunking, which servers send right behind.
_DRAIN_SECONDS = 0.1
_DRAIN_BYTES = 16384
#: Seconds of silence allowed between the finish reason and what may follow it (usage, ``[DONE]``).
_LAST_SECONDS = 5.0
#: Bytes and seconds for an answer in one piece, from a server that does not stream.
_MAX_ANSWER = 1 << 22
_WHOLE_SECONDS = 600.0
#: How much of a refusal is read for the log, in bytes, and for how long, in seconds.
_REFUSAL_BYTES = 8192
_REFUSAL_SECONDS = 5.0


class Answer(DeltaSource):
    """The deltas of an answer that arrives over HTTP.

    :param name: what the provider is called in messages.
    :param decoder: what reads the body.
    :param sent: texts of the request that no message may quote; asked for only when needed.
    """

    _is_counted = True

    def __init__(
        self, name: str, decoder: AnswerDecoder, sent: Callable[[], Iterable[str]] = tuple
    ) -> None:
        super().__init__()
        self._name = name
        self._sent = sent
        self._decoder = decoder
        self._reader: Any = None
        self._patient = True

    @property
    def model(self) -> Optional[str]:
        """Which model has answered."""
        return self._decoder.model

    def traced(self) -> Mapping[str, str]:
        """Return what a trace says of the call."""
        url = str(getattr(getattr(self, "_source", None), "url", ""))
        return {"url": url}

    def _open(self) -> None:
        """Get a response and :meth:`_accept` it."""
        raise NotImplementedError

    def _accept(self, response: Any, seconds: Optional[float] = None, reader: Any = None) -> None:
        """Read from *response*, if it is an answer that can be read.

        :param response: of requests or httpx.
        :param seconds: how long an answer in one piece may take.
        :param reader: reads the body. Defaults to a
            :class:`~flask_llmstream.reading.BodyReader`.
        """
        self._reader = reader = reader or read_available(response)
        if self._closed:
            return  # whoever closed us could not know of this connection yet
        status = response.status_code
        kind = essence(response.headers.get("Content-Type"))
        if status != 200:
            said = reader.take(_REFUSAL_SECONDS, _REFUSAL_BYTES)[:_REFUSAL_BYTES]
            target = response.headers.get("Location")
            if 300 <= status < 400 and target:
                said = f"it moved to {name_of(urljoin(str(response.url), target))}; call that".encode()
            asked = parse_retry_after(response.headers.get("Retry-After"), time.time())
            raise refused(status, self._name, said, asked, self._sent())
        expected = self._decoder.content_types
        if kind in expected or not kind:
            return
        if kind != "application/json":
            raise invalid(f"{self._name} answered with {kind[:80]!r}, expected {expected[0]!r}")
        self._take_whole(reader, _WHOLE_SECONDS if seconds is None else seconds)

    def _pull(self) -> None:
        reader, decoder = self._reader, self._decoder
        if reader is None:
            self._open()
            return
        if decoder.done:
            reader.drain(_DRAIN_SECONDS, _DRAIN_BYTES)
            self._ended = True
            return
        try:
            block = next(reader, None)
        except READ_ERRORS as exc:
            if decoder.settled:
                self._ended = True
                return
            raise read_failed(exc, self._name, self._received) from exc
        if block is None:
            self._ended = True
            deltas, self._failure = decoder.flush()
        else:
            deltas, self._failure = decoder.feed(block)
        self._add(deltas)
        if self._patient and decoder.settled:
            self._patient = False
            reader.limit_silence(_LAST_SECONDS)

    def _add(self, deltas: List[Delta]) -> None:
        super()._add(deltas)
        self.finish_reason = self._decoder.finish_reason
        self.usage = self._decoder.usage

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _take_whole(self, reader: Any, seconds: float) -> None:
        """Read an answer in one piece: the server does not stream."""
        body = reader.take(seconds, _MAX_ANSWER)
        if not reader.ended:
            raise UpstreamInterrupted(f"the answer of {self._name} ended before it was complete")
        try:
            deltas = self._decoder.feed_whole(json.loads(body.decode("utf-8")))
        except (ValueError, RecursionError, DecodeError) as exc:
            raise invalid(f"{self._name} sent JSON that is no answer of a model", error=exc) from exc
        self._add(deltas)
        self._ended = True
