"""What WSGI middleware does to a stream: each layer is tried by itself, around an app of three items.

Decisions
    1. A layer is copied, and the copy is given another app to wrap. The app's own is not called.
    2. A layer that keeps what it wraps where it is not found (in C, in a slot) is not judged.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import types
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from flask_llmstream.doctor.facts import Layer
from flask_llmstream.doctor.hooks import Body
from flask_llmstream.doctor.sources import name_of, place
from flask_llmstream.middleware import LLMStreamMiddleware

__all__ = ["look_at_layers"]

_DEPTH = 12
#: Known to collect, and not to be tried: it prints a report of each request.
_COLLECTORS = ("werkzeug.contrib.profiler.", "werkzeug.middleware.profiler.")

#: Puts another app into a copy of a layer.
_Rebuild = Callable[[Any], Any]


def look_at_layers(app: Any) -> Tuple[List[Layer], bool]:
    """Return the middleware around *app* from the outside in, and whether ours is there."""
    chain = _find_core(app.wsgi_app, app, _DEPTH) or []
    ours = [number for number, (layer, _) in enumerate(chain) if isinstance(layer, LLMStreamMiddleware)]
    found = []
    for number, (layer, rebuild) in enumerate(chain):
        if not isinstance(layer, LLMStreamMiddleware):
            blank = Layer(name_of(layer), place(layer), outside=bool(ours) and number < ours[0])
            found.append(_judge(blank, rebuild))
    return found, bool(ours)


def _find_core(layer: Any, app: Any, depth: int) -> Optional[List[Tuple[Any, _Rebuild]]]:
    """Return the layers from *layer* to the app itself; ``None`` where that is not behind it."""
    if layer is app or getattr(layer, "__self__", None) is app:
        return []
    if not depth:
        return None
    for inner, rebuild in _held(layer):
        rest = _find_core(inner, app, depth - 1)
        if rest is not None:
            return [(layer, rebuild)] + rest
    return None


def _held(layer: Any) -> Iterator[Tuple[Any, _Rebuild]]:
    """Yield what can be called in *layer*, with the way to replace it in a copy."""
    if inspect.isfunction(layer):
        for number, cell in enumerate(layer.__closure__ or ()):
            with contextlib.suppress(ValueError):
                if callable(cell.cell_contents):
                    yield cell.cell_contents, _in_closure(layer, number)
    elif inspect.ismethod(layer):
        for inner, rebuild in _held(layer.__self__):
            yield inner, _in_method(layer, rebuild)
    else:
        attributes: Dict[str, Any] = getattr(layer, "__dict__", {})
        for name, value in list(attributes.items()):
            if callable(value):
                yield value, _in_attribute(layer, name)


def _in_closure(function: Any, number: int) -> _Rebuild:
    def rebuild(inner: Any) -> Any:
        cells = list(function.__closure__)
        cells[number] = (lambda: inner).__closure__[0]  # type: ignore[index]
        made = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
        )
        made.__kwdefaults__ = function.__kwdefaults__
        return made

    return rebuild


def _in_method(method: Any, rebuild_owner: _Rebuild) -> _Rebuild:
    return lambda inner: types.MethodType(method.__func__, rebuild_owner(inner))


def _in_attribute(layer: Any, name: str) -> _Rebuild:
    def rebuild(inner: Any) -> Any:
        made = copy.copy(layer)
        made.__dict__[name] = inner
        return made

    return rebuild


def _judge(blank: Layer, rebuild: _Rebuild) -> Layer:
    if blank.name.startswith(_COLLECTORS):
        return blank._replace(collects=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return _try(blank, rebuild)
    except Exception:
        return blank


def _try(blank: Layer, rebuild: _Rebuild) -> Layer:
    from werkzeug.test import create_environ

    body = Body()
    seen: Dict[str, Any] = {}

    def write(data: bytes) -> None:
        """Stand for the server's."""

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        seen["headers"] = {name.lower(): value for name, value in headers}
        return write

    def inner(environ: Any, start_response: Any) -> Any:
        seen["write"] = start_response("200 OK", [("Content-Type", "text/event-stream")])
        return body

    environ = create_environ("/", headers={"Accept-Encoding": "gzip, deflate, br, zstd"})
    answer = rebuild(inner)(environ, start_response)
    items = iter(answer)
    next(items, None)
    # One that is taken in advance is for middleware that wants the headers.
    collects = body.taken > 2
    for _ in items:
        pass
    if hasattr(answer, "close"):
        answer.close()
    encoding = seen.get("headers", {}).get("content-encoding", "")
    return blank._replace(
        collects=collects, hides_write=seen["write"] is not write, drops_close=not body.closed,
        encoding="" if encoding == "identity" else encoding,
    )
