"""What a source may yield, and what goes over the wire: plain values without behaviour."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple, Union

__all__ = [
    "Comment",
    "Custom",
    "Delta",
    "Event",
    "Finish",
    "Item",
    "JsonDelta",
    "ReasoningDelta",
    "TextDelta",
    "ToolCallDelta",
    "Usage",
]


class Value:
    """Base of all items: equality, hash and repr from the slots of the class.

    Not dataclasses: slots make an item a third smaller and twice as fast to create, which
    counts where one is made per token, and ``dataclass(slots=True)`` needs Python 3.10.
    """

    __slots__: Tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash((self.__class__, *(_hash(getattr(self, name)) for name in self.__slots__)))

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{self.__class__.__name__}({fields})"


def _hash(value: Any) -> int:
    try:
        return hash(value)
    except TypeError:
        # A dict or list: equal ones must have equal hashes, and repr depends on the order of keys.
        return 0


class Event(Value):
    """One server-sent event with full control over its fields.

    :param data: text of the event; anything that is not a ``str`` is written as JSON.
    :param event: its name; ``None`` is an unnamed event (``message`` to an EventSource).
    :param id: what a client sends back as ``Last-Event-ID``.
    :param retry: milliseconds a client should wait before it reconnects.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    __slots__ = ("data", "event", "id", "retry")

    def __init__(
        self,
        data: Any,
        event: Optional[str] = None,
        id: Optional[str] = None,
        retry: Optional[int] = None,
    ) -> None:
        self.data = data
        self.event = event
        self.id = id
        self.retry = retry


class Comment(Value):
    """A line that clients skip: keeps a connection alive, or speaks to whoever reads the wire.

    :param text: may hold several lines; each becomes a comment line of its own.
    """

    __slots__ = ("text",)

    def __init__(self, text: str = "") -> None:
        self.text = text


class TextDelta(Value):
    """The next piece of the answer's text."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class ReasoningDelta(Value):
    """The next piece of what the model thinks aloud before it answers."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class ToolCallDelta(Value):
    """A piece of a tool call.

    :param index: which of the calls of this answer, from 0.
    :param id: the provider's id; only in the first piece of an index.
    :param name: the tool's name; only in the first piece of an index.
    :param arguments: the next piece of the JSON text of its arguments.
    """

    __slots__ = ("index", "id", "name", "arguments")

    def __init__(
        self,
        index: int,
        id: Optional[str] = None,
        name: Optional[str] = None,
        arguments: str = "",
    ) -> None:
        self.index = index
        self.id = id
        self.name = name
        self.arguments = arguments


class JsonDelta(Value):
    """A change of a JSON value that is still being written.

    :param path: JSON Pointer to the value that changes (RFC 6901).
    :param op: ``add``, ``append`` (a text grows), ``replace`` or ``complete`` (it is final).
    :param value: the new value, or the text to append.
    """

    __slots__ = ("path", "op", "value")

    def __init__(self, path: str, op: str, value: Any = None) -> None:
        self.path = path
        self.op = op
        self.value = value


class Usage(Value):
    """What the answer has cost.

    :param input_tokens: tokens of the prompt, ``None`` where unknown.
    :param output_tokens: tokens of the answer, ``None`` where unknown.
    :param reasoning_tokens: the part of ``output_tokens`` spent on reasoning, where known.
    :param cached_tokens: the part of ``input_tokens`` read from the provider's cache, where known.
    """

    __slots__ = ("input_tokens", "output_tokens", "reasoning_tokens", "cached_tokens")

    def __init__(
        self,
        input_tokens: Optional[int] = None,
        output_tokens: Optional[int] = None,
        reasoning_tokens: Optional[int] = None,
        cached_tokens: Optional[int] = None,
    ) -> None:
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.reasoning_tokens = reasoning_tokens
        self.cached_tokens = cached_tokens


class Finish(Value):
    """Why the model stopped: ``stop``, ``length``, ``content_filter``, ``tool_calls``, ``other``."""

    __slots__ = ("reason",)

    def __init__(self, reason: str = "stop") -> None:
        self.reason = reason


class Custom(Value):
    """Something of your own, under a name of your own.

    :param name: what it is.
    :param data: any JSON value.
    """

    __slots__ = ("name", "data")

    def __init__(self, name: str, data: Any = None) -> None:
        self.name = name
        self.data = data


#: What an upstream yields.
Delta = Union[TextDelta, ReasoningDelta, ToolCallDelta, JsonDelta, Usage, Finish, Custom]
#: What a source may yield.
Item = Union[str, bytes, Dict[str, Any], List[Any], Event, Comment, Delta]
