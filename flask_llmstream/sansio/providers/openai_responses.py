"""Decodes the stream of OpenAI's Responses API.

Decisions
    1. A text is taken from its pieces, and where none came from the event that has it whole: some
       servers send only that. The answer that comes whole with the last event is looked into for
       what has not been said at all: servers do not agree with themselves on ids and places.
    2. A refusal takes the place of the text, and is all that the reader gets.
    3. Calls of tools of one's own are passed on, ``custom`` ones too, whose arguments are not JSON
       but text. What the provider's own tools do is passed over.
    4. There is no word for an answer that ends in tool calls: one that has some finishes so.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Set, Tuple, Union

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import Delta, ReasoningDelta, TextDelta, Usage
from flask_llmstream.sansio.providers.base import TypedDecoder
from flask_llmstream.sansio.providers.errors import error_in_stream
from flask_llmstream.sansio.providers.fields import count, list_in, name_of, object_of, text_in

__all__ = ["ResponsesDecoder"]

#: What makes a delta of the texts in parts of each type.
_TEXTS: Dict[str, Callable[[str], Union[TextDelta, ReasoningDelta]]] = {
    "output_text": TextDelta,
    "refusal": TextDelta,
    "reasoning_text": ReasoningDelta,
    "reasoning_summary_text": ReasoningDelta,
}
#: The items with a text: the lists of its parts, and what makes a delta of them.
_PARTS = {"message": ("content",), "reasoning": ("summary", "content")}
_CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
_CALL_EVENTS = {"function_call_arguments": "arguments", "custom_tool_call_input": "input"}
_ENDS = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
#: Parts of one answer that are told apart; each costs memory until the answer ends.
_MAX_PARTS = 16384

#: Where something stands in the answer: a number, or an id.
_Place = Union[int, str, None]


class ResponsesDecoder(TypedDecoder):
    """Turns the events of one response into deltas; its end is ``response.completed`` or the like."""

    _what = "an event of a response"
    _whole = "a response"
    _reasons = {
        "stop": "stop",
        "tool_calls": "tool_calls",
        "max_output_tokens": "length",
        "content_filter": "content_filter",
    }

    def __init__(self, scrub: Optional[Callable[[str], str]] = None) -> None:
        super().__init__(scrub)
        #: The parts of which a text has come: type, place of the item, place in the item.
        self._said: Set[Tuple[str, _Place, int]] = set()
        self._places: Dict[_Place, int] = {}  # of the calls
        self._with_arguments: Set[int] = set()

    def _read_kind(self, kind: str, chunk: Dict[str, Any], deltas: List[Delta]) -> None:
        prefix, _, event = kind.partition(".")
        if prefix != "response":
            return
        what, _, step = event.rpartition(".")
        if what in _TEXTS:
            part = _position(chunk)
            if step == "delta":
                self._say(what, _places(chunk), part, text_in(chunk, "delta"), deltas)
            elif step == "done":
                key = "refusal" if what == "refusal" else "text"
                self._say_whole(what, _places(chunk), part, text_in(chunk, key), deltas)
        elif what in _CALL_EVENTS and step in ("delta", "done"):
            number = self._find_call(_places(chunk))
            name = name_of(chunk.get("name"))
            if step == "delta":
                self._call(number, None, name, text_in(chunk, "delta"), deltas)
            else:
                self._call_whole(number, None, name, text_in(chunk, _CALL_EVENTS[what]), deltas)
        elif what == "output_item":
            item = object_of(chunk.get("item"), "an item")
            self._read_item(item, _places(chunk, item), deltas, is_whole=step == "done")
        elif kind in _ENDS:
            self._end(object_of(chunk.get("response"), "response"), event, deltas)

    def _read_whole(self, answer: Dict[str, Any]) -> List[Delta]:
        if not isinstance(answer.get("output"), list):
            raise DecodeError(f"{self._whole} must have an array output")
        status = answer.get("status")
        if status in ("queued", "in_progress"):
            raise DecodeError(f"{self._whole} that is {status} is no answer yet; leave out background")
        deltas: List[Delta] = []
        self._end(answer, status if isinstance(status, str) else "completed", deltas)
        return deltas

    # -- texts --------------------------------------------------------------------------------

    def _say(self, what: str, places: List[_Place], part: int, text: str, deltas: List[Delta]) -> None:
        if text:
            self._said.add((what, places[0] if places else None, part))
            if len(self._said) > _MAX_PARTS:
                raise DecodeError(f"an answer has more than {_MAX_PARTS} parts")
            deltas.append(_TEXTS[what](text))

    def _say_whole(self, what: str, places: List[_Place], part: int, text: str, deltas: List[Delta]) -> None:
        if not any((what, place, part) in self._said for place in [*places, None]):
            self._say(what, places, part, text, deltas)

    # -- items --------------------------------------------------------------------------------

    def _read_item(
        self, item: Dict[str, Any], places: List[_Place], deltas: List[Delta], is_whole: bool
    ) -> None:
        type = item.get("type")
        if not isinstance(type, str):
            return
        if type in _CALLS:
            id = name_of(item.get("call_id")) or name_of(item.get("id"))
            number = self._find_call(places, id)
            arguments = text_in(item, _CALLS[type])
            self._call_whole(number, id, name_of(item.get("name")), arguments, deltas)
        elif is_whole:
            for key in _PARTS.get(type, ()):
                for position, part in enumerate(list_in(item, key)):
                    part = object_of(part, "a part")
                    what = part.get("type")
                    if what == "summary_text":
                        what = "reasoning_summary_text"
                    if isinstance(what, str) and what in _TEXTS:
                        text = text_in(part, "refusal" if what == "refusal" else "text")
                        self._say_whole(what, places, position, text, deltas)

    # -- calls --------------------------------------------------------------------------------

    def _find_call(self, places: List[_Place], id: Optional[str] = None) -> int:
        """Return the number of the call at one of *places*, a new one if *id* shows that it is new."""
        if id is not None:
            # Some servers put no number on anything, and this one where the item's own should be.
            places = [*places, id]
        number = next((self._places[place] for place in places if place in self._places), None)
        if number is None and id is None and not any(isinstance(place, int) for place in places):
            number = len(self._calls) - 1 if self._calls else None
        if number is None or (id is not None and self._calls[number][0] not in (None, id)):
            number = len(self._calls)
            self._calls[number] = (None, None)
        for place in places:
            self._places[place] = number
        return number

    def _call(
        self, number: int, id: Optional[str], name: Optional[str], arguments: str, deltas: List[Delta]
    ) -> None:
        if arguments:
            self._with_arguments.add(number)
        self._add_call(number, id, name, arguments, deltas)

    def _call_whole(
        self, number: int, id: Optional[str], name: Optional[str], arguments: str, deltas: List[Delta]
    ) -> None:
        if number in self._with_arguments:
            arguments = ""
        self._call(number, id, name, arguments, deltas)

    # -- the end ------------------------------------------------------------------------------

    def _end(self, response: Dict[str, Any], status: str, deltas: List[Delta]) -> None:
        self.model = name_of(response.get("model"))
        usage = response.get("usage")
        if isinstance(usage, dict):
            self.usage = _usage(usage)
        if status == "failed":
            raise error_in_stream(object_of(response.get("error"), "error"), self._scrub)
        self._read_unsaid(list_in(response, "output"), deltas)
        details = response.get("incomplete_details")
        if status == "completed":
            self._finish("tool_calls" if self._calls else "stop", deltas)
        else:
            reason = details.get("reason") if isinstance(details, dict) else None
            self._finish(reason or "other", deltas)
        self.done = True
        deltas += self._report_usage()

    def _read_unsaid(self, items: List[Any], deltas: List[Delta]) -> None:
        """Read what of a whole answer has not been said at all."""
        said = {_TEXTS[what] for what, _, _ in self._said}
        has_calls = bool(self._calls)
        for position, item in enumerate(items):
            item = object_of(item, "an item")
            type = item.get("type")
            if type in ("function_call", "custom_tool_call"):
                unsaid = not has_calls
            elif type == "reasoning":
                # Behind the text that it led to it would be of no use.
                unsaid = not said
            else:
                unsaid = TextDelta not in said
            if unsaid:
                self._read_item(item, [position], deltas, is_whole=True)


def _places(chunk: Dict[str, Any], item: Optional[Dict[str, Any]] = None) -> List[_Place]:
    """Return where an event says that it belongs to, the surer first."""
    places: List[_Place] = []
    number = count(chunk, "output_index")
    if number is not None:
        places.append(number)
    id = name_of(chunk.get("item_id") if item is None else item.get("id"))
    if id is not None:
        places.append(id)
    return places


def _position(chunk: Dict[str, Any]) -> int:
    return count(chunk, "content_index") or count(chunk, "summary_index") or 0


def _usage(fields: Dict[str, Any]) -> Usage:
    return Usage(
        count(fields, "input_tokens"),
        count(fields, "output_tokens"),
        count(fields.get("output_tokens_details"), "reasoning_tokens"),
        count(fields.get("input_tokens_details"), "cached_tokens"),
    )
