"""What ``after_request`` hooks do to a stream: their source is read, and they are given one to try.

Decisions
    1. A hook is called with a response of the app's own class that streams, in a request context for
       a route that streams. So a hook that looks at ``is_streamed``, the content type or the path
       is judged by what it does, and not by what it could.
    2. A hook that writes somewhere else (a database, a queue, a file) is not called: its source has
       to do. The same goes for one that fails, since no ``before_request`` hook has run for it.
"""

from __future__ import annotations

import ast
import contextlib
import io
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

from flask_llmstream.culprits import outside_frame
from flask_llmstream.doctor.facts import Hook, Use
from flask_llmstream.doctor.sources import Source, name_of, place, shorten, source_of

__all__ = ["HOP_BY_HOP", "Body", "look_at_hooks"]

#: Headers between two neighbours; PEP 3333 forbids them to apps.
HOP_BY_HOP = frozenset({"connection", "keep-alive", "proxy-connection", "transfer-encoding"})
_READS = frozenset(
    {"data", "freeze", "get_data", "get_json", "iter_encoded", "json", "make_sequence", "response",
     "set_data"}
)
_LENGTHS = frozenset({"calculate_content_length", "content_length"})
_ETAGS = frozenset({"add_etag", "make_conditional"})
#: A hook that looks at one of these may well know what it does.
_GUARDS = ("content_type", "is_json", "is_sequence", "is_streamed", "mimetype")
#: A hook that names one of these leaves traces.
_TRACES = frozenset(
    {"Popen", "add", "add_all", "apply_async", "commit", "delay", "delete", "execute", "executemany",
     "flush", "incr", "insert", "lpush", "merge", "open", "patch", "post", "publish", "put", "rpush",
     "run", "save", "send", "sendall", "system", "urlopen", "write", "writelines", "xadd"}
)


class Body:
    """A body of three items that knows who has taken them, and whether it was closed."""

    def __init__(self) -> None:
        self.taken = 0
        self.closed = False
        self.reader: Optional[Use] = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self.taken:
            frame = outside_frame("flask_llmstream", "flask", "werkzeug")
            if frame is not None:
                code = frame.f_code
                self.reader = Use(code.co_name, f"{shorten(code.co_filename)}:{frame.f_lineno}")
        if self.taken == 3:
            raise StopIteration
        self.taken += 1
        return b"data: {}\n\n"

    def close(self) -> None:
        """Remember it."""
        self.closed = True


def look_at_hooks(app: Any, streams: Iterable[Tuple[str, str]], call: bool = True) -> Iterator[Hook]:
    """Yield what each ``after_request`` hook of *app* does.

    :param streams: path and content type of each response that streams.
    :param call: whether hooks may be called. Defaults to ``True``.
    """
    cases = list(streams) or [("/", "text/event-stream")]
    for functions in app.after_request_funcs.values():
        for function in functions:
            yield _look(app, function, cases, call)


def _look(app: Any, function: Any, cases: List[Tuple[str, str]], call: bool) -> Hook:
    source = source_of(function)
    written = _written(source) if source is not None else {}
    blank = Hook(name_of(function), place(function))
    tried = [_try(app, function, *case) for case in cases] if call and _is_harmless(function) else [None]
    if all(effect is not None for effect in tried):
        return _merge(blank, written, [effect for effect in tried if effect is not None], cases)
    if source is None or source.mentions(*_GUARDS):
        return blank
    fields: Dict[str, Any] = dict(written, types=frozenset(type for _, type in cases))
    return blank._replace(**fields)


def _is_harmless(function: Any) -> bool:
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return code is None or not _TRACES.intersection(code.co_names)


class _Effect:
    """What one call has done."""

    def __init__(self, body: Body, before: Dict[str, str], response: Any) -> None:
        headers = {name.lower(): value for name, value in response.headers.items()}
        self.new: Set[str] = {name for name in headers if headers[name] != before.get(name)}
        self.reader = body.reader
        encoding = headers.get("content-encoding", "identity")
        self.encoding = "" if encoding == "identity" else encoding

    def is_harm(self) -> bool:
        return bool(self.reader or self.encoding or self.new & {"content-length", "etag"})


def _try(app: Any, function: Any, path: str, content_type: str) -> Optional[_Effect]:
    body = Body()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            with app.test_request_context(path, headers={"Accept-Encoding": "gzip, deflate, br, zstd"}):
                response = app.response_class(body, mimetype=content_type)
                before = {name.lower(): value for name, value in response.headers.items()}
                answer = function(response)
        return _Effect(body, before, answer)
    except Exception:
        return None


def _merge(hook: Hook, written: Dict[str, Any], effects: List[_Effect], cases: List[Tuple[str, str]]) -> Hook:
    """Return *hook* with what it did, in the words of its source where that has some."""
    here = (Use("", hook.where),) if hook.where else (Use("", hook.name),)
    new: Set[str] = set().union(*(effect.new for effect in effects))
    readers = tuple({effect.reader: None for effect in effects if effect.reader is not None})
    etags = written.get("etags", ()) or here
    lengths = written.get("lengths", ()) or here
    return hook._replace(
        # Whoever makes a length or an ETag reads for that; it is said once.
        reads=readers and (written.get("reads", ()) or (() if written else readers)),
        lengths=lengths if _has("content-length", "lengths", new, written, readers) else (),
        etags=etags if _has("etag", "etags", new, written, readers) else (),
        hop_by_hop=(written.get("hop_by_hop", ()) or here) if new & HOP_BY_HOP else (),
        encoding=next((effect.encoding for effect in effects if effect.encoding), ""),
        types=frozenset(type for (_, type), effect in zip(cases, effects) if effect.is_harm()),
    )


def _has(header: str, kind: str, new: Set[str], written: Dict[str, Any], readers: Any) -> bool:
    """Whether a hook is to be named for *kind*: by its words, or by the header, if it has no words."""
    return bool(written.get(kind)) and (header in new or bool(readers)) or not written and header in new


def _written(source: Source, depth: int = 2) -> Dict[str, Tuple[Use, ...]]:
    """Return what the source of a hook does to its response, by the fields of :class:`Hook`."""
    found: Dict[str, List[Use]] = {}
    for kind, node in _uses(source):
        found.setdefault(kind, []).append(source.use(node))
    if depth:
        for helper in source.called():
            inner = source_of(helper)
            if inner is not None:
                for kind, uses in _written(inner, depth - 1).items():
                    found.setdefault(kind, []).extend(uses)
    return {kind: tuple({use.where: use for use in uses}.values()) for kind, uses in found.items()}


def _uses(source: Source) -> Iterator[Tuple[str, Any]]:
    response = source.parameter
    for node in ast.walk(source.node):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == response:
            for kind, names in (("reads", _READS), ("lengths", _LENGTHS), ("etags", _ETAGS)):
                if node.attr in names and not (node.attr == "response" and isinstance(node.ctx, ast.Store)):
                    yield kind, node
        for name in header_names(node):
            if name in HOP_BY_HOP:
                yield "hop_by_hop", node
            elif name == "content-length":
                yield "lengths", node


def header_names(node: Any) -> Iterator[str]:
    """Yield the header that *node* writes: ``x[name] = …``, ``x.set(name, …)``, ``{name: …}``."""
    names: List[Any] = []
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        names = [getattr(node.slice, "value", None), node.slice]  # Python 3.8 puts an Index between
    elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("add", "set", "setdefault"):
        names = list(node.args[:1])
    elif isinstance(node, ast.Dict):
        names = list(node.keys)
    for each in names:
        text = each if isinstance(each, str) else getattr(each, "value", getattr(each, "s", None))
        if isinstance(text, str):
            yield text.lower()
