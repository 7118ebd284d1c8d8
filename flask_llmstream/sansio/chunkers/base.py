"""What all chunkers share: they hold text back until they know where to cut it."""

from __future__ import annotations

from typing import TYPE_CHECKING, List

from flask_llmstream.sansio.chunkers.graphemes import is_boundary, last_boundary

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # typing has it from Python 3.8

__all__ = ["MAX_HELD", "Chunker", "CuttingChunker"]

#: Longest segment, in characters: who never finds a place to cut must not fill the memory.
MAX_HELD = 65536


class Chunker(Protocol):
    """What cuts the text of one stream. Yours needs no base class."""

    def feed(self, text: str) -> List[str]:
        """Take more text, return the segments that it completes."""

    def flush(self) -> List[str]:
        """Return what is held back: at the end, or when it has been held for too long."""

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""


class CuttingChunker:
    """Holds text back until there is a place to cut it.

    Subclasses say where, in positions counted from the beginning of the stream, and look at each
    character a bounded number of times. A place inside of a grapheme cluster is passed over; one
    at the very end of what has come waits for the next character, which may belong to the last.
    """

    #: Whether nothing that belongs to it can follow a cut, so that a cut at the very end need not wait.
    _SURE = False

    _held: List[str]
    _sent: int
    #: How much has been fed so far; while cuts are looked for, without the new text.
    _fed: int
    #: Cuts that depend on the next character.
    _waiting: List[int]

    def __init__(self) -> None:
        self.reset()

    @property
    def characters_held(self) -> int:
        """How many characters are held back."""
        return self._fed - self._sent

    def feed(self, text: str) -> List[str]:
        """Take more text, return the segments that it completes."""
        if not text:
            return []
        cuts = self._find_cuts(text)
        self._held.append(text)
        self._fed += len(text)
        if not cuts and not self._waiting and self._fed - self._sent <= MAX_HELD:
            return []
        return self._cut(self._waiting + cuts)

    def flush(self) -> List[str]:
        """Return what is held back; more may be fed afterwards, and is seen in its context."""
        rest = "".join(self._held)
        self._held = []
        self._waiting = []
        self._sent = self._fed
        return [rest] if rest else []

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""
        self._held = []
        self._sent = 0
        self._fed = 0
        self._waiting = []

    def _find_cuts(self, text: str) -> List[int]:
        """Return where segments end, ascending, having looked at new, non-empty *text*."""
        raise NotImplementedError

    def _cut(self, cuts: List[int]) -> List[str]:
        held = "".join(self._held)
        segments: List[str] = []
        start = 0
        self._waiting = []
        for cut in cuts:
            end = cut - self._sent
            if end <= start:
                continue
            start = self._cut_long(held, start, end, segments)
            verdict = is_boundary(held, end, start)
            if verdict or (verdict is None and self._SURE):
                segments.append(held[start:end])
                start = end
            elif verdict is None:
                self._waiting.append(cut)
        start = self._cut_long(held, start, len(held), segments)
        rest = held[start:]
        self._held = [rest] if rest else []
        self._sent += start
        return segments

    @staticmethod
    def _cut_long(held: str, start: int, end: int, segments: List[str]) -> int:
        """Cut what is too long for one segment; return where the rest of it begins."""
        while end - start > MAX_HELD:
            # One cluster of that length is no text; it is torn.
            cut = last_boundary(held, start + MAX_HELD, start)
            cut = cut if cut > start else start + MAX_HELD
            segments.append(held[start:cut])
            start = cut
        return start
