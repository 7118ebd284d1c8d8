"""The wire format ``anthropic``: the events of a message, for clients of that API.

::

    the beginning    message_start
    str, TextDelta   content_block_delta: text_delta
    ReasoningDelta   content_block_delta: thinking_delta
    ToolCallDelta    content_block_delta: input_json_delta
    the end          message_delta with stop_reason and usage, message_stop
    a failure        error
    a heartbeat      ping

Blocks are opened and closed around their deltas, one at a time. JSON and what is an application's
own is left out. Usage counts must be numbers here: what is unknown is 0.
"""

from __future__ import annotations

from typing import Any, Dict, Optional

from flask_llmstream.sansio.dialect import Call, Dialect, error_type, frame
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.jsontext import dump

__all__ = ["AnthropicFormat"]

_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use", "content_filter": "refusal"}
_BLOCKS: Dict[str, Dict[str, Any]] = {
    "text": {"type": "text", "text": ""},
    "reasoning": {"type": "thinking", "thinking": "", "signature": ""},
}
_PIECES = {"text": '"text_delta","text":', "reasoning": '"thinking_delta","thinking":'}


class AnthropicFormat(Dialect):
    """Encodes one answer as the events of a message.

    :param id: of the message.
    :param model: name of the model, as the client may know it.
    """

    __slots__ = ("_id", "_model", "_blocks")

    name = "anthropic"
    sends_json = False
    heartbeat: Optional[bytes] = frame({"type": "ping"}, "ping").encode("ascii")

    def __init__(self, id: str = "msg_llmstream", model: str = "llmstream") -> None:
        super().__init__(f"toolu_{id}")
        self._id = id
        self._model = model
        self._blocks = 0
        self._tail = "}}\n\n"

    def _begin(self, kind: str) -> str:
        usage = self._usage or Usage()
        message: Dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": dict(_input_fields(usage), output_tokens=0),
        }
        return _event("message_start", message=message)

    def _open(self, kind: str) -> str:
        block = self._open_block(_BLOCKS[kind])
        index = self._blocks - 1
        self._head = (
            f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{index},'
            f'"delta":{{"type":{_PIECES[kind]}'
        )
        return block

    def _open_block(self, block: Dict[str, Any]) -> str:
        self._blocks += 1
        return _event("content_block_start", index=self._blocks - 1, content_block=block)

    def _close(self, kind: str) -> str:
        return _event("content_block_stop", index=self._blocks - 1)

    def _open_call(self, call: Call) -> str:
        call.place = self._blocks
        self._part = "tool"
        return self._open_block({"type": "tool_use", "id": call.id, "name": call.name, "input": {}})

    def _call_piece(self, call: Call, arguments: str) -> str:
        # Of a call whose block is closed by now, too, where a provider mixes calls: clients go by
        # the index, and a piece that is held back until the end would be of less use.
        return (
            'event: content_block_delta\ndata: {"type":"content_block_delta","index":'
            f'{call.place},"delta":{{"type":"input_json_delta","partial_json":{dump(arguments)}}}}}\n\n'
        )

    def _end(self, reason: str) -> str:
        usage = self._usage or Usage()
        counts: Dict[str, Any] = {"output_tokens": usage.output_tokens or 0}
        if usage.input_tokens is not None:
            counts.update(_input_fields(usage))
        if usage.reasoning_tokens is not None:
            counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
        delta = {"stop_reason": _STOP_REASONS.get(reason, "end_turn"), "stop_sequence": None}
        text = self._leave() + _event("message_delta", delta=delta, usage=counts)
        return text + _event("message_stop")

    def _fail(self, message: str, code: str) -> str:
        return self._leave() + _event("error", error={"type": error_type(code), "message": message})


def _event(type: str, **fields: Any) -> str:
    return frame(dict(type=type, **fields), type)


def _input_fields(usage: Usage) -> Dict[str, Any]:
    # Here input_tokens are those that were not in the cache.
    cached = usage.cached_tokens
    fields = {"input_tokens": max(0, (usage.input_tokens or 0) - (cached or 0))}
    if cached is not None:
        fields["cache_read_input_tokens"] = cached
    return fields
