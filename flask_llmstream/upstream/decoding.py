"""From the bytes of an answer to deltas, whoever sent them and whoever asked for them.

Decisions
    1. Invalid UTF-8 fails the call. The event decoder would put U+FFFD in its place, as the
       specification of event streams wants, and the reader would see a damaged answer that looks
       whole.
    2. What came before a fault in the same piece is handed out before the fault is raised.
    3. A stream that said why it finished is complete, whether or not the provider's last word
       follows: several servers leave it out. Without either it was cut, even where HTTP calls
       that a clean end.
"""

from __future__ import annotations

import codecs
from typing import Any, Callable, Iterable, List, Optional, Tuple

from flask_llmstream.exceptions import (
    BufferLimitExceeded,
    LLMStreamError,
    UpstreamError,
    UpstreamInterrupted,
)
from flask_llmstream.sansio.events import Delta, Usage
from flask_llmstream.sansio.providers.base import ProviderDecoder
from flask_llmstream.sansio.providers.gemini import GeminiDecoder
from flask_llmstream.upstream.errors import invalid, scrub
from flask_llmstream.upstream.framing import frames_of

__all__ = ["EVENT_STREAM", "NDJSON", "AnswerDecoder"]

#: Content types by framing.
EVENT_STREAM = ("text/event-stream",)
#: Ollama's name for it, the one that others use, and what some gateways make of it.
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/json")


class AnswerDecoder:
    """Bytes in, deltas out; the first fault ends it.

    :param name: what the provider is called in messages.
    :param provider: its format, see :func:`~flask_llmstream.sansio.providers.recognise.recognise`;
        ``None`` finds out from the first event.
    :param framing: ``sse`` or ``ndjson``.
    :param sent: texts of the request that no message may quote; asked for only when needed.
    """

    def __init__(
        self,
        name: str,
        provider: Optional[str],
        framing: str = "sse",
        sent: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._name = name
        self._frames = frames_of(provider, framing, lambda text: scrub(text, sent()))
        #: What a body of this framing may call itself.
        self.content_types = NDJSON if framing == "ndjson" else EVENT_STREAM
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._is_ascii = True

    @property
    def _provider(self) -> ProviderDecoder:
        provider: ProviderDecoder = self._frames.provider
        return provider

    @property
    def done(self) -> bool:
        """Whether the provider's last word has been seen: nothing that follows counts."""
        return self._provider.done

    @property
    def complete(self) -> bool:
        """Whether the answer may end here."""
        provider = self._provider
        return provider.done or provider.finished is not None

    @property
    def settled(self) -> bool:
        """Whether no more of the answer can follow: Gemini may say ``STOP`` with every chunk."""
        return self.complete and not isinstance(self._provider, GeminiDecoder)

    @property
    def finish_reason(self) -> Optional[str]:
        """Why the model stopped, once it has said so."""
        return self._provider.finished

    @property
    def usage(self) -> Optional[Usage]:
        """What the answer has cost, as last reported, even where it was cut afterwards."""
        return self._provider.usage

    @property
    def model(self) -> Optional[str]:
        """Which model has answered, once the provider has said so."""
        return self._provider.model

    def feed(self, block: bytes) -> Tuple[List[Delta], Optional[UpstreamError]]:
        """Return the deltas in *block*, and the fault that ends them."""
        failure: Optional[UpstreamError] = None
        if not (self._is_ascii and block.isascii()):
            block, failure = self._check(block)
        deltas: List[Delta] = []
        frames = self._frames
        try:
            frames.take(frames.decoder.feed(block), deltas)
        except LLMStreamError as exc:
            return deltas, self._fault(exc)
        if failure is not None and self.done:
            failure = None
        return deltas, failure

    def feed_whole(self, answer: Any) -> List[Delta]:
        """Return the deltas of an answer in one piece, which is parsed JSON.

        :raises DecodeError: if it is something else.
        """
        return self._provider.feed_whole(answer)

    def flush(self) -> Tuple[List[Delta], Optional[UpstreamError]]:
        """Say that the input has ended; return what this brings to light."""
        deltas: List[Delta] = []
        frames = self._frames
        try:
            frames.take(frames.decoder.flush(), deltas)
        except LLMStreamError as exc:
            return deltas, self._fault(exc)
        if self.complete:
            return deltas, None
        return deltas, UpstreamInterrupted(f"the answer of {self._name} ended without a finish reason")

    def _fault(self, exc: LLMStreamError) -> UpstreamError:
        """Return what *exc*, which decoding has raised, means for the call."""
        if isinstance(exc, UpstreamError):
            return exc
        if isinstance(exc, BufferLimitExceeded):
            return invalid(f"{self._name} sent an endless line: {exc}", error=exc)
        return invalid(f"{self._name} sent an event that is not valid: {exc}", error=exc)

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
