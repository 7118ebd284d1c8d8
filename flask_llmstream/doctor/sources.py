"""Reads the source of functions: what they do to a response, the session, a database, and where.

Nothing is run. What has no source (C, or typed into a shell) has no answer, and no error.
"""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import os
from typing import Any, Dict, Iterator, List, Optional, Tuple

from flask_llmstream.doctor.facts import Use

__all__ = ["Source", "name_of", "place", "source_of"]

_Function = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


class Source:
    """The source of one function."""

    def __init__(self, function: Any, node: Any, file: str) -> None:
        #: The function, without partials and methods.
        self.function = function
        #: Its syntax tree.
        self.node = node
        self._file = file

    def use(self, node: Any) -> Use:
        """Return *node* as a place."""
        lines = linecache.getlines(self._file)
        line = lines[node.lineno - 1].strip() if node.lineno <= len(lines) else ""
        return Use(line, f"{shorten(self._file)}:{node.lineno}")

    @property
    def parameter(self) -> str:
        """The name of the parameter that a hook gets its response in."""
        names = [each.arg for each in self.node.args.args]
        if len(names) > 1 and names[0] in ("self", "cls"):
            return str(names[1])
        return str(names[0]) if names else ""

    @property
    def names(self) -> Dict[str, Any]:
        """What the names of the function mean, but for its own variables."""
        found = dict(getattr(self.function, "__globals__", {}))
        code = self.function.__code__
        for name, cell in zip(code.co_freevars, self.function.__closure__ or ()):
            try:
                found[name] = cell.cell_contents
            except ValueError:
                pass  # it has no value yet
        return found

    @property
    def is_generator(self) -> bool:
        """Whether the function itself yields."""
        return _yields(self.node)

    @property
    def generators(self) -> List[Any]:
        """The functions and expressions in it that yield, itself among them."""
        return [
            node for node in ast.walk(self.node)
            if isinstance(node, ast.GeneratorExp) or isinstance(node, _Function) and _yields(node)
        ]

    def called(self) -> Iterator[Any]:
        """Yield the functions that it calls by a name."""
        names = self.names
        for node in ast.walk(self.node):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                function = names.get(node.func.id)
                if inspect.isfunction(function):
                    yield function

    def mentions(self, *names: str) -> bool:
        """Whether one of these is a name or an attribute in it."""
        return any(
            getattr(node, "id", None) in names or getattr(node, "attr", None) in names
            for node in ast.walk(self.node)
        )


def source_of(function: Any) -> Optional[Source]:
    """Return the source of *function*, of a method, a partial, or an object that is called."""
    function = _bare(function)
    code = getattr(function, "__code__", None)
    if code is None:
        return None
    for node in _functions(code.co_filename):
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno] + [each.lineno for each in decorators])
        if first == code.co_firstlineno and getattr(node, "name", "<lambda>") == code.co_name:
            return Source(function, node, code.co_filename)
    return None


def place(thing: Any) -> Optional[str]:
    """Return ``file:line`` of a function, or of the class of another object."""
    code = getattr(_bare(thing), "__code__", None)
    if code is not None:
        return f"{shorten(code.co_filename)}:{code.co_firstlineno}"
    return None


def name_of(thing: Any) -> str:
    """Return module and name of a function, or of the class of another object."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    if not hasattr(thing, "__qualname__"):
        thing = type(thing)
    return f"{thing.__module__}.{thing.__qualname__}"


def shorten(file: str) -> str:
    """Return *file* relative to the current folder, where it is in that."""
    here = os.getcwd() + os.sep
    return file[len(here):] if file.startswith(here) else file


def _bare(thing: Any) -> Any:
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = getattr(thing, "__func__", thing)
    if not inspect.isfunction(thing) and not inspect.isclass(thing):
        thing = getattr(type(thing), "__call__", thing)
    return thing


@functools.lru_cache(maxsize=None)
def _functions(file: str) -> Tuple[Any, ...]:
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    return tuple(node for node in ast.walk(tree) if isinstance(node, _Function))


def _yields(function: Any) -> bool:
    """Whether it yields itself, and not only what is defined in it."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Yield, ast.YieldFrom)):
            return True
        if not isinstance(node, _Function) and not isinstance(node, ast.GeneratorExp):
            waiting.extend(ast.iter_child_nodes(node))
    return False
