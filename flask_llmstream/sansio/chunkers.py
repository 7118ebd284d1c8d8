"""Chunkers cut the text of a stream into segments that are worth an event of their own.

Whatever is fed comes out again: all segments put together are the text, and where it is cut does
not depend on how it was fed. A chunker belongs to one stream.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional

if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object  # typing has it from Python 3.8

__all__ = ["Chunker", "LineChunker", "WordChunker", "make_chunker"]


class Chunker(Protocol):
    """What cuts the text of one stream. Yours needs no base class."""

    def feed(self, text: str) -> List[str]:
        """Take more text, return the segments that it completes."""

    def flush(self) -> List[str]:
        """Return what is held back: at the end, or when it has been held for too long."""

    def reset(self) -> None:
        """Forget what is held back."""


class _CuttingChunker:
    """Holds text back until a cut is found in new text; old text is never looked at again."""

    def __init__(self) -> None:
        self._held: List[str] = []

    def feed(self, text: str) -> List[str]:
        """Take more text, return the segments that it completes."""
        if not text:
            return []
        cuts = self._find_cuts(text)
        if not cuts:
            self._held.append(text)
            return []
        self._held.append(text[: cuts[0]])
        segments = ["".join(self._held)]
        segments += [text[start:end] for start, end in zip(cuts, cuts[1:])]
        rest = text[cuts[-1] :]
        self._held = [rest] if rest else []
        return segments

    def flush(self) -> List[str]:
        """Return what is held back; more may be fed afterwards."""
        rest = "".join(self._held)
        self.reset()
        return [rest] if rest else []

    def reset(self) -> None:
        """Forget what is held back."""
        self._held = []

    def _find_cuts(self, text: str) -> List[int]:
        """Return the places in new, non-empty *text* behind which a segment ends."""
        raise NotImplementedError


class WordChunker(_CuttingChunker):
    """Cuts behind the first blank, of whatever kind, after each word.

    A script that sets no blanks between words is one long word here; ``max_delay`` sends it on.
    """

    _BLANK_BEHIND_WORD = re.compile(r"(?<=\S)\s")

    def __init__(self) -> None:
        super().__init__()
        self._in_word = False

    def reset(self) -> None:
        """Forget what is held back."""
        super().reset()
        self._in_word = False

    def _find_cuts(self, text: str) -> List[int]:
        cuts = [blank.end() for blank in self._BLANK_BEHIND_WORD.finditer(text)]
        if self._in_word and text[0].isspace():
            cuts.insert(0, 1)
        self._in_word = not text[-1].isspace()
        return cuts


class LineChunker(_CuttingChunker):
    """Cuts behind each LF, and so behind CRLF too."""

    _LINE_END = re.compile("\n")

    def _find_cuts(self, text: str) -> List[int]:
        return [end.end() for end in self._LINE_END.finditer(text)]


_BY_NAME: Dict[str, Callable[[], Chunker]] = {"word": WordChunker, "line": LineChunker}


def make_chunker(spec: Any) -> Optional[Chunker]:
    """Return the chunker that *spec* asks for, ``None`` where text goes out as it comes.

    :param spec: ``None`` or ``"token"``: no chunker; ``"word"``; ``"line"``; a class, of which each
        stream gets an instance of its own; or an object with ``feed`` and ``flush``, for one
        stream only.
    :raises ValueError: for anything else.
    """
    if spec is None or spec == "token":
        return None
    if isinstance(spec, str) and spec in _BY_NAME:
        return _BY_NAME[spec]()
    if callable(getattr(spec, "feed", None)) and callable(getattr(spec, "flush", None)):
        chunker: Chunker = spec() if isinstance(spec, type) else spec
        return chunker
    known = ", ".join(repr(name) for name in ["token", *_BY_NAME])
    raise ValueError(
        f"chunk is {spec!r}, expected None, one of {known}, or an object with feed() and flush()"
    )
