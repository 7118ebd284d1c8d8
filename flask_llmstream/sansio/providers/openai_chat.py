"""Decodes the stream of an OpenAI-compatible chat completion.

Decisions
    1. Only the choice with index 0 is read.
"""

from __future__ import annotations

from typing import Any, Dict, List

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Delta, ReasoningDelta, TextDelta, Usage
from flask_llmstream.sansio.providers.base import ProviderDecoder
from flask_llmstream.sansio.providers.fields import (
    count,
    list_in,
    name_of,
    object_of,
    text_in,
)

__all__ = ["ChatChunkDecoder"]


class ChatChunkDecoder(ProviderDecoder):
    """Turns the events of one chat completion into deltas; its end is ``[DONE]``."""

    _what = "a chunk of a chat completion"
    _whole = "a chat completion"
    _reasons = {
        "stop": "stop",
        "eos": "stop",
        "length": "length",
        "max_tokens": "length",
        "content_filter": "content_filter",
        "tool_calls": "tool_calls",
        "function_call": "tool_calls",
    }

    def _read(self, chunk: Dict[str, Any]) -> List[Delta]:
        deltas: List[Delta] = []
        choices = list_in(chunk, "choices")
        for choice in choices:
            choice = object_of(choice, "a choice")
            if not choice.get("index"):
                self._read_choice(choice, deltas)
        usage = chunk.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage)
        # Some servers repeat the growing usage in every chunk; that waits for the end.
        if self.finished is not None or not choices:
            self.model = name_of(chunk.get("model")) or self.model
            deltas += self._report_usage()
        return deltas

    def _read_whole(self, answer: Dict[str, Any]) -> List[Delta]:
        choices = list_in(answer, "choices")
        choice = object_of(choices[0], "a choice") if choices else {}
        if not isinstance(choice.get("message"), dict):
            raise DecodeError(f"{self._whole} must have a choice with a message")
        # The one chunk that says the same.
        said = {"delta": choice["message"], "finish_reason": choice.get("finish_reason")}
        return self._read(dict(answer, choices=[said]))

    def _read_choice(self, choice: Dict[str, Any], deltas: List[Delta]) -> None:
        delta = object_of(choice.get("delta"), "delta")
        # Servers that know both names send the same text under both.
        reasoning = delta.get("reasoning_content") or delta.get("reasoning")
        if reasoning and isinstance(reasoning, str):
            deltas.append(ReasoningDelta(reasoning))
        # A refusal takes the place of the content, and is all that the reader gets.
        text = text_in(delta, "content") or text_in(delta, "refusal")
        if text:
            deltas.append(TextDelta(text))
        for position, call in enumerate(list_in(delta, "tool_calls")):
            self._read_call(object_of(call, "a tool call"), position, deltas)
        reason = choice.get("finish_reason")
        if reason:
            self._finish(reason, deltas)

    def _read_call(self, call: Dict[str, Any], position: int, deltas: List[Delta]) -> None:
        index = call.get("index")
        if not isinstance(index, int):
            index = position
        function = object_of(call.get("function"), "a tool call's function")
        # Some servers repeat id and name in every piece.
        id, name = name_of(call.get("id")), name_of(function.get("name"))
        self._add_call(index, id, name, text_in(function, "arguments"), deltas)


def _usage(fields: Dict[str, Any]) -> Usage:
    return Usage(
        count(fields, "prompt_tokens"),
        count(fields, "completion_tokens"),
        count(fields.get("completion_tokens_details"), "reasoning_tokens"),
        count(fields.get("prompt_tokens_details"), "cached_tokens"),
    )
