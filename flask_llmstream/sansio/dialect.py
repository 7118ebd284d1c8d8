"""What the formats of other people's clients have in common: parts that are opened and closed.

Those clients want to be told where a text, a thought or a tool call begins and where it ends; a
source only yields deltas. Here is remembered what is open. A dialect says how each of it is written.

Decisions: 1. What a dialect has no word for is left out, so that a source serves them all; the
tables in the modules say what. A dialect without a place for several answers refuses channels.
2. A tool call is named by its place in the answer, from 0 and
without gaps: official clients put calls into a list by that number.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

from flask_llmstream.sansio.events import Event, TextDelta, Usage
from flask_llmstream.sansio.jsontext import dump, quote, to_utf8
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.wire import WireFormat

__all__ = ["Call", "Dialect", "error_type", "frame", "total_tokens"]

#: An error's type as OpenAI and Anthropic name it. What is wrong with the key that a server uses for
#: its provider is nothing that its own clients could mend: that stays an ``api_error``.
_ERROR_TYPES = {
    "upstream_rate_limited": "rate_limit_error",
    "upstream_rejected": "invalid_request_error",
    "upstream_timeout": "timeout_error",
    "timeout": "timeout_error",
    "upstream_unavailable": "overloaded_error",
    "shutdown": "overloaded_error",
}


class Call:
    """A tool call that is being written."""

    __slots__ = ("number", "id", "has_own_id", "name", "arguments", "place", "ended")

    def __init__(self) -> None:
        #: Its place among the calls of the answer, from 0, once it is opened.
        self.number = 0
        self.id = ""
        #: Whether the id is one of ours, because the source had none, or none of its own.
        self.has_own_id = False
        #: ``None`` until it is known; the call is opened then.
        self.name: Optional[str] = None
        #: The JSON text of the arguments, in the pieces that have come.
        self.arguments: List[str] = []
        #: For the dialect's own use: where the call stands in the answer.
        self.place = 0
        #: For the dialect's own use: whether its end has been written.
        self.ended = False


class Dialect(SSEFormat):
    """Base of the formats that have parts. Make one object per stream.

    :param call_prefix: what the ids of tool calls begin with where the source has none.
    """

    __slots__ = ("_begun", "_part", "_head", "_tail", "_call_prefix", "_calls", "_by_index", "_usage")

    #: Response headers that clients of the format want besides its content type.
    headers: Tuple[Tuple[str, str], ...] = ()

    def __init__(self, call_prefix: str) -> None:
        super().__init__()
        self._begun = False
        self._part = ""  # "text", "reasoning" or what a dialect adds, while one is open
        # A piece of the open part is its text in quotes between these two.
        self._head = ""
        self._tail = "}\n\n"
        self._call_prefix = call_prefix
        self._calls: List[Call] = []  # the opened ones
        self._by_index: Dict[int, Call] = {}
        self._usage: Optional[Usage] = None

    def encode(self, item: Any) -> bytes:
        """Write one item of a source; ``b""`` for what the format has no word for.

        :raises TypeError: for what is no :data:`~flask_llmstream.sansio.events.Item`.
        :raises ValueError: for a value that JSON has no form for.
        """
        # Here and not in a table: this runs once per token.
        if item.__class__ is TextDelta:
            text = item.text
        elif item.__class__ is str:
            text = item
        else:
            return self._encode_other(item)
        return to_utf8(self._add("text", text))

    def done(self, reason: str, usage: Optional[Usage] = None) -> bytes:
        """Write the end of a stream that has been sent whole, or was cancelled.

        :param reason: why the model stopped, see :class:`~flask_llmstream.Finish`; or ``cancelled``.
        :param usage: what the answer has cost, where known. Defaults to what the source has said.
        """
        if usage is not None:
            self._usage = usage
        rest = self._rest()
        text = self._start("")
        for call in self._by_index.values():
            if call.name is None:
                text += self._name_call(call, "")
        return rest + to_utf8(text + self._end(reason))

    def failed(self, message: str, code: str, retryable: bool) -> bytes:
        """Write the end of a stream that has failed.

        :param message: for people; what clients may know.
        :param code: for programs.
        :param retryable: whether the same request may succeed later; few dialects can say that.
        """
        return self._rest() + to_utf8(self._fail(message, code))

    # -- what a dialect says ------------------------------------------------------------------

    def _begin(self, kind: str) -> str:
        """Open the answer, whose first part is of *kind*; ``""`` where it has none."""
        raise NotImplementedError

    def _open(self, kind: str) -> str:
        """Open a part of *kind*, and set ``_head`` and ``_tail``."""
        raise NotImplementedError

    def _close(self, kind: str) -> str:
        """Close the open part."""
        return ""

    def _open_call(self, call: Call) -> str:
        """Open a tool call; no part is open."""
        raise NotImplementedError

    def _call_piece(self, call: Call, arguments: str) -> str:
        """Write the next piece of a call's arguments. Other calls may have begun since."""
        raise NotImplementedError

    def _json(self, path: str, op: str, value: Any) -> str:
        """Write a change of a JSON value, in the words of :class:`~flask_llmstream.JsonDelta`."""
        return ""

    def _document(self, value: Any) -> str:
        """Write a JSON value that comes whole."""
        return ""

    def _custom(self, name: str, data: Any) -> str:
        """Write something of the application's own."""
        return ""

    def _end(self, reason: str) -> str:
        """Close what is open, and the answer."""
        raise NotImplementedError

    def _fail(self, message: str, code: str) -> str:
        """Close what is open, and the answer, with an error."""
        raise NotImplementedError

    # -- items --------------------------------------------------------------------------------

    def _encode_other(self, item: Any) -> bytes:
        if isinstance(item, (dict, list)):
            return to_utf8(self._document(item))
        return super()._encode_other(item)

    def _text(self, text: str) -> bytes:
        return to_utf8(self._add("text", text))

    def _reasoning(self, text: str) -> bytes:
        return to_utf8(self._add("reasoning", text))

    def _event(self, event: Event) -> bytes:
        # Its id is for clients that send it back in a header, its name for those that listen to it.
        return to_utf8(self._custom(event.event or "event", event.data))

    def _named(self, name: str, fields: Dict[str, Any]) -> bytes:
        if name == "usage":
            self._usage = Usage(**fields)
            return b""
        if name == "tool":
            return to_utf8(self._tool(**fields))
        return to_utf8(self._json(**fields) if name == "json" else self._custom(**fields))

    def _make_channel(self, name: str, number: int) -> WireFormat:
        return WireFormat._make_channel(self, name, number)

    # -- what is open -------------------------------------------------------------------------

    def _add(self, kind: str, text: str) -> str:
        """Write *text* into the open part if that is of *kind*, otherwise into a new one."""
        if not text:
            return ""
        if self._part == kind:
            return self._piece(text)
        opening = self._start(kind) + self._leave()
        self._part = kind
        return opening + self._open(kind) + self._piece(text)

    def _piece(self, text: str) -> str:
        return f"{self._head}{quote(text)}{self._tail}"

    def _start(self, kind: str) -> str:
        if self._begun:
            return ""
        self._begun = True
        return self._begin(kind)

    def _leave(self) -> str:
        kind, self._part = self._part, ""
        return self._close(kind) if kind else ""

    def _tool(
        self, index: int, arguments: str, id: Optional[str] = None, name: Optional[str] = None
    ) -> str:
        text = ""
        call = self._by_index.get(index)
        if call is not None and _is_another(call, id, name):
            if call.name is None:
                text = self._name_call(call, "")
            call = None
        if call is None:
            call = self._by_index[index] = Call()
        if id and not call.id:
            call.id = id
        if arguments:
            call.arguments.append(arguments)
        if call.name is not None:
            return text + self._call_piece(call, arguments) if arguments else text
        # Clients want id and name at once, and most providers send them so.
        return text + self._name_call(call, name) if name else text

    def _name_call(self, call: Call, name: str) -> str:
        call.name = name
        call.number = len(self._calls)
        # Some servers take the tool's name for the id, of two calls, too; clients throw at that.
        if not call.id or any(call.id == other.id for other in self._calls):
            call.id = f"{self._call_prefix}_{call.number}"
            call.has_own_id = True
        self._calls.append(call)
        text = self._start("tool") + self._leave() + self._open_call(call)
        arguments = "".join(call.arguments)
        return text + self._call_piece(call, arguments) if arguments else text


def frame(fields: Dict[str, Any], name: str = "") -> str:
    """Return an event with the JSON of *fields* for data.

    :param name: the event's name. Defaults to none.
    """
    return f"event: {name}\ndata: {dump(fields)}\n\n" if name else f"data: {dump(fields)}\n\n"


def error_type(code: str) -> str:
    """Return the type of error, as OpenAI and Anthropic name it, for a failure's *code*."""
    return _ERROR_TYPES.get(code, "api_error")


def total_tokens(usage: Usage) -> Optional[int]:
    """Return the sum of both totals, ``None`` where one of them is unknown."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    return usage.input_tokens + usage.output_tokens


def _is_another(call: Call, id: Optional[str], name: Optional[str]) -> bool:
    """Say whether another call begins under the index of *call*: some servers do not count them."""
    if id and call.id and id != call.id and not call.has_own_id:
        return True
    return bool(name and call.name and name != call.name)
