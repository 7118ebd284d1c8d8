"""From the body of an OpenAI chat answer to deltas, whoever made the request.

Decisions
    1. Invalid UTF-8 fails the call. The event decoder would put U+FFFD in its place, as the
       specification of event streams wants, and the reader would see a damaged answer that looks
       whole.
    2. What came before a fault in the same piece is handed out before the fault is raised.
    3. A stream that said why it finished is complete, whether or not ``[DONE]`` follows: several
       servers leave it out. Without either it was cut, even where HTTP calls that a clean end.
"""

from __future__ import annotations

import codecs
import json
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple
from urllib.parse import urljoin

import requests

from flask_llmstream.exceptions import (
    BufferLimitExceeded,
    DecodeError,
    UpstreamError,
    UpstreamInterrupted,
)
from flask_llmstream.reading import READ_ERRORS, BodyReader, read_available
from flask_llmstream.sansio.chattemplate import ChatTemplate
from flask_llmstream.sansio.events import Delta, TextDelta, Usage
from flask_llmstream.sansio.headers import essence, parse_retry_after
from flask_llmstream.sansio.openai import ChatChunkDecoder
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.errors import invalid, name_of, read_failed, refused, scrub

__all__ = ["ChatAnswer", "ChatDecoder"]

#: What the rest of a body may cost after ``[DONE]`` for the sake of the next call, in seconds and
#: bytes. It is a line break and the end of the chunking, which servers send right behind.
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


class ChatDecoder:
    """Bytes in, deltas out; the first fault ends it.

    :param name: what the provider is called in messages.
    :param sent: texts of the request that no message may quote; asked for only when needed.
    """

    def __init__(self, name: str, sent: Callable[[], Iterable[str]] = tuple) -> None:
        self._name = name
        self._events = SSEDecoder()
        self._chunks = ChatChunkDecoder(lambda text: scrub(text, sent()))
        self._template = ChatTemplate()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._is_ascii = True

    @property
    def done(self) -> bool:
        """Whether ``[DONE]`` has been seen: nothing that follows counts."""
        return self._chunks.done

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        return self._chunks.done or self._chunks.finished is not None

    def feed(self, block: bytes) -> Tuple[List[Delta], Optional[UpstreamError]]:
        """Return the deltas in *block*, and the fault that ends them."""
        failure: Optional[UpstreamError] = None
        if not (self._is_ascii and block.isascii()):
            block, failure = self._check(block)
        deltas: List[Delta] = []
        chunks, template = self._chunks, self._template
        try:
            for event in self._events.feed(block):
                if event.event is None and chunks.finished is None:
                    text = template.read(event.data)
                    if text is not None:
                        deltas.append(TextDelta(text))
                        continue
                found = chunks.feed_event(event)
                deltas += found
                if len(found) == 1 and found[0].__class__ is TextDelta:
                    template.learn(event.data, found[0].text)
                elif chunks.done:
                    return deltas, None
        except UpstreamError as exc:
            return deltas, exc
        except BufferLimitExceeded as exc:
            return deltas, invalid(f"{self._name} sent an endless line: {exc}", error=exc)
        except DecodeError as exc:
            return deltas, invalid(f"{self._name} sent an event that is not valid: {exc}", error=exc)
        return deltas, failure

    def feed_whole(self, completion: Any) -> List[Delta]:
        """Return the deltas of a ``chat.completion``, which is parsed JSON.

        :raises ValueError: if it is something else.
        """
        return self._chunks.feed_chunk(_chunk_of(completion))

    def flush(self) -> Optional[UpstreamError]:
        """Say that the input has ended; return the fault that this brings to light."""
        try:
            self._events.flush()
        except BufferLimitExceeded as exc:
            return invalid(f"{self._name} sent an endless line: {exc}", error=exc)
        if not self.complete:
            return UpstreamInterrupted(
                f"the answer of {self._name} ended without [DONE] and without a finish reason"
            )
        return None

    @property
    def finish_reason(self) -> Optional[str]:
        """Why the model stopped, once it has said so."""
        return self._chunks.finished

    @property
    def usage(self) -> Optional[Usage]:
        """What the answer has cost, as last reported, even where it was cut afterwards."""
        return self._chunks.usage

    def _check(self, block: bytes) -> Tuple[bytes, Optional[UpstreamError]]:
        """Return what of *block* is UTF-8, and the fault of what is not."""
        try:
            self._utf8.decode(block)
        except UnicodeDecodeError as exc:
            # exc.object begins with bytes of the block before, where that cut a character.
            good = max(0, exc.start - (len(exc.object) - len(block)))
            # Without its traceback, which would make a cycle of the frame that gets the failure.
            exc = exc.with_traceback(None)
            return block[:good], invalid(f"{self._name} sent bytes that are not UTF-8", error=exc)
        self._is_ascii = not self._utf8.getstate()[0]
        return block, None


class ChatAnswer(DeltaSource):
    """The deltas of a chat answer that arrives over HTTP.

    :param name: what the provider is called in messages.
    :param sent: texts of the request that no message may quote; asked for only when needed.
    """

    def __init__(self, name: str, sent: Callable[[], Iterable[str]] = tuple) -> None:
        super().__init__()
        self._name = name
        self._sent = sent
        self._decoder = ChatDecoder(name, sent)
        self._reader: Optional[BodyReader] = None
        self._patient = True

    def _open(self) -> None:
        """Get a response and :meth:`_accept` it."""
        raise NotImplementedError

    def _accept(self, response: requests.Response, seconds: Optional[float] = None) -> None:
        """Read from *response*, if it is an answer that can be read.

        :param seconds: how long an answer in one piece may take.
        """
        self._reader = reader = read_available(response)
        if self._closed:
            return  # whoever closed us could not know of this connection yet
        status = response.status_code
        kind = essence(response.headers.get("Content-Type"))
        if status != 200:
            said = reader.take(_REFUSAL_SECONDS, _REFUSAL_BYTES)[:_REFUSAL_BYTES]
            target = response.headers.get("Location")
            if 300 <= status < 400 and target:
                said = f"it moved to {name_of(urljoin(response.url, target))}; call that".encode()
            asked = parse_retry_after(response.headers.get("Retry-After"), time.time())
            raise refused(status, self._name, said, asked, self._sent())
        if kind == "application/json":
            self._take_whole(reader, _WHOLE_SECONDS if seconds is None else seconds)
        elif kind not in ("text/event-stream", ""):
            raise invalid(f"{self._name} answered with {kind[:80]!r}, expected 'text/event-stream'")

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
            if decoder.complete:
                self._ended = True
                return
            raise read_failed(exc, self._name, self._received) from exc
        if block is None:
            self._ended = True
            self._failure = decoder.flush()
            return
        deltas, self._failure = decoder.feed(block)
        self._add(deltas)
        if self._patient and decoder.complete:
            self._patient = False
            reader.limit_silence(_LAST_SECONDS)

    def _add(self, deltas: List[Delta]) -> None:
        super()._add(deltas)
        self.finish_reason = self._decoder.finish_reason
        self.usage = self._decoder.usage

    def _let_go(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _take_whole(self, reader: BodyReader, seconds: float) -> None:
        """Read an answer in one piece: the server does not stream."""
        body = reader.take(seconds, _MAX_ANSWER)
        if not reader.ended:
            raise UpstreamInterrupted(f"the answer of {self._name} ended before it was complete")
        try:
            deltas = self._decoder.feed_whole(json.loads(body.decode("utf-8")))
        except (ValueError, RecursionError, DecodeError) as exc:
            raise invalid(f"{self._name} sent JSON that is no chat completion", error=exc) from exc
        self._add(deltas)
        self._ended = True


def _chunk_of(completion: Any) -> Dict[str, Any]:
    """Return a ``chat.completion`` as the one chunk that says the same."""
    if not isinstance(completion, dict):
        raise ValueError("not an object")
    if completion.get("error"):
        return completion
    try:
        choice = completion["choices"][0]
        delta = {"delta": dict(choice["message"]), "finish_reason": choice.get("finish_reason")}
    except (AttributeError, LookupError, TypeError, ValueError) as exc:
        raise ValueError("no message") from exc
    return dict(completion, choices=[delta])
