"""Decodes the stream of an OpenAI-compatible chat completion.

Decisions: 1. Servers that call themselves compatible are not. What they leave out, add or repeat
is tolerated; where text should be and something else is, that is an error: text must not get lost
without a word. 2. Only the choice with index 0 is read.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Optional, Tuple

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import (
    Delta,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.openai_errors import error_in_stream

__all__ = ["ChatChunkDecoder"]

_FINISH_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class ChatChunkDecoder:
    """Turns the events of one answer into deltas; make one per answer.

    :param scrub: takes out of a provider's error message what logs must not hold; it also sees
        that keys go. Defaults to a function that removes what looks like a key.
    """

    def __init__(self, scrub: Optional[Callable[[str], str]] = None) -> None:
        #: Whether ``[DONE]`` has been seen. Not every server sends it.
        self.done = False
        #: Why the model stopped, in the words of :class:`~flask_llmstream.Finish`, once it has said so.
        self.finished: Optional[str] = None
        #: What the answer has cost as last reported, even where the stream is cut afterwards.
        self.usage: Optional[Usage] = None
        self._reported_usage: Optional[Usage] = None
        self._calls: Dict[int, Tuple[Optional[str], Optional[str]]] = {}
        self._scrub = scrub

    def feed_event(self, event: Event) -> List[Delta]:
        """Return the deltas in one server-sent event; what follows ``[DONE]`` counts for nothing.

        :raises UpstreamError: the provider reports an error inside the stream.
        :raises DecodeError: the data is not a chunk.
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
            raise DecodeError(f"a chunk of a chat completion is not JSON: {error}") from error
        if is_error:
            raise error_in_stream(chunk, self._scrub)
        return self.feed_chunk(chunk)

    def feed_chunk(self, chunk: Any) -> List[Delta]:
        """Return the deltas in one chunk, which is parsed JSON; errors as :meth:`feed_event`."""
        if not isinstance(chunk, dict):
            raise DecodeError(f"a chunk of a chat completion must be an object, got {_kind(chunk)}")
        if chunk.get("error"):
            raise error_in_stream(chunk, self._scrub)
        deltas: List[Delta] = []
        choices = _list(chunk, "choices")
        for choice in choices:
            choice = _object(choice, "a choice")
            if not choice.get("index"):
                self._read_choice(choice, deltas)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage)
        # Some servers repeat the growing usage in every chunk; that waits for the end.
        if self.finished is not None or not choices:
            deltas += self._report_usage()
        return deltas

    def _report_usage(self) -> List[Delta]:
        if self.usage is None or self.usage == self._reported_usage:
            return []
        self._reported_usage = self.usage
        return [self.usage]

    def _read_choice(self, choice: Dict[str, Any], deltas: List[Delta]) -> None:
        delta = _object(choice.get("delta"), "delta")
        # Servers that know both names send the same text under both.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning and isinstance(reasoning, str):
            deltas.append(ReasoningDelta(reasoning))
        # A refusal takes the place of the content, and is all that the reader gets.
        text = _text(delta, "content") or _text(delta, "refusal")
        if text:
            deltas.append(TextDelta(text))
        for position, call in enumerate(_list(delta, "tool_calls")):
            self._read_call(_object(call, "a tool call"), position, deltas)
        reason = choice.get("finish_reason")
        if reason and isinstance(reason, str) and self.finished is None:
            self.finished = _FINISH_REASONS.get(reason.lower(), "other")
            deltas.append(Finish(self.finished))

    def _read_call(self, call: Dict[str, Any], position: int, deltas: List[Delta]) -> None:
        index = call.get("index")
        if not isinstance(index, int):
            index = position
        function = _object(call.get("function"), "a tool call's function")
        id, name = _name(call.get("id")), _name(function.get("name"))
        # Some servers repeat both in every piece; readers count on seeing them once per call.
        known_id, known_name = self._calls.get(index, (None, None))
        if id is not None and id != known_id:
            known_name = None
        self._calls[index] = (id or known_id, name or known_name)
        piece = ToolCallDelta(
            index,
            id if id != known_id else None,
            name if name != known_name else None,
            _text(function, "arguments"),
        )
        if piece.id or piece.name or piece.arguments:
            deltas.append(piece)


def _usage(fields: Dict[str, Any]) -> Usage:
    return Usage(
        _count(fields, "prompt_tokens"),
        _count(fields, "completion_tokens"),
        _count(fields.get("completion_tokens_details"), "reasoning_tokens"),
        _count(fields.get("prompt_tokens_details"), "cached_tokens"),
    )


def _count(fields: Any, key: str) -> Optional[int]:
    value = fields.get(key) if isinstance(fields, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _name(value: Any) -> Optional[str]:
    return value if value and isinstance(value, str) else None


def _text(fields: Dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DecodeError(f"{key} must be a string, got {_kind(value)}")
    return value


def _list(fields: Dict[str, Any], key: str) -> List[Any]:
    value = fields.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DecodeError(f"{key} must be an array, got {_kind(value)}")
    return value


def _object(value: Any, what: str) -> Dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DecodeError(f"{what} must be an object, got {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    # The kind only: the value may be part of an answer.
    return type(value).__name__
