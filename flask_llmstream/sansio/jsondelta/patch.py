"""The same changes for clients that know JSON Patch, such as those of AG-UI's ``STATE_DELTA``.

https://www.rfc-editor.org/rfc/rfc6902

Decisions: JSON Patch cannot append to a text, it can only replace it by a longer one. Doing so for
every piece sends a text of n characters some n² / 8 times over. So a text is replaced only when it
has grown by a share of what the client has; all its replacements together are then at most
``2 + 1 / growth`` times as long as the text.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, List

from flask_llmstream.sansio.events import JsonDelta

__all__ = ["JsonPatcher", "to_json_patch"]

#: One operation: op, path, value.
Operation = Dict[str, Any]


class JsonPatcher:
    """Turns deltas into operations, one at a time.

    :param growth: by what share a text must have grown before it is sent again, from 0 (with every
        piece; the cost grows with the square of the text) upwards. What is missing comes when the
        text is complete. Defaults to an eighth: short texts grow with nearly every token, and all
        together costs at most ten times the text. ``math.inf``: only when it is complete.
    :param prefix: path of the document in the client's state. Defaults to none: it is the state.
    """

    def __init__(self, growth: float = 0.125, prefix: str = "") -> None:
        if not growth >= 0:
            raise ValueError(f"growth is {growth!r}, expected 0 or more")
        self._growth = growth
        self._prefix = prefix
        self._path = ""  # of the text that grows
        self._parts: List[str] = []  # of it
        self._size = self._sent = 0  # characters of it: that have come, that the client has

    def feed(self, delta: JsonDelta) -> List[Operation]:
        """Return the operations that *delta* makes, in a list that may be empty.

        :raises ValueError: *delta* appends to something that is not the latest text.
        """
        path, op, value = delta.path, delta.op, delta.value
        if op == "append":
            if path != self._path or not self._parts:
                raise ValueError("a delta appends to a text that did not come right before it")
            self._parts.append(value)
            self._size += len(value)
            grown = self._size - self._sent
            return self._send() if grown >= self._growth * self._sent else []
        operations = self.flush()
        self._parts = []
        if op != "complete":
            operations.append({"op": op, "path": self._prefix + path, "value": value})
            if value.__class__ is str:
                self._path, self._parts = path, [value]
                self._size = self._sent = len(value)
        return operations

    def flush(self) -> List[Operation]:
        """Return what the client does not have yet; call it at the end."""
        return self._send() if self._parts and self._size > self._sent else []

    def _send(self) -> List[Operation]:
        text = "".join(self._parts)
        self._parts = [text]
        self._sent = len(text)
        return [{"op": "replace", "path": self._prefix + self._path, "value": text}]


def to_json_patch(
    deltas: Iterable[Any], growth: float = 0.125, prefix: str = ""
) -> Iterator[Operation]:
    """Yield the operations that *deltas* make; what is not a JsonDelta is left out.

    :param growth: see :class:`JsonPatcher`.
    :param prefix: see :class:`JsonPatcher`.
    """
    patcher = JsonPatcher(growth, prefix)
    for delta in deltas:
        if isinstance(delta, JsonDelta):
            yield from patcher.feed(delta)
    yield from patcher.flush()
