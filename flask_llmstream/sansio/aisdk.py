"""The wire format ``ai-sdk``: the UI message stream, version 1, of the Vercel AI SDK 5 to 7.

::

    the beginning    start, start-step
    str, TextDelta   text-start, text-delta, text-end
    ReasoningDelta   reasoning-start, reasoning-delta, reasoning-end
    ToolCallDelta    tool-input-start, tool-input-delta, tool-input-available or tool-input-error
    JsonDelta        data-json-delta   {"path":"/a","op":"add","value":…}, for onData only
    dict, list       data-json         the value; a later one takes its place
    Event            data-<its name>   or data-event
    Custom           data-<its name>   or a part of the protocol, see below
    the end          finish-step, finish with finishReason and the usage in messageMetadata, [DONE]
    cancelled        message-metadata with the usage, abort, [DONE]
    a failure        error with errorText, [DONE]
    a channel        parts of its own, open at the same time; providerMetadata.llmstream.channel
                     of text and reasoning, and data.channel of data parts, say which it is
    a channel's end  data-channel      {"channel":"a","state":"done","reason":"stop"}
                                       {"channel":"a","state":"failed","message":"…","code":"…"}

A ``Custom`` whose name is one of these, and whose data has the fields that the part must have,
becomes that part: ``source-url``, ``source-document``, ``file``, ``message-metadata``,
``tool-output-available``, ``tool-output-error``, ``tool-output-denied``, ``tool-approval-request``.

Decisions: 1. Clients of version 5 and 6 throw at a part that they do not know, so what only version
7 knows goes as ``data-…`` unless it is asked for. 2. A call's input is declared at the end of the
answer, or before its result: only then is it certain that no piece of it is missing, and the client
runs the tool when it hears so. 3. One channel's failure is data: an ``error`` would end the others.

https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol
"""

from __future__ import annotations

import json
from typing import Any, Dict, Optional, Tuple

from flask_llmstream.sansio.dialect import Call, Dialect, frame, total_tokens
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.jsontext import dump
from flask_llmstream.sansio.wire import WireFormat

__all__ = ["AISDKFormat"]

_FINISH_REASONS = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool-calls",
    "content_filter": "content-filter",
}
#: Parts that a ``Custom`` can become, with the fields that each must have.
_PARTS: Dict[str, Tuple[str, ...]] = {
    "source-url": ("sourceId", "url"),
    "source-document": ("sourceId", "mediaType", "title"),
    "file": ("url", "mediaType"),
    "message-metadata": ("messageMetadata",),
    "tool-output-available": ("toolCallId", "output"),
    "tool-output-error": ("toolCallId", "errorText"),
    "tool-output-denied": ("toolCallId",),
    "tool-approval-request": ("approvalId", "toolCallId"),
}
_PARTS_OF_7: Dict[str, Tuple[str, ...]] = {
    "reasoning-file": ("url", "mediaType"),
    "custom": ("kind",),
    "tool-approval-response": ("approvalId", "approved"),
    "reset-step": (),
}
#: Fields of theirs that may be anything; a client throws where one of the others is no text.
_NOT_TEXT = ("output", "messageMetadata", "approved")
_DONE = "data: [DONE]\n\n"


class AISDKFormat(Dialect):
    """Encodes one answer as the parts of a UI message.

    :param id: of the message. Defaults to none: the client makes one.
    :param version: of the AI SDK whose parts may be sent. Defaults to 6; from 7 on a ``Custom`` can
        be a ``reasoning-file``, ``custom``, ``tool-approval-response`` or ``reset-step``, too.
    """

    __slots__ = ("_id", "_parts", "_opened")

    name = "ai-sdk"
    headers = (("x-vercel-ai-ui-message-stream", "v1"),)

    def __init__(self, id: Optional[str] = None, version: int = 6) -> None:
        super().__init__("call" if id is None else f"call_{id}")
        self._id = id
        self._parts = _PARTS if version < 7 else dict(_PARTS, **_PARTS_OF_7)
        self._opened = 0

    def _begin(self, kind: str) -> str:
        message = {} if self._id is None else {"messageId": self._id}
        return _part("start", **message) + _part("start-step")

    def _open(self, kind: str) -> str:
        self._opened += 1
        id = self._part_id(kind)
        self._head = f'data: {{"type":"{kind}-delta","id":"{id}","delta":'
        return _part(f"{kind}-start", id=id)

    def _close(self, kind: str) -> str:
        return _part(f"{kind}-end", id=self._part_id(kind))

    def _part_id(self, kind: str) -> str:
        return f"{kind}-{self._opened}"

    def _open_call(self, call: Call) -> str:
        return _part("tool-input-start", toolCallId=call.id, toolName=call.name)

    def _call_piece(self, call: Call, arguments: str) -> str:
        return "" if call.ended else _part(
            "tool-input-delta", toolCallId=call.id, inputTextDelta=arguments
        )

    def _close_calls(self, error: str = "") -> str:
        """Declare the input of calls that have none declared yet, or that it will not come."""
        text = ""
        for call in self._calls:
            if call.ended:
                continue
            call.ended = True
            fields = {"toolCallId": call.id, "toolName": call.name}
            arguments = "".join(call.arguments)
            written = "" if error else _as_json(arguments or "{}")
            if written:
                text += _part("tool-input-available", **fields)[:-3] + f',"input":{written}}}\n\n'
            else:
                problem = error or "the arguments of the call are not JSON"
                text += _part("tool-input-error", **fields, input=arguments, errorText=problem)
        return text

    def _json(self, path: str, op: str, value: Any) -> str:
        # Transient: as parts of the message there would soon be thousands of them.
        data = {"path": path, "op": op, "value": value}
        return self._start("data") + _part("data-json-delta", data=data, transient=True)

    def _document(self, value: Any) -> str:
        return self._start("data") + _part("data-json", id="json", data=value)

    def _custom(self, name: str, data: Any) -> str:
        text = self._start("data")
        required = self._parts.get(name)
        if required is None or not _has(data, required):
            return text + _part(f"data-{name}", data=data)
        if name == "reset-step":
            text += self._leave()
            # The client drops them with the rest of the step.
            del self._calls[:]
            self._by_index.clear()
        if name.startswith("tool-output"):
            text += self._close_calls()
        return text + frame(dict(data, type=name))

    def _end(self, reason: str) -> str:
        metadata = {} if self._usage is None else {
            "messageMetadata": {"usage": _usage_fields(self._usage)}
        }
        if reason == "cancelled":
            text = self._leave() + self._close_calls("the answer was cancelled")
            if metadata:
                text += _part("message-metadata", **metadata)
            return text + _part("abort", reason=reason) + _DONE
        text = self._leave() + self._close_calls() + _part("finish-step")
        finish = _FINISH_REASONS.get(reason, "other")
        return text + _part("finish", finishReason=finish, **metadata) + _DONE

    def _fail(self, message: str, code: str) -> str:
        return self._leave() + self._close_calls(message) + _part("error", errorText=message) + _DONE

    def _make_channel(self, name: str, number: int) -> WireFormat:
        return _Channel(self, name, number)


class _Channel(AISDKFormat):
    """Encodes one channel of a message as parts of its own."""

    __slots__ = ("_message", "_name", "_number")

    def __init__(self, message: AISDKFormat, name: str, number: int) -> None:
        super().__init__()
        self._message = message
        self._name = name
        self._number = number
        self._parts = message._parts
        self._call_prefix = f"{message._call_prefix}_{number}"

    def _start(self, kind: str) -> str:
        return self._message._start(kind)

    def _part_id(self, kind: str) -> str:
        return f"{kind}-{self._number}-{self._opened}"

    def _open(self, kind: str) -> str:
        super()._open(kind)
        metadata = {"llmstream": {"channel": self._name}}
        return _part(f"{kind}-start", id=self._part_id(kind), providerMetadata=metadata)

    def _json(self, path: str, op: str, value: Any) -> str:
        data = {"channel": self._name, "path": path, "op": op, "value": value}
        return self._start("data") + _part("data-json-delta", data=data, transient=True)

    def _document(self, value: Any) -> str:
        data = {"channel": self._name, "data": value}
        return self._start("data") + _part("data-json", id=f"json-{self._number}", data=data)

    def _custom(self, name: str, data: Any) -> str:
        if name in self._parts and _has(data, self._parts[name]):
            return super()._custom(name, data)
        return super()._custom(name, {"channel": self._name, "data": data})

    def _end(self, reason: str) -> str:
        error = "the answer was cancelled" if reason == "cancelled" else ""
        return self._leave() + self._close_calls(error) + self._state("done", reason=reason)

    def _fail(self, message: str, code: str) -> str:
        text = self._start("") + self._leave() + self._close_calls(message)
        return text + self._state("failed", message=message, code=code)

    def _state(self, state: str, **fields: Any) -> str:
        return _part("data-channel", data=dict(channel=self._name, state=state, **fields))


def _part(type: str, **fields: Any) -> str:
    return frame(dict(type=type, **fields))


def _has(data: Any, required: Tuple[str, ...]) -> bool:
    return isinstance(data, dict) and all(
        key in data and (key in _NOT_TEXT or isinstance(data[key], str)) for key in required
    )


def _as_json(arguments: str) -> str:
    """Return *arguments* as one line of JSON, ``""`` for what is none."""
    try:
        # json reads more than JSON can say, 1e999 for one: what cannot be written again is none.
        return dump(json.loads(arguments))
    except (ValueError, RecursionError):
        return ""


def _usage_fields(usage: Usage) -> Dict[str, int]:
    fields = {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "totalTokens": total_tokens(usage),
        "reasoningTokens": usage.reasoning_tokens,
        "cachedInputTokens": usage.cached_tokens,
    }
    return {key: count for key, count in fields.items() if count is not None}
