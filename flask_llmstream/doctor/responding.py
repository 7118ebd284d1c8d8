"""Whether the response that a view makes by itself streams, and of what type it is.

A generator in a view says little: most are joined, listed or rendered. What counts is what the
response is given.
"""

from __future__ import annotations

import ast
import re
from typing import Any, Dict, Iterator, List, Tuple

from flask_llmstream.doctor.sources import Source, source_of

__all__ = ["OURS", "RESPONSES", "is_streaming", "types_of"]

#: What makes a stream of ours.
OURS = ("relay", "stream_response")
#: What makes a response of the app's own.
RESPONSES = ("Response", "make_response", "response_class", "stream_with_context")
#: Types that nothing else has.
_STREAMS = frozenset({"application/x-ndjson", "text/event-stream"})
_TYPE = re.compile(r"(application|text)/[a-z0-9.+-]+$")


def is_streaming(source: Source) -> bool:
    """Whether a response of the function is given a generator, or a type that only streams have."""
    if _STREAMS.intersection(_types(source)):
        return True
    generators = {node.name for node in source.generators if hasattr(node, "name")}
    for function in source.called():
        if getattr(source_of(function), "is_generator", False):
            generators.add(function.__name__)
    return any(_generates(source, body, generators, 3) for body in _bodies(source))


def types_of(sources: List[Source]) -> Tuple[str, ...]:
    """Return the content types that are given to responses; ``text/html`` where there is none."""
    found: Dict[str, None] = {}
    for source in sources:
        found.update(dict.fromkeys(_types(source)))
    return tuple(found) or ("text/html",)


def _responses(source: Source) -> Iterator[Any]:
    for node in ast.walk(source.node):
        if isinstance(node, ast.Call):
            if getattr(node.func, "attr", getattr(node.func, "id", "")) in RESPONSES:
                yield node


def _bodies(source: Source) -> Iterator[Any]:
    """Yield what responses are made of, and what the view returns as it is."""
    for call in _responses(source):
        yield from call.args[:1]
        yield from (each.value for each in call.keywords if each.arg == "response")
    for node in ast.walk(source.node):
        if isinstance(node, ast.Return) and node.value is not None:
            yield node.value.elts[0] if isinstance(node.value, ast.Tuple) and node.value.elts else node.value


def _generates(source: Source, body: Any, generators: Any, depth: int) -> bool:
    """Whether *body* is a generator: an expression, a call of one, or a variable that has one."""
    if isinstance(body, ast.GeneratorExp):
        return True
    if isinstance(body, ast.Call):
        return getattr(body.func, "id", None) in generators
    if isinstance(body, ast.Name) and depth:
        return any(
            _generates(source, node.value, generators, depth - 1) for node in ast.walk(source.node)
            if isinstance(node, ast.Assign) and any(getattr(to, "id", None) == body.id for to in node.targets)
        )
    return False


def _types(source: Source) -> Iterator[str]:
    names = source.names
    for node in _given(source):
        text = names.get(node.id) if isinstance(node, ast.Name) else getattr(
            node, "value", getattr(node, "s", None)
        )
        if isinstance(text, str):
            essence = text.partition(";")[0].strip().lower()
            if _TYPE.match(essence):
                yield essence


def _given(source: Source) -> Iterator[Any]:
    """Yield the expressions that responses get beside their bodies, and what is set on them later."""
    for call in _responses(source):
        for given in call.args[1:] + [each.value for each in call.keywords if each.arg != "response"]:
            yield from ast.walk(given)
    for node in ast.walk(source.node):
        if isinstance(node, ast.Assign):
            if any(_is_type(target) for target in node.targets):
                yield from ast.walk(node.value)
        elif isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple):
            for each in node.value.elts[1:]:
                yield from ast.walk(each)


def _is_type(target: Any) -> bool:
    return isinstance(target, ast.Subscript) or getattr(target, "attr", "") in ("content_type", "mimetype")
