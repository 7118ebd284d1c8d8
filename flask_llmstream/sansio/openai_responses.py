"""The wire format ``openai-responses``: the events of OpenAI's Responses API, for its clients.

::

    the beginning    response.created, response.in_progress
    str, TextDelta   response.output_text.delta, in an item and a content part of its own
    ReasoningDelta   response.reasoning_summary_text.delta, in an item and a part of its own
    ToolCallDelta    response.function_call_arguments.delta, in an item of its own
    the end          response.completed with the whole answer and the usage
    cut short        response.incomplete: length, content_filter, cancelled
    a failure        response.failed

Items are opened and closed around their deltas; a call ends with the answer, when it is certain
that no piece of it is missing. Every event has its number. JSON and what is an application's own is
left out. The last event holds the whole answer, which is therefore kept until then.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple

from flask_llmstream.sansio.dialect import Call, Dialect, frame, total_tokens
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.jsontext import dump, quote

__all__ = ["OpenAIResponsesFormat"]

_CUT_SHORT = {"length": "max_output_tokens", "content_filter": "content_filter", "cancelled": None}


class _Kind(NamedTuple):
    """How a kind of part is called here."""

    item: str
    prefix: str
    parts: str
    position: str
    part: str
    text: str
    #: What a part has besides its text.
    fields: Dict[str, Any]
    #: What an event with its text has besides.
    details: Dict[str, Any]


_KINDS = {
    "text": _Kind(
        "message", "msg", "content", "content_index", "content_part", "output_text",
        {"type": "output_text", "annotations": []}, {"logprobs": []},
    ),
    "reasoning": _Kind(
        "reasoning", "rs", "summary", "summary_index", "reasoning_summary_part",
        "reasoning_summary_text", {"type": "summary_text"}, {},
    ),
}


class OpenAIResponsesFormat(Dialect):
    """Encodes one answer as the events of a response.

    :param id: of the response.
    :param model: name of the model, as the client may know it.
    :param created: when the answer was begun, in seconds of Unix time. Defaults to 0.
    """

    __slots__ = ("_response", "_id", "_sequence", "_items", "_texts")

    name = "openai-responses"
    sends_json = False

    def __init__(
        self, id: str = "resp_llmstream", model: str = "llmstream", created: float = 0
    ) -> None:
        super().__init__(f"call_{id}")
        self._id = id
        # The fields that official clients count on finding.
        self._response: Dict[str, Any] = {
            "id": id,
            "object": "response",
            "created_at": created,
            "model": model,
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "parallel_tool_calls": True,
            "temperature": None,
            "tool_choice": "auto",
            "tools": [],
            "top_p": None,
        }
        self._sequence = 0
        self._items: List[Dict[str, Any]] = []
        self._texts: List[str] = []  # of the open part

    def _begin(self, kind: str) -> str:
        response = dict(self._response, status="in_progress", output=[], usage=None)
        return self._say("created", response=response) + self._say("in_progress", response=response)

    def _piece(self, text: str) -> str:
        self._texts.append(text)
        return f'{self._head}{quote(text)},"sequence_number":{self._next()}}}\n\n'

    def _open(self, kind: str) -> str:
        words = _KINDS[kind]
        role = {"role": "assistant"} if kind == "text" else {}
        text = self._open_item(words.item, words.prefix, **role, **{words.parts: []})
        at = self._at(words)
        type = f"response.{words.text}.delta"
        fields = dump(dict(at, type=type, **words.details))[:-1]
        self._head = f'event: {type}\ndata: {fields},"delta":'
        return text + self._say(f"{words.part}.added", **at, part=dict(words.fields, text=""))

    def _close(self, kind: str) -> str:
        return self._close_part(kind, "completed")

    def _close_part(self, kind: str, status: str) -> str:
        words, whole = _KINDS[kind], "".join(self._texts)
        self._texts = []
        at, part = self._at(words), dict(words.fields, text=whole)
        self._items[-1][words.parts] = [part]
        text = self._say(f"{words.text}.done", **at, text=whole, **words.details)
        text += self._say(f"{words.part}.done", **at, part=part)
        return text + self._close_item(len(self._items) - 1, status)

    def _open_call(self, call: Call) -> str:
        call.place = len(self._items)
        return self._open_item(
            "function_call", "fc", call_id=call.id, name=call.name, arguments=""
        )

    def _call_piece(self, call: Call, arguments: str) -> str:
        return self._say(
            "function_call_arguments.delta", **self._at_item(call.place), delta=arguments
        )

    def _close_all(self, status: str) -> str:
        kind, self._part = self._part, ""
        text = self._close_part(kind, status) if kind else ""
        for call in self._calls:
            item, arguments = self._items[call.place], "".join(call.arguments)
            item["arguments"] = arguments
            text += self._say(
                "function_call_arguments.done",
                **self._at_item(call.place), name=call.name, arguments=arguments,
            )
            text += self._close_item(call.place, status)
        return text

    def _end(self, reason: str) -> str:
        if reason in _CUT_SHORT:
            details = {"reason": _CUT_SHORT[reason]}
            return self._last("incomplete", "incomplete", incomplete_details=details)
        return self._last("completed", "completed")

    def _fail(self, message: str, code: str) -> str:
        known = "rate_limit_exceeded" if code == "upstream_rate_limited" else "server_error"
        error = {"code": known, "message": message}
        return self._start("") + self._last("failed", "incomplete", error=error)

    def _last(self, status: str, status_of_items: str, **fields: Any) -> str:
        text = self._close_all(status_of_items)
        usage = None if self._usage is None else _usage_fields(self._usage)
        response = dict(self._response, status=status, output=self._items, usage=usage)
        response.update(fields)
        return text + self._say(status, response=response)

    def _open_item(self, type: str, prefix: str, **fields: Any) -> str:
        place = len(self._items)
        item = dict(fields, id=f"{prefix}_{self._id}_{place}", type=type, status="in_progress")
        self._items.append(item)
        return self._say("output_item.added", output_index=place, item=item)

    def _close_item(self, place: int, status: str) -> str:
        item = self._items[place]
        item["status"] = status
        return self._say("output_item.done", output_index=place, item=item)

    def _at(self, words: _Kind) -> Dict[str, Any]:
        # An open part is that of the last item: whatever comes behind it closes it.
        return dict(self._at_item(len(self._items) - 1), **{words.position: 0})

    def _at_item(self, place: int) -> Dict[str, Any]:
        return {"item_id": self._items[place]["id"], "output_index": place}

    def _say(self, event: str, **fields: Any) -> str:
        type = f"response.{event}"
        return frame(dict(fields, type=type, sequence_number=self._next()), type)

    def _next(self) -> int:
        number = self._sequence
        self._sequence = number + 1
        return number


def _usage_fields(usage: Usage) -> Dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": total_tokens(usage),
    }
