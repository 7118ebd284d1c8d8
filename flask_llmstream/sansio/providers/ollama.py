"""Decodes the stream of Ollama's own API: the lines of ``/api/chat`` and ``/api/generate``.

Decisions
    1. Tool calls come whole, without a number and mostly without an id: each is the next.
    2. The reason says nothing of tool calls: an answer that has some and stops finishes so.
"""

from __future__ import annotations

from typing import Any, Dict, List

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Delta, ReasoningDelta, TextDelta, Usage
from flask_llmstream.sansio.providers.base import ProviderDecoder
from flask_llmstream.sansio.providers.fields import (
    arguments_of,
    count,
    list_in,
    name_of,
    object_of,
    text_in,
)

__all__ = ["OllamaDecoder"]


class OllamaDecoder(ProviderDecoder):
    """Turns the lines of one answer into deltas; its end is the line with ``"done":true``."""

    _what = "a line of an Ollama answer"
    _whole = "an Ollama answer"
    _reasons = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}

    def _read(self, chunk: Dict[str, Any]) -> List[Delta]:
        deltas: List[Delta] = []
        if self.done:
            return deltas
        message = object_of(chunk.get("message"), "message")
        # /api/generate has its texts in the line itself.
        for fields, key in ((message, "content"), (chunk, "response")):
            reasoning = text_in(fields, "thinking")
            if reasoning:
                deltas.append(ReasoningDelta(reasoning))
            text = text_in(fields, key)
            if text:
                deltas.append(TextDelta(text))
        for call in list_in(message, "tool_calls"):
            self._read_call(object_of(call, "a tool call"), deltas)
        if chunk.get("done") is True:
            self._end(chunk, deltas)
        return deltas

    def _read_whole(self, answer: Dict[str, Any]) -> List[Delta]:
        if not isinstance(answer.get("message"), dict) and not isinstance(answer.get("response"), str):
            raise DecodeError(f"{self._whole} must have a message or a response")
        return self._read(answer)

    def _read_call(self, call: Dict[str, Any], deltas: List[Delta]) -> None:
        function = object_of(call.get("function"), "a tool call's function")
        arguments = arguments_of(function.get("arguments")) or "{}"
        id, name = name_of(call.get("id")), name_of(function.get("name"))
        self._add_call(len(self._calls), id, name, arguments, deltas)

    def _end(self, chunk: Dict[str, Any], deltas: List[Delta]) -> None:
        self.model = name_of(chunk.get("model"))
        # Servers from before there was a reason only ever said that they stopped.
        reason = chunk.get("done_reason") or "stop"
        self._finish("tool_calls" if self._calls and reason == "stop" else reason, deltas)
        usage = Usage(count(chunk, "prompt_eval_count"), count(chunk, "eval_count"))
        if usage != Usage():
            self.usage = usage
        self.done = True
        deltas += self._report_usage()
