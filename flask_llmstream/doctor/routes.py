"""Which views stream, in what types, and what they do while they stream; read from their source."""

from __future__ import annotations

import ast
import inspect
from typing import Any, Dict, Iterator, List, NamedTuple, Set, Tuple

import flask

from flask_llmstream.doctor.facts import Route, Use
from flask_llmstream.doctor.hooks import HOP_BY_HOP, header_names
from flask_llmstream.doctor.responding import OURS, RESPONSES, is_streaming, types_of
from flask_llmstream.doctor.sources import Source, place, source_of

__all__ = ["look_at_routes", "permanent_sessions", "queries"]

_CHANGES = frozenset({"clear", "pop", "popitem", "setdefault", "update"})
#: Functions that write to the session.
_WRITERS = frozenset({"flash", "login_user", "logout_user"})


class _View(NamedTuple):
    """A view under its decorators."""

    sources: Tuple[Source, ...]
    #: The options of ``@stream``; ``None`` without it.
    options: Any


def look_at_routes(app: Any) -> Iterator[Route]:
    """Yield the routes of *app* that stream; those of LLMStream itself are none."""
    for rule in app.url_map.iter_rules():
        view = app.view_functions.get(rule.endpoint)
        if view is not None and not rule.endpoint.startswith("llmstream."):
            found = _look(app, rule, view)
            if found is not None:
                yield found


def _look(app: Any, rule: Any, function: Any) -> Any:
    view = _unwrap(function)
    mine = list(view.sources)
    own = view.options is not None or any(source.mentions(*OURS) for source in mine)
    inside = _generators(mine)
    if not own and not any(is_streaming(source) for source in mine):
        return None
    first = mine[0] if mine else None
    options = dict(view.options or {})
    return Route(
        rule.endpoint, rule.rule, place(first.function) if first is not None else None, own,
        types=() if own else types_of(mine),
        resumable=bool(options.get("resumable")) or any(_asks_to_resume(source) for source in mine),
        session_writes=tuple(use for source, node in inside for use in _session_writes(source, node)),
        hop_by_hop=tuple(use for source in mine for use in _hop_by_hop(source)),
        queries_before=() if own and inside else tuple(
            use for source in mine for use in queries(source, source.node, inside)
        ),
        queries_inside=tuple(
            use for source, node in inside if not _gives_back(source, node)
            for use in queries(source, node)
        ),
        release=options.get("release"),
    )


def _unwrap(function: Any) -> _View:
    """Look under the decorators, and behind a class of views."""
    options = None
    waiting, sources = [function], []
    seen: Set[int] = set()
    while waiting:
        each = waiting.pop(0)
        if id(each) in seen or len(seen) > 20:
            continue
        seen.add(id(each))
        view_class = getattr(each, "view_class", None)
        if view_class is not None:
            waiting.extend(
                getattr(view_class, name) for name in ("dispatch_request", "get", "post")
                if name in vars(view_class)
            )
            continue
        package = str(getattr(each, "__module__", "")).partition(".")[0]
        code: Any = getattr(each, "__code__", None)
        names = dict(zip(code.co_freevars, each.__closure__ or ())) if inspect.isfunction(each) else {}
        if code is not None and code.co_name == "streaming" and "options" in names:
            options = names["options"].cell_contents
        source = source_of(each) if package != "flask" and "flask_llmstream" not in str(code) else None
        if source is not None:
            sources.append(source)
        if hasattr(each, "__wrapped__"):
            waiting.append(each.__wrapped__)
        else:
            waiting.extend(
                cell.cell_contents for cell in names.values()
                if _has_value(cell) and inspect.isfunction(cell.cell_contents)
            )
    # The innermost says what is done; decorators around it stand in front.
    return _View(tuple(reversed(sources)), options)


def _has_value(cell: Any) -> bool:
    try:
        cell.cell_contents
    except ValueError:
        return False
    return True


def _generators(sources: List[Source]) -> List[Tuple[Source, Any]]:
    """Return what yields the items: in the views, and in functions that these call."""
    found: Dict[Tuple[int, int], Tuple[Source, Any]] = {}
    for source in sources:
        called = [source_of(function) for function in source.called()]
        for each in [source] + [inner for inner in called if inner is not None and inner.is_generator]:
            for node in each.generators:
                found.setdefault((node.lineno, node.col_offset), (each, node))
    return list(found.values())


def _asks_to_resume(source: Source) -> bool:
    for node in ast.walk(source.node):
        if isinstance(node, ast.keyword) and node.arg == "resumable":
            if getattr(node.value, "value", True) is not False:
                return True
    return False


def _hop_by_hop(source: Source) -> Iterator[Use]:
    for node in ast.walk(source.node):
        if HOP_BY_HOP.intersection(header_names(node)) and _is_for_a_response(source, node):
            yield source.use(node)


def _is_for_a_response(source: Source, headers: Any) -> bool:
    """Whether *headers* do not go to the model, as an argument of some other call."""
    for node in ast.walk(source.node):
        if isinstance(node, ast.Call):
            if headers in node.args or any(headers is each.value for each in node.keywords):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                return name in RESPONSES or name in OURS
    return True


def _session_writes(source: Source, body: Any) -> Iterator[Use]:
    names = source.names
    for node in ast.walk(body):
        if isinstance(node, (ast.Subscript, ast.Attribute)):
            if not isinstance(node.ctx, ast.Load) and _is_session(node.value, names):
                yield source.use(node)
        elif isinstance(node, ast.Call):
            function = node.func
            if isinstance(function, ast.Attribute):
                if function.attr in _CHANGES and _is_session(function.value, names):
                    yield source.use(node)
            elif isinstance(function, ast.Name) and function.id in _WRITERS:
                module = str(getattr(names.get(function.id), "__module__", ""))
                if module.partition(".")[0] in ("flask", "flask_login"):
                    yield source.use(node)


def _is_session(node: Any, names: Dict[str, Any]) -> bool:
    if isinstance(node, ast.Attribute):  # flask.session
        return node.attr == "session" and names.get(getattr(node.value, "id", "")) is flask
    return isinstance(node, ast.Name) and names.get(node.id) is flask.session


def permanent_sessions(source: Source) -> Iterator[Use]:
    """Yield where ``session.permanent`` is set."""
    names = source.names
    for node in ast.walk(source.node):
        if isinstance(node, ast.Attribute) and node.attr == "permanent":
            if isinstance(node.ctx, ast.Store) and _is_session(node.value, names):
                yield source.use(node)


def queries(source: Source, body: Any, without: Any = ()) -> Iterator[Use]:
    """Yield where *body* asks a database through SQLAlchemy.

    :param without: generators in it that are not looked at, as pairs of source and node.
    """
    names = source.names
    outside = {id(node) for _, generator in without for node in ast.walk(generator)}
    for node in ast.walk(body):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and id(node) not in outside:
            if node.attr != "remove" and _asks(names.get(node.value.id), node.attr):
                yield source.use(node)


def _asks(value: Any, attribute: str) -> bool:
    module = type(value).__module__
    if module.startswith("flask_sqlalchemy"):
        return attribute in ("session", "engine")
    if module.startswith("sqlalchemy.orm") and type(value).__name__ in ("scoped_session", "Session"):
        return True
    return attribute == "query" and inspect.isclass(value) and hasattr(value, "__table__")


def _gives_back(source: Source, body: Any) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("remove", "close") for node in ast.walk(body)
        if isinstance(getattr(node, "value", None), (ast.Name, ast.Attribute))
    )
