"""The wire format ``openai``: the chunks of a chat completion, for clients of that API.

::

    the beginning    {"role":"assistant","content":""}
    str, TextDelta   {"content":"…"}
    ReasoningDelta   {"reasoning_content":"…"}
    ToolCallDelta    {"tool_calls":[{"index":0,"id":"…","type":"function","function":{…}}]}
    Usage            at the end: a chunk without choices
    the end          a chunk with the finish_reason, the usage, [DONE]
    a failure        {"error":{"message":"…","type":"…","param":null,"code":"…"}}, [DONE]

These are the deltas of ``choices[0]``. A channel has a choice of its own, in the order of the
channels, which ends in its finish_reason, and without one where the channel has failed. There are no
named events and no ids: clients of this API take the data of whatever comes for a chunk. JSON and
what is an application's own is left out.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from flask_llmstream.sansio.dialect import Call, Dialect, error_type, frame, total_tokens
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.jsontext import dump
from flask_llmstream.sansio.wire import WireFormat

__all__ = ["OpenAIFormat"]

_FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")
_DONE = "data: [DONE]\n\n"


class OpenAIFormat(Dialect):
    """Encodes one answer as ``chat.completion.chunk`` objects.

    :param id: of the completion; the same in all of its chunks.
    :param model: name of the model, as the client may know it.
    :param created: when the answer was begun, in whole seconds of Unix time. Defaults to 0.
    """

    __slots__ = ("_fields", "_choice")

    name = "openai"
    sends_json = False

    def __init__(
        self, id: str = "chatcmpl-llmstream", model: str = "llmstream", created: int = 0
    ) -> None:
        super().__init__(f"call_{id}")
        self._fields = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._choice = 0
        self._tail = '},"finish_reason":null}]}\n\n'

    def _begin(self, kind: str) -> str:
        # A message of tool calls alone has no content, which is not the same as an empty one.
        return self._chunk({"role": "assistant", "content": None if kind == "tool" else ""})

    def _open(self, kind: str) -> str:
        key = "content" if kind == "text" else "reasoning_content"
        self._head = f'data: {dump(self._fields)[:-1]},"choices":[{{"index":{self._choice},"delta":{{"{key}":'
        return ""

    def _open_call(self, call: Call) -> str:
        function = {"name": call.name, "arguments": ""}
        return self._chunk(
            {"tool_calls": [{"index": call.number, "id": call.id, "type": "function", "function": function}]}
        )

    def _call_piece(self, call: Call, arguments: str) -> str:
        return self._chunk(
            {"tool_calls": [{"index": call.number, "function": {"arguments": arguments}}]}
        )

    def _end(self, reason: str) -> str:
        # There is no word for anything else, and clients know only these.
        text = "" if self._channels else self._finish(reason)
        if self._usage is not None:
            text += frame(dict(self._fields, choices=[], usage=_usage_fields(self._usage)))
        return text + _DONE

    def _fail(self, message: str, code: str) -> str:
        error = {"message": message, "type": error_type(code), "param": None, "code": code}
        return frame({"error": error}) + _DONE

    def _finish(self, reason: str) -> str:
        return self._chunk({}, reason if reason in _FINISH_REASONS else "stop")

    def _make_channel(self, name: str, number: int) -> WireFormat:
        self._begun = True  # each choice opens by itself, and clients would add up what comes twice
        return _Choice(self, number)

    def _chunk(self, delta: Dict[str, Any], finish_reason: Optional[str] = None) -> str:
        choice = {"index": self._choice, "delta": delta, "finish_reason": finish_reason}
        return frame(dict(self._fields, choices=[choice]))


class _Choice(OpenAIFormat):
    """Encodes one channel as a choice of a completion."""

    __slots__ = ()

    def __init__(self, completion: OpenAIFormat, number: int) -> None:
        super().__init__()
        self._fields = completion._fields
        self._choice = number - 1
        self._call_prefix = f"{completion._call_prefix}_{number}"

    def _end(self, reason: str) -> str:
        return self._finish(reason)

    def _fail(self, message: str, code: str) -> str:
        return ""


def _usage_fields(usage: Usage) -> Dict[str, Any]:
    fields: Dict[str, Any] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": total_tokens(usage),
    }
    if usage.cached_tokens is not None:
        fields["prompt_tokens_details"] = {"cached_tokens": usage.cached_tokens}
    if usage.reasoning_tokens is not None:
        fields["completion_tokens_details"] = {"reasoning_tokens": usage.reasoning_tokens}
    return fields
