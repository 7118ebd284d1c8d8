"""Cuts of one's own: behind the matches of a regular expression, or where a function says."""

from __future__ import annotations

from typing import Callable, List, Optional, Pattern

from flask_llmstream.sansio.chunkers.base import MAX_HELD, CuttingChunker
from flask_llmstream.sansio.chunkers.graphemes import is_boundary, last_boundary

__all__ = ["FunctionChunker", "PatternChunker"]


class PatternChunker(CuttingChunker):
    """Cuts behind each match of a regular expression.

    A match that ends where the text has come to waits, since it may go on: so does ``\\n+``. What has
    come is searched, so a cut inside of a longer match is possible where a shorter one is there first.

    :param pattern: a compiled expression for ``str``. A match, with all that it looks at, may be 256
        characters long.
    """

    _LONGEST_MATCH = 256

    def __init__(self, pattern: Pattern[str]) -> None:
        if not isinstance(pattern.pattern, str):
            raise ValueError(f"chunk is {pattern!r}, which matches bytes; text is str")
        self._pattern = pattern
        super().__init__()

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""
        super().reset()
        self._window = ""
        self._searched = 0

    def _find_cuts(self, text: str) -> List[int]:
        window = self._window + text
        origin = self._fed - len(self._window)
        cuts = []
        searched = self._searched
        for match in self._pattern.finditer(window, searched):
            if match.end() == len(window):
                break
            searched = match.end()
            cuts.append(origin + searched)
        # Text is searched again as long as a match could begin in it. One character more is kept,
        # so that no "^" matches where the window happens to begin.
        searched = max(searched, len(window) - self._LONGEST_MATCH)
        keep = max(0, searched - self._LONGEST_MATCH - 1)
        self._window = window[keep:]
        self._searched = searched - keep
        return cuts


class FunctionChunker(CuttingChunker):
    """Cuts where a function says.

    :param find_cut: called with all the text that is held, returns up to which index it is to be
        sent, ``None`` or 0 to wait for more. It is called again with the rest until it waits.
        An index inside of a grapheme cluster means the place before it.
    """

    def __init__(self, find_cut: Callable[[str], Optional[int]]) -> None:
        self._find_cut = find_cut
        super().__init__()

    def _find_cuts(self, text: str) -> List[int]:
        # As one string from now on, so that a token costs no more than the function itself.
        self._held = ["".join(self._held)]
        held = self._held[0] + text
        sent = self._sent
        cuts = []
        start = 0
        if self._waiting:
            # What waits for one more character has been decided already, but for a cluster that goes on.
            start = self._waiting[-1] - sent
            if is_boundary(held, start) is False:
                start = last_boundary(held, start)
                cuts.append(sent + start)
        # Half of a surrogate pair says nothing yet, not even whether it belongs to what is before it.
        end = len(held) - ("\ud800" <= held[-1:] <= "\udbff")
        while start < end:
            shown = held[start : min(start + MAX_HELD, end)]
            index = self._find_cut(shown)
            if index is None or index == 0:
                break
            if not isinstance(index, int) or not 0 < index <= len(shown):
                raise ValueError(
                    f"the function given as chunk returned {index!r}, expected None or an index"
                    f" from 0 to {len(shown)}, the length of the text it was called with"
                )
            if index < len(shown):
                index = last_boundary(held, start + index, start) - start
                if not index:
                    break
            start += index
            cuts.append(sent + start)
        return cuts
