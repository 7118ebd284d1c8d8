"""Decodes the stream of Google's Gemini API: ``streamGenerateContent``.

Decisions
    1. Fields are known by both of their names, ``finishReason`` and ``finish_reason``: the API
       answers with the first, Google's SDK gives the second.
    2. Nothing marks the end, and some models say ``STOP`` with every chunk: what comes behind a
       finish counts, and the last finish counts most.
    3. The reason says nothing of function calls: an answer that has some and stops finishes so.
    4. A prompt that is blocked finishes as ``content_filter``, without a text.
    5. Only the candidate with index 0 is read. Parts that are neither text nor a call are passed
       over: code that the provider runs, images, files.
"""

from __future__ import annotations

import re
from typing import Any, Dict, List, Optional

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Delta, Finish, ReasoningDelta, TextDelta, Usage
from flask_llmstream.sansio.providers.base import ProviderDecoder
from flask_llmstream.sansio.providers.fields import (
    arguments_of,
    count,
    list_in,
    name_of,
    object_of,
    text_in,
)

__all__ = ["GeminiDecoder"]

_FILTERED = (
    "safety", "recitation", "blocklist", "prohibited_content", "spii", "model_armor",
    "image_safety", "image_prohibited_content", "image_recitation",
)
_COUNTS = (
    "promptTokenCount", "toolUsePromptTokenCount",
    "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount",
)
_OTHER_NAMES = {
    key: re.sub("[A-Z]", lambda found: "_" + found.group().lower(), key)
    for key in (
        *_COUNTS, "finishReason", "promptFeedback", "blockReason", "usageMetadata",
        "functionCall", "partialArgs", "willContinue", "modelVersion",
    )
}


class GeminiDecoder(ProviderDecoder):
    """Turns the chunks of one answer into deltas. Nothing marks its end but that it finishes."""

    _what = "a chunk of a Gemini answer"
    _whole = "a Gemini answer"
    _reasons = {"stop": "stop", "max_tokens": "length", **dict.fromkeys(_FILTERED, "content_filter")}

    def feed_chunk(self, chunk: Any) -> List[Delta]:
        """Return the deltas in one chunk, which is parsed JSON; errors as :meth:`feed_event`.

        :param chunk: an array, as the API without ``alt=sse`` makes one of all chunks, counts as all
            that is in it.
        """
        if not isinstance(chunk, list):
            return super().feed_chunk(chunk)
        deltas: List[Delta] = []
        for each in chunk:
            deltas += super().feed_chunk(each)
        return deltas

    def feed_whole(self, answer: Any) -> List[Delta]:
        """Return the deltas of an answer in one piece, which is parsed JSON, or of an array of chunks.

        Errors as :meth:`feed_event`.
        """
        if isinstance(answer, list) and answer:
            deltas = self.feed_chunk(answer)
            self.done = True
            return deltas + self._report_usage()
        return super().feed_whole(answer)

    def _read(self, chunk: Dict[str, Any]) -> List[Delta]:
        deltas: List[Delta] = []
        for candidate in list_in(chunk, "candidates"):
            candidate = object_of(candidate, "a candidate")
            if not candidate.get("index"):
                content = object_of(candidate.get("content"), "content")
                for part in list_in(content, "parts"):
                    self._read_part(object_of(part, "a part"), deltas)
                self._finish(_get(candidate, "finishReason"), deltas)
        feedback = _get(chunk, "promptFeedback")
        if isinstance(feedback, dict) and name_of(_get(feedback, "blockReason")):
            self._finish("safety", deltas)
        usage = _get(chunk, "usageMetadata")
        if isinstance(usage, dict):
            self.usage = _usage(usage)
        # It grows with every chunk; that waits for the end.
        if self.finished is not None:
            self.model = name_of(_get(chunk, "modelVersion")) or self.model
            deltas += self._report_usage()
        return deltas

    def _read_whole(self, answer: Dict[str, Any]) -> List[Delta]:
        if not list_in(answer, "candidates") and not _get(answer, "promptFeedback"):
            raise DecodeError(f"{self._whole} must have candidates")
        return self._read(answer)

    def _read_part(self, part: Dict[str, Any], deltas: List[Delta]) -> None:
        text = text_in(part, "text")
        if text:
            deltas.append(ReasoningDelta(text) if part.get("thought") is True else TextDelta(text))
        call = _get(part, "functionCall")
        if call is not None:
            self._read_call(object_of(call, "a function call"), deltas)

    def _read_call(self, call: Dict[str, Any], deltas: List[Delta]) -> None:
        if _get(call, "partialArgs") or _get(call, "willContinue"):
            raise DecodeError(
                "a function call comes in pieces that are no JSON text; ask without"
                " streamFunctionCallArguments"
            )
        arguments = arguments_of(call.get("args")) or "{}"
        id, name = name_of(call.get("id")), name_of(call.get("name"))
        self._add_call(len(self._calls), id, name, arguments, deltas)

    def _finish(self, reason: Any, deltas: List[Delta]) -> None:
        if not isinstance(reason, str) or reason.lower() in ("", "finish_reason_unspecified"):
            return
        finished = self._reasons.get(reason.lower(), "other")
        if finished == "stop" and self._calls:
            finished = "tool_calls"
        if finished != self.finished:
            self.finished = finished
            deltas.append(Finish(finished))


def _get(fields: Dict[str, Any], key: str) -> Any:
    value = fields.get(key)
    return fields.get(_OTHER_NAMES[key]) if value is None else value


def _usage(fields: Dict[str, Any]) -> Usage:
    prompt, tools, text, thoughts, cached = [
        count(fields, key if key in fields else _OTHER_NAMES[key]) for key in _COUNTS
    ]
    return Usage(_sum(prompt, tools), _sum(text, thoughts), thoughts, cached)


def _sum(one: Optional[int], other: Optional[int]) -> Optional[int]:
    return other if one is None else one + (other or 0)
