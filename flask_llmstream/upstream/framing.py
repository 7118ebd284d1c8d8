"""What is between the bytes of an answer and its provider's decoder: events or lines.

Decisions
    1. Only chunks of chat completions have a fast path: the others do not say the same thing
       around each token, and come in larger pieces.
"""

from __future__ import annotations

import json
from typing import Any, Callable, List, Optional

from flask_llmstream.sansio.chattemplate import ChatTemplate
from flask_llmstream.sansio.events import Delta, Event, TextDelta
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder
from flask_llmstream.sansio.providers.base import ProviderDecoder
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder
from flask_llmstream.sansio.providers.recognise import make_decoder, recognise
from flask_llmstream.sansio.sse import SSEDecoder

__all__ = ["frames_of"]


class Events:
    """Server-sent events, for a provider that is known."""

    def __init__(self, provider: ProviderDecoder) -> None:
        self.provider = provider
        self.decoder = SSEDecoder()

    def take(self, events: List[Event], deltas: List[Delta]) -> None:
        """Add what *events* bring to *deltas*."""
        for event in events:
            deltas += self.provider.feed_event(event)


class ChatEvents(Events):
    """Those of a chat completion, which mostly differ in nothing but their text."""

    def __init__(self, provider: ProviderDecoder) -> None:
        super().__init__(provider)
        self._template = ChatTemplate()

    def take(self, events: List[Event], deltas: List[Delta]) -> None:
        """Add what *events* bring to *deltas*."""
        chunks, template = self.provider, self._template
        for event in events:
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
                return


class UnknownEvents(Events):
    """Those of a provider that the first telling one of them names."""

    def __init__(self, scrub: Callable[[str], str]) -> None:
        # Meanwhile this one says what is wrong with the others.
        super().__init__(make_decoder("openai", scrub))
        self._scrub = scrub
        self._known: Optional[Events] = None

    def take(self, events: List[Event], deltas: List[Delta]) -> None:
        """Add what *events* bring to *deltas*."""
        for number, event in enumerate(events):
            if self._known is None:
                found = _format_of(event)
                if found is None:
                    super().take([event], deltas)
                    continue
                self.provider = make_decoder(found, self._scrub)
                self._known = _events_of(self.provider)
            self._known.take(events[number:], deltas)
            return


def _format_of(event: Event) -> Optional[str]:
    try:
        return recognise(json.loads(event.data))
    except (ValueError, RecursionError):
        return None


class Lines:
    """A JSON value per line."""

    def __init__(self, provider: ProviderDecoder) -> None:
        self.provider = provider
        self.decoder = NDJSONDecoder()

    def take(self, values: List[Any], deltas: List[Delta]) -> None:
        """Add what *values* bring to *deltas*."""
        for value in values:
            deltas += self.provider.feed_chunk(value)


def _events_of(provider: Any) -> Events:
    return (ChatEvents if type(provider) is ChatChunkDecoder else Events)(provider)


def frames_of(provider: Optional[str], framing: str, scrub: Callable[[str], str]) -> Any:
    """Return what reads the frames of an answer.

    :param provider: its format, ``None`` to find out.
    :param framing: ``sse`` or ``ndjson``.
    :param scrub: takes out of messages what logs must not hold.
    """
    if provider is None:
        return UnknownEvents(scrub)
    decoder = make_decoder(provider, scrub)
    return Lines(decoder) if framing == "ndjson" else _events_of(decoder)
