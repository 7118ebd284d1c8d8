"""Deltas in, the value out: what a client does."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Dict, List

from flask_llmstream.sansio.events import JsonDelta
from flask_llmstream.sansio.jsondelta.pointer import child_of, find, key_in

__all__ = ["JsonDocument", "apply_delta"]


def apply_delta(document: Any, delta: JsonDelta) -> Any:
    """Return *document* after *delta*; arrays and objects are changed in place.

    ::

        document = None
        for delta in deltas:
            document = apply_delta(document, delta)

    An ``append`` copies the text that it grows, so that following a very long text this way costs
    time that grows with its square; :class:`JsonDocument` keeps to a fixed cost per delta.

    :param document: anything before the first delta.
    :raises ValueError: the path leads nowhere, or ``op`` is unknown.
    """
    path, op = delta.path, delta.op
    if op == "complete":
        return document
    if op == "append":
        return _put(document, path, "replace", _text(find(document, path)) + delta.value)
    return _put(document, path, op, _copy(delta.value))


def _put(document: Any, path: str, op: str, value: Any) -> Any:
    if not path:
        _check(op)
        return value
    above, _, token = path.rpartition("/")
    _set(find(document, above), token, op, value)
    return document


def _set(parent: Any, token: str, op: str, value: Any) -> bool:
    """Put *value* into *parent*; return whether the places of others have moved."""
    _check(op)
    if op == "replace":
        child_of(parent, token)
    key = key_in(parent, token)
    if op == "add" and isinstance(parent, list):
        parent.insert(key, value)  # type: ignore[arg-type]
        return key != len(parent) - 1
    parent[key] = value
    return False


def _check(op: str) -> None:
    if op not in ("add", "replace"):
        raise ValueError(f"the op of a delta is {op!r}, expected add, append, replace or complete")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a delta appends to something that is no text; was a delta left out?")
    return value


def _copy(value: Any) -> Any:
    # What a delta carries stays as it is: it may be encoded later than it is applied.
    if value.__class__ in (dict, list):
        return deepcopy(value) if value else value.__class__()
    return value


class JsonDocument:
    """The value that deltas make, at a cost per delta that does not grow with it.

    :meth:`apply` them in order. Text that is still growing is kept in pieces, which are put
    together when :attr:`value` is looked at.
    """

    def __init__(self) -> None:
        #: Whether the document is whole: the last delta has completed it.
        self.complete = False
        self._root: Any = None
        self._containers: Dict[str, Any] = {}  # that are open, by path
        self._path = ""  # of the text that grows
        self._parts: List[str] = []  # of it

    @property
    def value(self) -> Any:
        """The value so far, ``None`` before the first delta.

        It is the document itself, which later deltas go on changing: copy what you keep.
        """
        self._settle()
        return self._root

    def apply(self, delta: JsonDelta) -> None:
        """Change the value.

        :raises ValueError: as :func:`apply_delta`.
        """
        path, op = delta.path, delta.op
        if op == "append":
            if not self._parts or path != self._path:
                self._settle()
                self._parts = [_text(find(self._root, path))]
                self._path = path
            self._parts.append(delta.value)
            return
        if self._parts:
            self._settle()
            self._parts = []
        if op == "complete":
            self._containers.pop(path, None)
            self.complete = not path
            return
        self.complete = False
        value = _copy(delta.value)
        if not path:
            _check(op)
            self._root = value
            self._containers.clear()
        else:
            above, _, token = path.rpartition("/")
            parent = self._containers.get(above)
            if parent is None:
                parent = find(self._root, above)
            if _set(parent, token, op, value) or op == "replace":
                self._containers.clear()  # some may be elsewhere now, or gone
        if value.__class__ is str:
            self._path, self._parts = path, [value]
        elif value.__class__ in (dict, list):
            self._containers[path] = value

    def _settle(self) -> None:
        """Put the text together that grows."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
            self._root = _put(self._root, self._path, "replace", self._parts[0])
