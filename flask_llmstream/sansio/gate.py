"""Lets bytes pass in whole events or lines: whoever breaks in between two of them breaks nothing."""

from __future__ import annotations

from typing import Dict, Optional, Tuple

__all__ = ["Gate", "make_gate"]

#: Bytes that are held back at most. What is longer passes in the pieces in which it comes.
_MAX_HELD = 65536
#: What ends an event or line. Where lines end in CR alone nothing is held back.
_ENDS: Dict[str, Tuple[bytes, ...]] = {"sse": (b"\n\n", b"\n\r\n"), "ndjson": (b"\n",)}
_LONGEST = 3


def make_gate(framing: str) -> Optional[Gate]:
    """Return a gate for *framing*, ``sse`` or ``ndjson``; ``None`` for any other."""
    ends = _ENDS.get(framing)
    return None if ends is None else Gate(ends)


class Gate:
    """Takes bytes that are cut anywhere, returns them cut behind one of *ends*."""

    __slots__ = ("_ends", "_held", "_passed")

    def __init__(self, ends: Tuple[bytes, ...]) -> None:
        self._ends = ends
        self._held = b""
        #: The last bytes that have passed of something too long; empty otherwise.
        self._passed = b""

    @property
    def between(self) -> bool:
        """Whether what has passed ends with a whole event or line."""
        return not self._passed

    def feed(self, block: bytes) -> bytes:
        """Return what can pass now."""
        if self._passed:
            return self._pass_on(block)
        data = self._held + block if self._held else block
        end = max([data.rfind(end) + len(end) for end in self._ends if end in data] or [0])
        held = data[end:]
        if len(held) > _MAX_HELD or b"\r\r" in held:
            self._held = b""
            self._passed = held[-_LONGEST:]
            return data
        self._held = held
        return data[:end]

    def flush(self) -> bytes:
        """Return what is left, at the end of the stream."""
        rest, self._held = self._held, b""
        return rest

    def _pass_on(self, block: bytes) -> bytes:
        """Let the rest of something too long pass."""
        data = self._passed + block
        found = [data.find(end) + len(end) for end in self._ends if end in data]
        if not found:
            self._passed = data[-_LONGEST:]
            return block
        rest = data[min(found) :]
        self._passed = b""
        return block[: len(block) - len(rest)] + self.feed(rest)
