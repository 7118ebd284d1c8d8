"""The wire formats by name, and which of them a client asks for.

Decisions: 1. ``Accept`` is a wish, not a condition: the OpenAI and Anthropic clients ask for
``application/json`` and read an event stream. Where nothing fits, or the field is malformed, the
default goes out, never 406.
2. Where a client likes several formats equally the first of the list below is sent. So the default
``Accept`` of axios and Angular, ``application/json, text/plain, */*``, gets an event stream.
3. Formats without a media type of their own (the dialects of other libraries, all of them event
streams) are sent only where they are named.
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import import_module
from inspect import signature
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Pattern, Tuple

__all__ = ["DEFAULT", "format_names", "is_format", "make_format", "negotiate", "register_format"]

#: What is sent where nobody asks for anything else.
DEFAULT = "sse"

#: Modules and classes, relative to this package; each is imported when it is first asked for.
#: Then the arguments that say which stream it is, where a format says that.
_BUILT_IN: Dict[str, Tuple[str, Dict[str, str]]] = {
    "sse": ("native.SSEFormat", {}),
    "ndjson": ("ndjson.NDJSONFormat", {}),
    "text": ("text.TextFormat", {}),
    "frames": ("frames.FramesFormat", {}),
    "ai-sdk": ("aisdk.AISDKFormat", {"id": "msg-{id}"}),
    "openai": ("openai_format.OpenAIFormat", {"id": "chatcmpl-{id}"}),
    "openai-responses": ("openai_responses.OpenAIResponsesFormat", {"id": "resp_{id}"}),
    "anthropic": ("anthropic.AnthropicFormat", {"id": "msg_{id}"}),
    "ag-ui": ("agui.AGUIFormat", {"run_id": "run-{id}"}),
}
#: Media types and what they mean, best first. All formats are UTF-8, and the types say no more.
_OFFERS: List[Tuple[str, str]] = [
    ("text/event-stream", "sse"),
    ("application/x-ndjson", "ndjson"),
    ("application/ndjson", "ndjson"),
    ("text/plain", "text"),
    ("application/vnd.llmstream.frames", "frames"),
]
_PARAMETERS = (("charset", "utf-8"),)

#: Those that say when the answer was made, in an argument of that name.
_DATED = ("openai", "openai-responses")

#: So many different ``Accept`` fields are remembered, of so many characters at most.
_REMEMBERED, _LONGEST = 256, 512

#: Formats of users' own.
_factories: Dict[str, Callable[[], Any]] = {}

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = r'"(?:[^"\\]|\\.)*"'
# What is between two separators. The first character decides, so nothing is tried twice.
_ELEMENT = re.compile(fr'((?:[^,"]|{_QUOTED})*)(,|\Z)')
_PART = re.compile(fr'((?:[^;"]|{_QUOTED})*)(;|\Z)')
_RANGE = re.compile(fr"({_TOKEN})/({_TOKEN})")
_PARAMETER = re.compile(fr"({_TOKEN})=({_TOKEN}|{_QUOTED})")
_WEIGHT = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_ESCAPED = re.compile(r"\\(.)")


class _Range(NamedTuple):
    """A media range of an ``Accept`` field."""

    type: str
    subtype: str
    parameters: Tuple[Tuple[str, str], ...]
    weight: float

    def fits(self, media_type: str) -> bool:
        major, _, minor = media_type.partition("/")
        return (
            self.type in ("*", major)
            and self.subtype in ("*", minor)
            and all(parameter in _PARAMETERS for parameter in self.parameters)
        )

    def precision(self) -> Tuple[bool, bool, int]:
        return self.type != "*", self.subtype != "*", len(self.parameters)


def register_format(name: str, factory: Callable[[], Any], *, media_type: Optional[str] = None) -> None:
    """Make a wire format of your own known to this process.

    :param name: what ``stream_response(format=…)`` calls it. One that was registered before is
        replaced; those of this library cannot be.
    :param factory: is called without arguments, once for each stream; what the object that it
        returns must have stands in docs/formats.md.
    :param media_type: what clients may ask for in ``Accept``, without parameters. Defaults to
        nothing: the format is sent where it is named, and only there.
    :raises TypeError: where *factory* cannot be called.
    :raises ValueError: for a name or media type that is not to be had.
    """
    if not isinstance(name, str) or not name or name in _BUILT_IN:
        raise ValueError(f"a format of your own needs a name of its own, got {name!r}")
    if not callable(factory):
        raise TypeError(f"a factory is called to make a format, got a {type(factory).__name__}")
    offers = [offer for offer in _OFFERS if offer[1] != name]
    if media_type is not None:
        found = _RANGE.fullmatch(media_type)
        if found is None or "*" in found.groups():
            raise ValueError(f"expected a media type such as 'application/x-mine', got {media_type!r}")
        media_type = media_type.lower()
        if media_type in dict(offers):
            raise ValueError(f"{media_type} means {dict(offers)[media_type]!r} already")
        offers.append((media_type, name))
    _factories[name] = factory
    _OFFERS[:] = offers
    _choose.cache_clear()


def format_names() -> List[str]:
    """Return the names of all formats, sorted."""
    return sorted({*_BUILT_IN, *_factories})


def is_format(name: str) -> bool:
    """Say whether there is a format of that name."""
    return name in _BUILT_IN or name in _factories


def make_format(
    name: str,
    id: Optional[str] = None,
    created: int = 0,
    options: Optional[Mapping[str, Any]] = None,
) -> Any:
    """Return a new format object, for one stream.

    :param id: of the stream, for formats that say it. Defaults to what is the same for all streams.
    :param created: when the answer was made, in seconds since 1970, for formats that say it.
    :param options: further arguments of the format, such as ``model``; they win over *id* and *created*.
    :raises ValueError: where there is no format of that name, or it has no such option.
    """
    if name in _factories:
        return _factories[name](**_checked(name, _factories[name], options))
    if name not in _BUILT_IN:
        raise ValueError(f"there is no wire format {name!r}; there are: {', '.join(format_names())}")
    path, arguments = _BUILT_IN[name]
    factory = _built_in(path)
    if not arguments and not options:
        return factory()
    given: Dict[str, Any] = {"created": created} if name in _DATED else {}
    if id is not None:
        given.update((key, pattern.format(id=id)) for key, pattern in arguments.items())
    given.update(_checked(name, factory, options))
    return factory(**given)


@lru_cache(maxsize=None)
def _built_in(path: str) -> Callable[..., Any]:
    module, _, attribute = path.partition(".")
    factory: Callable[..., Any] = getattr(import_module(f"flask_llmstream.sansio.{module}"), attribute)
    return factory


def _checked(
    name: str, factory: Callable[..., Any], options: Optional[Mapping[str, Any]]
) -> Mapping[str, Any]:
    """Return *options*, which *factory* must take."""
    if not options:
        return {}
    parameters = signature(factory).parameters.values()
    known = [each.name for each in parameters if each.kind != each.VAR_KEYWORD]
    for option in options:
        if option not in known and len(known) == len(parameters):
            have = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"the wire format {name!r} has no option {option!r}; {have}")
    return options


def negotiate(accept: Optional[str]) -> str:
    """Return the name of the format that a client likes best, :data:`DEFAULT` where none fits.

    :param accept: the field ``Accept`` of the request, several of them joined with commas.

    https://www.rfc-editor.org/rfc/rfc9110#section-12.5.1
    """
    if not accept or accept == "*/*":
        return DEFAULT
    # A few clients send nearly all of them, each always the same. Who sends more is not remembered.
    return _choose(accept) if len(accept) <= _LONGEST else _choose.__wrapped__(accept)


@lru_cache(maxsize=_REMEMBERED)
def _choose(accept: str) -> str:
    ranges = _parse(accept)
    best, best_weight = DEFAULT, 0.0
    for media_type, name in _OFFERS:
        fitting = [each for each in ranges if each.fits(media_type)]
        if fitting:
            # "Media ranges can be overridden by more specific media ranges"
            weight = max(fitting, key=_Range.precision).weight
            if weight > best_weight:
                best, best_weight = name, weight
    return best


def _parse(accept: str) -> List[_Range]:
    """Return the ranges in *accept*, none of them where it is malformed."""
    ranges = []
    for element in _split(_ELEMENT, accept) or ():
        if element:  # "A recipient MUST parse and ignore a reasonable number of empty list elements"
            found = _parse_range(element)
            if found is None:
                return []
            ranges.append(found)
    return ranges


def _parse_range(text: str) -> Optional[_Range]:
    parts = _split(_PART, text) or [""]
    found = _RANGE.fullmatch(parts[0].lower())
    if found is None or (found.group(1) == "*" and found.group(2) != "*"):
        return None
    parameters: List[Tuple[str, str]] = []
    for part in filter(None, parts[1:]):
        pair = _PARAMETER.fullmatch(part)
        if pair is None:
            return None
        name, value = pair.group(1).lower(), pair.group(2)
        if name == "q":
            # What comes behind the weight says nothing about the media type.
            if _WEIGHT.fullmatch(value) is None:
                return None
            return _Range(found.group(1), found.group(2), tuple(parameters), float(value))
        if value[0] == '"':
            value = _ESCAPED.sub(r"\1", value[1:-1])
        parameters.append((name, value.lower()))
    return _Range(found.group(1), found.group(2), tuple(parameters), 1.0)


def _split(pattern: Pattern[str], text: str) -> Optional[List[str]]:
    """Cut *text* at separators outside quotes; ``None`` where a quote is not closed."""
    parts = []
    at = 0
    while True:
        found = pattern.match(text, at)
        if found is None:
            return None
        parts.append(found.group(1).strip(" \t"))
        at = found.end()
        if not found.group(2):
            return parts
