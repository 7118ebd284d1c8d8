"""What the decoders of all providers have in common.

Decisions
    1. Servers that call themselves compatible are not. What they leave out, add or repeat is
       tolerated, and events of an unknown kind are passed over; where text should be and something
       else is, that is an error: text must not get lost without a word.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Delta, Event, Finish, ToolCallDelta, Usage
from flask_llmstream.sansio.providers.errors import error_in_stream
from flask_llmstream.sansio.providers.fields import kind_of

__all__ = ["ProviderDecoder", "TypedDecoder"]

#: Tool calls of one answer that are told apart; each costs memory until the answer ends.
_MAX_CALLS = 4096


class ProviderDecoder:
    """Turns what a provider sends for one answer into deltas; make one per answer.

    :param scrub: takes out of a provider's error message what logs must not hold; it also sees
        that keys go. Defaults to a function that removes what looks like a key.
    """

    #: What a piece of the stream is called in messages, and an answer in one piece.
    _what = "a chunk"
    _whole = "an answer"
    #: The provider's words for why the model stopped, in ours; all others are ``other``.
    _reasons: Mapping[str, str] = {}

    def __init__(self, scrub: Optional[Callable[[str], str]] = None) -> None:
        #: Whether the provider's mark of the end has been seen. Not every server sends it.
        self.done = False
        #: Why the model stopped, in the words of :class:`~flask_llmstream.Finish`, once it has said so.
        self.finished: Optional[str] = None
        #: What the answer has cost as last reported, even where the stream is cut afterwards.
        self.usage: Optional[Usage] = None
        #: Which model has answered, where the provider has said so.
        self.model: Optional[str] = None
        self._reported_usage: Optional[Usage] = None
        #: Id and name of the tool calls by their index.
        self._calls: Dict[int, Tuple[Optional[str], Optional[str]]] = {}
        self._scrub = scrub

    def feed_event(self, event: Event) -> List[Delta]:
        """Return the deltas in one server-sent event; what follows the end counts for nothing.

        :raises UpstreamError: the provider reports an error inside the stream.
        :raises DecodeError: the data is not what the provider's format allows.
        """
        text = event.data.strip()
        if self.done or not text:
            return []
        if text == "[DONE]":
            self.done = True
            return self._report_usage()
        is_error = event.event == "error"
        try:
            chunk = json.loads(text)
        # RecursionError is what json makes of ten thousand brackets.
        except (ValueError, RecursionError) as error:
            if is_error:
                raise error_in_stream(text, self._scrub) from error
            raise DecodeError(f"{self._what} is not JSON: {error}") from error
        if is_error:
            raise error_in_stream(chunk, self._scrub)
        if event.event and isinstance(chunk, dict):
            # Most formats say it twice; some servers say it in the name of the event only.
            chunk.setdefault("type", event.event)
        return self.feed_chunk(chunk)

    def feed_chunk(self, chunk: Any) -> List[Delta]:
        """Return the deltas in one chunk, which is parsed JSON; errors as :meth:`feed_event`."""
        # This runs once per token.
        if chunk.__class__ is not dict or chunk.get("error"):
            chunk = self._checked(chunk, self._what)
        return self._read(chunk)

    def feed_whole(self, answer: Any) -> List[Delta]:
        """Return the deltas of an answer in one piece, from a server that does not stream.

        :param answer: parsed JSON.

        Errors as :meth:`feed_event`.
        """
        deltas = self._read_whole(self._checked(answer, self._whole))
        self.done = True
        return deltas + self._report_usage()

    def _read(self, chunk: Dict[str, Any]) -> List[Delta]:
        """Return the deltas in a chunk that is no error."""
        raise NotImplementedError

    def _read_whole(self, answer: Dict[str, Any]) -> List[Delta]:
        """Return the deltas of an answer in one piece that is no error."""
        raise NotImplementedError

    def _checked(self, value: Any, what: str) -> Dict[str, Any]:
        if not isinstance(value, dict):
            raise DecodeError(f"{what} must be an object, got {kind_of(value)}")
        if value.get("error"):
            raise error_in_stream(value, self._scrub)
        return value

    def _report_usage(self) -> List[Delta]:
        if self.usage is None or self.usage == self._reported_usage:
            return []
        self._reported_usage = self.usage
        return [self.usage]

    def _finish(self, reason: Any, deltas: List[Delta]) -> None:
        """Note why the model stopped, if *reason* says so and it is news."""
        if reason and isinstance(reason, str) and self.finished is None:
            self.finished = self._reasons.get(reason.lower(), "other")
            deltas.append(Finish(self.finished))

    def _add_call(
        self, index: int, id: Optional[str], name: Optional[str], arguments: str, deltas: List[Delta]
    ) -> None:
        """Add a piece of a tool call. Readers count on seeing its id and its name once."""
        known_id, known_name = self._calls.get(index, (None, None))
        if id is not None and id != known_id:
            known_name = None
        self._calls[index] = (id or known_id, name or known_name)
        if len(self._calls) > _MAX_CALLS:
            raise DecodeError(f"an answer has more than {_MAX_CALLS} tool calls")
        piece = ToolCallDelta(
            index,
            id if id != known_id else None,
            name if name != known_name else None,
            arguments,
        )
        if piece.id or piece.name or piece.arguments:
            deltas.append(piece)


class TypedDecoder(ProviderDecoder):
    """Base of the decoders for streams whose events say in a field ``type`` what they are."""

    def _read(self, chunk: Dict[str, Any]) -> List[Delta]:
        deltas: List[Delta] = []
        if not self.done:
            kind = chunk.get("type")
            if kind == "error":
                raise error_in_stream(chunk, self._scrub)
            if isinstance(kind, str):
                self._read_kind(kind, chunk, deltas)
        return deltas

    def _read_kind(self, kind: str, chunk: Dict[str, Any], deltas: List[Delta]) -> None:
        """Add the deltas in an event of *kind*; nothing for a kind that is not known."""
        raise NotImplementedError
