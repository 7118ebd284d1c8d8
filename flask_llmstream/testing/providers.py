"""What a scripted upstream says in the words of a provider: steps from plain deltas.

::

    ScriptedUpstream(speak("anthropic", "Hel", "lo", Finish("stop"), Usage(7, 2)))
    ScriptedUpstream(speak("ollama", ReasoningDelta("Hm."), "Hello", silence()))

Decisions
    1. Written from the providers' documents, not with this package's own encoders: what reads it
       must not be tested against its twin.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional, Type, Union

from flask_llmstream.sansio.events import (
    Delta,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.testing.scripts import Step, headers, raw

__all__ = ["PROVIDERS", "speak"]


def speak(provider: str, *items: Union[str, Delta, Step]) -> List[Step]:
    """Return the steps that send *items* as *provider* does, each in an HTTP chunk of its own.

    :param provider: one of :data:`PROVIDERS`.
    :param items: texts, deltas, and steps for what happens in between. The answer is complete where
        a :class:`Finish` is among them, which a :class:`Usage` may follow; otherwise the script ends
        in the middle of it. Tool calls must be whole for Ollama and Gemini.
    :raises KeyError: for a provider that is not known.
    """
    voice = _VOICES[provider]()
    usage = next((item for item in items if isinstance(item, Usage)), None)
    steps = [headers({"Content-Type": voice.content_type}), *map(raw, voice.begin(usage or Usage()))]
    for item in items:
        if isinstance(item, Step):
            steps.append(item)
        elif isinstance(item, Finish):
            steps += map(raw, voice.end(item.reason, usage))
        elif not isinstance(item, Usage):
            steps += map(raw, voice.say(TextDelta(item) if isinstance(item, str) else item))
    return steps


class _Voice:
    content_type = "text/event-stream"

    def __init__(self) -> None:
        self.index = -1
        self.kind = ""

    def begin(self, usage: Usage) -> List[bytes]:
        return []

    def say(self, item: Any) -> List[bytes]:
        raise NotImplementedError

    def end(self, reason: str, usage: Optional[Usage]) -> List[bytes]:
        raise NotImplementedError


def _dump(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def _named(data: Dict[str, Any]) -> bytes:
    return f"event: {data['type']}\n".encode() + b"data: " + _dump(data) + b"\n\n"


class _OpenAI(_Voice):
    def _chunk(self, delta: Dict[str, Any], finish_reason: Optional[str] = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        data = {
            "id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 1700000000,
            "model": "scripted", "choices": [choice], **more,
        }
        return b"data: " + _dump(data) + b"\n\n"

    def begin(self, usage: Usage) -> List[bytes]:
        return [self._chunk({"role": "assistant", "content": ""})]

    def say(self, item: Any) -> List[bytes]:
        if isinstance(item, ReasoningDelta):
            return [self._chunk({"reasoning_content": item.text})]
        if isinstance(item, TextDelta):
            return [self._chunk({"content": item.text})]
        call: Dict[str, Any] = {"index": item.index, "function": {"arguments": item.arguments}}
        if item.id:
            call.update(id=item.id, type="function")
            call["function"]["name"] = item.name
        return [self._chunk({"tool_calls": [call]})]

    def end(self, reason: str, usage: Optional[Usage]) -> List[bytes]:
        frames = [self._chunk({}, reason)]
        if usage is not None:
            counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
            total = (usage.input_tokens or 0) + (usage.output_tokens or 0)
            frames.append(self._chunk({}, usage=dict(counts, total_tokens=total), choices=[]))
        return frames + [b"data: [DONE]\n\n"]


class _Anthropic(_Voice):
    def begin(self, usage: Usage) -> List[bytes]:
        message: Dict[str, Any] = {
            "id": "msg_scripted", "type": "message", "role": "assistant", "model": "scripted",
            "content": [], "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": usage.input_tokens or 7, "output_tokens": 1},
        }
        return [_named({"type": "message_start", "message": message}), _named({"type": "ping"})]

    def say(self, item: Any) -> List[bytes]:
        if isinstance(item, ToolCallDelta):
            block: Dict[str, Any] = {"type": "tool_use", "id": item.id, "name": item.name, "input": {}}
            frames = self._block(f"tool {item.index}", block)
            delta = {"type": "input_json_delta", "partial_json": item.arguments}
        elif isinstance(item, ReasoningDelta):
            frames = self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            delta = {"type": "thinking_delta", "thinking": item.text}
        else:
            frames = self._block("text", {"type": "text", "text": ""})
            delta = {"type": "text_delta", "text": item.text}
        frames.append(_named({"type": "content_block_delta", "index": self.index, "delta": delta}))
        return frames

    def _block(self, kind: str, block: Optional[Dict[str, Any]]) -> List[bytes]:
        if kind == self.kind:
            return []
        frames = []
        if self.kind:
            frames.append(_named({"type": "content_block_stop", "index": self.index}))
        self.kind = kind
        if block is not None:
            self.index += 1
            data = {"type": "content_block_start", "index": self.index, "content_block": block}
            frames.append(_named(data))
        return frames

    def end(self, reason: str, usage: Optional[Usage]) -> List[bytes]:
        words = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
        data = {
            "type": "message_delta",
            "delta": {"stop_reason": words.get(reason, "refusal"), "stop_sequence": None},
            "usage": {"output_tokens": (usage or Usage()).output_tokens or 1},
        }
        return self._block("", None) + [_named(data), _named({"type": "message_stop"})]


class _Responses(_Voice):
    def __init__(self) -> None:
        super().__init__()
        self.number = -1
        self.text = ""
        self.output: List[Dict[str, Any]] = []

    def _event(self, kind: str, **fields: Any) -> bytes:
        self.number += 1
        return _named({"type": f"response.{kind}", "sequence_number": self.number, **fields})

    def _response(self, status: str, **more: Any) -> Dict[str, Any]:
        return {
            "id": "resp_scripted", "object": "response", "created_at": 1700000000, "status": status,
            "model": "scripted", "output": self.output, "parallel_tool_calls": True, "tool_choice": "auto",
            "tools": [], "error": None, "incomplete_details": None, "metadata": {}, **more,
        }

    def begin(self, usage: Usage) -> List[bytes]:
        return [self._event("created", response=self._response("in_progress"))]

    def say(self, item: Any) -> List[bytes]:
        if isinstance(item, ToolCallDelta):
            call = {"id": f"fc_{item.index}", "type": "function_call", "call_id": item.id,
                    "name": item.name, "arguments": "", "status": "in_progress"}
            frames = self._item(f"fc_{item.index}", call)
            at = {"item_id": f"fc_{item.index}", "output_index": self.index}
            self.text += item.arguments
            return frames + [self._event("function_call_arguments.delta", delta=item.arguments, **at)]
        if isinstance(item, ReasoningDelta):
            frames = self._item("rs_0", {"id": "rs_0", "type": "reasoning", "summary": []})
            at = {"item_id": "rs_0", "output_index": self.index}
            self.text += item.text
            return frames + [
                self._event("reasoning_summary_text.delta", delta=item.text, summary_index=0, **at)
            ]
        fresh = self.kind != "msg_0"
        message = {
            "id": "msg_0", "type": "message", "role": "assistant", "status": "in_progress", "content": [],
        }
        frames = self._item("msg_0", message)
        at = {"item_id": "msg_0", "output_index": self.index, "content_index": 0}
        if fresh:
            part = {"type": "output_text", "text": "", "annotations": []}
            frames.append(self._event("content_part.added", part=part, **at))
        self.text += item.text
        return frames + [self._event("output_text.delta", delta=item.text, logprobs=[], **at)]

    def _item(self, kind: str, item: Optional[Dict[str, Any]]) -> List[bytes]:
        if kind == self.kind:
            return []
        frames = self._complete()
        self.kind, self.text = kind, ""
        if item is not None:
            self.index += 1
            self.output = [*self.output, item]
            frames.append(self._event("output_item.added", output_index=self.index, item=item))
        return frames

    def _complete(self) -> List[bytes]:
        """End the item that is open."""
        if not self.kind:
            return []
        item = dict(self.output[-1])
        at: Dict[str, Any] = {"item_id": item["id"], "output_index": self.index}
        frames = []
        if item["type"] == "message":
            part = {"type": "output_text", "text": self.text, "annotations": []}
            item.update(status="completed", content=[part])
            at["content_index"] = 0
            frames.append(self._event("output_text.done", text=self.text, logprobs=[], **at))
            frames.append(self._event("content_part.done", part=part, **at))
        elif item["type"] == "function_call":
            item.update(status="completed", arguments=self.text)
            said = {"arguments": self.text, "name": item["name"], **at}
            frames.append(self._event("function_call_arguments.done", **said))
        else:
            item.update(summary=[{"type": "summary_text", "text": self.text}])
        self.output = [*self.output[:-1], item]
        return frames + [self._event("output_item.done", output_index=self.index, item=item)]

    def end(self, reason: str, usage: Optional[Usage]) -> List[bytes]:
        frames = self._item("", None)
        status = "completed"
        more: Dict[str, Any] = {}
        if reason in ("length", "content_filter"):
            status = "incomplete"
            why = {"length": "max_output_tokens"}.get(reason, reason)
            more["incomplete_details"] = {"reason": why}
        if usage is not None:
            inputs, outputs = usage.input_tokens or 0, usage.output_tokens or 0
            more["usage"] = {
                "input_tokens": inputs, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": outputs, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": inputs + outputs,
            }
        return frames + [self._event(status, response=self._response(status, **more))]


class _Ollama(_Voice):
    content_type = "application/x-ndjson"

    def _line(self, message: Dict[str, Any], **more: Any) -> bytes:
        said = {"role": "assistant", "content": "", **message}
        data = {
            "model": "scripted", "created_at": "2026-01-01T00:00:00Z", "message": said, "done": False, **more
        }
        return _dump(data) + b"\n"

    def say(self, item: Any) -> List[bytes]:
        if isinstance(item, ToolCallDelta):
            call = {"function": {"name": item.name, "arguments": json.loads(item.arguments)}}
            return [self._line({"tool_calls": [call]})]
        key = "thinking" if isinstance(item, ReasoningDelta) else "content"
        return [self._line({key: item.text})]

    def end(self, reason: str, usage: Optional[Usage]) -> List[bytes]:
        counts = {}
        if usage is not None:
            counts = {"prompt_eval_count": usage.input_tokens, "eval_count": usage.output_tokens}
        return [self._line({}, done=True, done_reason="length" if reason == "length" else "stop", **counts)]


class _Gemini(_Voice):
    def _chunk(
        self, part: Dict[str, Any], finish: Optional[str] = None, usage: Optional[Usage] = None
    ) -> bytes:
        self.index += 1
        candidate: Dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
        if finish is not None:
            candidate["finishReason"] = finish
        known = usage or Usage(7, self.index + 1)
        counts = {"promptTokenCount": known.input_tokens, "candidatesTokenCount": known.output_tokens}
        counts["totalTokenCount"] = (known.input_tokens or 0) + (known.output_tokens or 0)
        data = {"candidates": [candidate], "usageMetadata": counts, "modelVersion": "scripted"}
        return b"data: " + _dump(data) + b"\r\n\r\n"

    def say(self, item: Any) -> List[bytes]:
        if isinstance(item, ToolCallDelta):
            return [self._chunk({"functionCall": {"name": item.name, "args": json.loads(item.arguments)}})]
        more = {"thought": True} if isinstance(item, ReasoningDelta) else {}
        return [self._chunk({"text": item.text, **more})]

    def end(self, reason: str, usage: Optional[Usage]) -> List[bytes]:
        words = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
        return [self._chunk({"text": ""}, words.get(reason, "STOP"), usage)]


_VOICES: Dict[str, Type[_Voice]] = {
    "openai": _OpenAI,
    "openai-responses": _Responses,
    "anthropic": _Anthropic,
    "ollama": _Ollama,
    "gemini": _Gemini,
}
#: The providers that :func:`speak` knows.
PROVIDERS = tuple(_VOICES)
