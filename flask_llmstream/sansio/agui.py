"""The wire format ``ag-ui``: the events of a run, for clients of the AG-UI protocol.

::

    the beginning    RUN_STARTED
    str, TextDelta   TEXT_MESSAGE_START, TEXT_MESSAGE_CONTENT, TEXT_MESSAGE_END
    ReasoningDelta   REASONING_START, REASONING_MESSAGE_START, …_CONTENT, …_END, REASONING_END
    ToolCallDelta    TOOL_CALL_START, TOOL_CALL_ARGS, TOOL_CALL_END
    JsonDelta        STATE_DELTA with a JSON Patch; STATE_SNAPSHOT where it is the whole value
    dict, list       STATE_SNAPSHOT
    Event, Custom    CUSTOM
    the end          RUN_FINISHED with the usage; its outcome where the answer was cancelled
    a failure        RUN_ERROR

A patch cannot make a text grow (RFC 6902), so ``append`` replaces the text by all that has come of
it: once it has grown by an eighth, since doing so each time costs bytes with the square of its length.
What is missing comes when the text is complete, or something else does. Beyond that ``complete`` says
nothing that a state could hold. Why the model stopped has no place here.

https://docs.ag-ui.com/concepts/events
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from flask_llmstream.sansio.dialect import Call, Dialect, frame, total_tokens
from flask_llmstream.sansio.events import JsonDelta, Usage
from flask_llmstream.sansio.jsondelta.patch import JsonPatcher, Operation
from flask_llmstream.sansio.jsondelta.pointer import token_of

__all__ = ["AGUIFormat"]


class AGUIFormat(Dialect):
    """Encodes one answer as the events of a run.

    :param thread_id: the ``threadId`` of the request.
    :param run_id: the ``runId`` of the request. Ids of messages are made of it.
    """

    __slots__ = ("_thread_id", "_run_id", "_opened", "_parent", "_state_texts", "_growing", "_patcher")

    name = "ag-ui"

    def __init__(self, thread_id: str = "thread-llmstream", run_id: str = "run-llmstream") -> None:
        super().__init__(f"call-{run_id}")
        self._thread_id = thread_id
        self._run_id = run_id
        self._opened = 0
        self._parent = ""  # id of the message that calls belong to; none behind reasoning
        self._state_texts: Dict[str, str] = {}  # the texts in the client's state, by their paths
        self._growing: Optional[str] = None  # path of the one that the patcher has
        self._patcher = JsonPatcher()

    def _begin(self, kind: str) -> str:
        return self._run("RUN_STARTED")

    def _open(self, kind: str) -> str:
        self._opened += 1
        id = self._message_id()
        self._parent = id if kind == "text" else ""
        if kind == "text":
            event = "TEXT_MESSAGE"
            text = _event("TEXT_MESSAGE_START", messageId=id, role="assistant")
        else:
            event = "REASONING_MESSAGE"
            text = _event("REASONING_START", messageId=id)
            text += _event("REASONING_MESSAGE_START", messageId=id, role="reasoning")
        # All but the last brace and the blank line.
        self._head = _event(f"{event}_CONTENT", messageId=id)[:-3] + ',"delta":'
        return text

    def _close(self, kind: str) -> str:
        id = self._message_id()
        if kind == "text":
            return _event("TEXT_MESSAGE_END", messageId=id)
        return _event("REASONING_MESSAGE_END", messageId=id) + _event("REASONING_END", messageId=id)

    def _message_id(self) -> str:
        return f"{self._run_id}-{self._opened}"

    def _open_call(self, call: Call) -> str:
        if not self._parent:
            self._opened += 1
            self._parent = self._message_id()
        return _event(
            "TOOL_CALL_START", toolCallId=call.id, toolCallName=call.name, parentMessageId=self._parent
        )

    def _call_piece(self, call: Call, arguments: str) -> str:
        return _event("TOOL_CALL_ARGS", toolCallId=call.id, delta=arguments)

    def _json(self, path: str, op: str, value: Any) -> str:
        text = ""
        if op != "append" or path != self._growing:
            text = self._settle()
        if op == "complete":
            return text
        if op == "append":
            if self._growing is None:
                self._growing = path
                self._patcher.feed(JsonDelta(path, "add", self._state_texts.get(path, "")))
            return text + self._grow(self._patcher.feed(JsonDelta(path, op, value)))
        if not path:
            return text + self._document(value)
        self._remember(path, value)
        return text + self._patch({"op": op, "path": path, "value": value})

    def _grow(self, operations: List[Operation]) -> str:
        text = ""
        for operation in operations:
            path, value = operation["path"], operation["value"]
            self._state_texts[path] = value
            text += self._patch(operation) if path else self._snapshot(value)
        return text

    def _settle(self) -> str:
        """Write what is missing of the text that grows; no other may grow before."""
        if self._growing is None:
            return ""
        self._growing = None
        return self._grow(self._patcher.flush())

    def _patch(self, operation: Operation) -> str:
        return self._start("data") + _event("STATE_DELTA", delta=[operation])

    def _snapshot(self, value: Any) -> str:
        return self._start("data") + _event("STATE_SNAPSHOT", snapshot=value)

    def _document(self, value: Any) -> str:
        self._growing = None
        self._state_texts = {}
        self._remember("", value)
        return self._snapshot(value)

    def _remember(self, path: str, value: Any) -> None:
        """Note the texts in *value*, which one of the next deltas may make longer."""
        if isinstance(value, str):
            self._state_texts[path] = value
        elif isinstance(value, dict):
            for key, member in value.items():
                self._remember(f"{path}/{token_of(str(key))}", member)
        elif isinstance(value, list):
            for index, member in enumerate(value):
                self._remember(f"{path}/{index}", member)

    def _custom(self, name: str, data: Any) -> str:
        return self._start("data") + self._settle() + _event("CUSTOM", name=name, value=data)

    def _end(self, reason: str) -> str:
        text = self._settle() + self._leave()
        for call in self._calls:
            text += _event("TOOL_CALL_END", toolCallId=call.id)
        fields: Dict[str, Any] = {} if self._usage is None else {"usage": _usage_list(self._usage)}
        if reason == "cancelled":
            fields["outcome"] = {"type": "cancelled"}
        return text + self._run("RUN_FINISHED", **fields)

    def _fail(self, message: str, code: str) -> str:
        # An error ends what is open; ends of it would say that it is whole.
        fields: Dict[str, Any] = {} if self._usage is None else {"usage": _usage_list(self._usage)}
        text = self._start("") + self._settle()
        return text + _event("RUN_ERROR", message=message, code=code, **fields)

    def _run(self, type: str, **fields: Any) -> str:
        return _event(type, threadId=self._thread_id, runId=self._run_id, **fields)


def _event(type: str, **fields: Any) -> str:
    return frame(dict(type=type, **fields))


def _usage_list(usage: Usage) -> List[Dict[str, int]]:
    fields = {
        "inputTokens": usage.input_tokens,
        "outputTokens": usage.output_tokens,
        "totalTokens": total_tokens(usage),
        "reasoningTokens": usage.reasoning_tokens,
        "cachedInputTokens": usage.cached_tokens,
    }
    return [{key: count for key, count in fields.items() if count is not None}]
