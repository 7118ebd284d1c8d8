"""Decodes the stream of Anthropic's Messages API.

Decisions
    1. Usage is merged: the beginning has the tokens of the prompt, the end those of the answer, and
       servers that know one of them only at the other place say 0 here. So a 0 replaces nothing.
    2. Arguments that a call begins with are all of them: some servers send them so, and what pieces
       follow repeats them. A call that gets none has an empty object; that is known at the end only.
    3. What the provider's own tools do is passed over.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Set

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Delta, ReasoningDelta, TextDelta, Usage
from flask_llmstream.sansio.providers.base import TypedDecoder
from flask_llmstream.sansio.providers.fields import arguments_of, count, name_of, object_of, text_in

__all__ = ["MessagesDecoder"]

_INPUT = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


class MessagesDecoder(TypedDecoder):
    """Turns the events of one message into deltas; its end is ``message_stop``."""

    _what = "an event of a message"
    _whole = "a message"
    _reasons = {
        "end_turn": "stop",
        "stop_sequence": "stop",
        "max_tokens": "length",
        "model_context_window_exceeded": "length",
        "tool_use": "tool_calls",
        "refusal": "content_filter",
    }

    def __init__(self, scrub: Optional[Callable[[str], str]] = None) -> None:
        super().__init__(scrub)
        self._counts: Dict[str, int] = {}
        self._blocks: Dict[Optional[int], int] = {}  # the numbers of the calls in them
        self._awaited: Set[int] = set()  # calls of whose arguments nothing has come
        self._whole_calls: Set[int] = set()

    def _read_kind(self, kind: str, chunk: Dict[str, Any], deltas: List[Delta]) -> None:
        if kind == "content_block_delta":
            self._read_delta(object_of(chunk.get("delta"), "delta"), count(chunk, "index"), deltas)
        elif kind == "content_block_start":
            block = object_of(chunk.get("content_block"), "content_block")
            self._read_block(block, count(chunk, "index"), deltas)
        elif kind == "message_start":
            message = object_of(chunk.get("message"), "message")
            self.model = name_of(message.get("model"))
            self._count(message.get("usage"))
        elif kind == "message_delta":
            self._count(chunk.get("usage"))
            self._end(object_of(chunk.get("delta"), "delta").get("stop_reason"), deltas)
        elif kind == "message_stop":
            self._end(None, deltas)
            self.done = True
            deltas += self._report_usage()

    def _read_whole(self, answer: Dict[str, Any]) -> List[Delta]:
        if not isinstance(answer.get("content"), list):
            raise DecodeError(f"{self._whole} must have an array content")
        self.model = name_of(answer.get("model"))
        deltas: List[Delta] = []
        for index, block in enumerate(answer["content"]):
            self._read_block(object_of(block, "a content block"), index, deltas)
            self._complete_calls(deltas)
        self._count(answer.get("usage"))
        self._end(answer.get("stop_reason"), deltas)
        return deltas

    def _read_block(self, block: Dict[str, Any], index: Optional[int], deltas: List[Delta]) -> None:
        type = block.get("type")
        # Texts mostly begin empty here.
        if type == "text":
            _add(TextDelta, text_in(block, "text"), deltas)
        elif type == "thinking":
            _add(ReasoningDelta, text_in(block, "thinking"), deltas)
        elif type == "tool_use":
            self._blocks[index] = number = len(self._calls)
            input = block.get("input")
            (self._whole_calls if input else self._awaited).add(number)
            arguments = arguments_of(input) if input else ""
            self._add_call(number, name_of(block.get("id")), name_of(block.get("name")), arguments, deltas)

    def _read_delta(self, delta: Dict[str, Any], index: Optional[int], deltas: List[Delta]) -> None:
        type = delta.get("type")
        if type == "text_delta":
            _add(TextDelta, text_in(delta, "text"), deltas)
        elif type == "thinking_delta":
            _add(ReasoningDelta, text_in(delta, "thinking"), deltas)
        elif type == "input_json_delta":
            piece = text_in(delta, "partial_json")
            number = self._blocks.get(index)
            # The first piece is empty.
            if piece and number is not None and number not in self._whole_calls:
                self._awaited.discard(number)
                self._add_call(number, None, None, piece, deltas)

    def _end(self, reason: Any, deltas: List[Delta]) -> None:
        self._complete_calls(deltas)
        self._finish(reason, deltas)
        if self.finished is not None:
            deltas += self._report_usage()

    def _complete_calls(self, deltas: List[Delta]) -> None:
        for number in sorted(self._awaited):
            self._add_call(number, None, None, "{}", deltas)
        self._awaited.clear()

    def _count(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        counts = self._counts
        for key in (*_INPUT, "output_tokens"):
            _merge(counts, key, count(usage, key))
        _merge(counts, "thinking_tokens", count(usage.get("output_tokens_details"), "thinking_tokens"))
        inputs = [counts[key] for key in _INPUT if key in counts]
        self.usage = Usage(
            sum(inputs) if inputs else None,
            counts.get("output_tokens"),
            counts.get("thinking_tokens"),
            counts.get("cache_read_input_tokens"),
        )


def _merge(counts: Dict[str, int], key: str, value: Optional[int]) -> None:
    if value or (value == 0 and key not in counts):
        counts[key] = value


def _add(delta: Callable[[str], Delta], text: str, deltas: List[Delta]) -> None:
    if text:
        deltas.append(delta(text))
