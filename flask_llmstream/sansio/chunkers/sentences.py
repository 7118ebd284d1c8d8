"""Sentences. A stop at the end of what has come may turn out to be a decimal point, so it waits."""

from __future__ import annotations

from typing import List

from flask_llmstream.sansio.chunkers.base import CuttingChunker
from flask_llmstream.sansio.chunkers.stops import CANDIDATE, NO_END, REACH, find_end

__all__ = ["SentenceChunker"]


class SentenceChunker(CuttingChunker):
    """Cuts between sentences, behind the blanks that follow a stop, and behind line ends.

    Not behind abbreviations of several languages, initials, decimals, ordinals and list numbers.
    A sentence leaves when it is seen that another begins.
    """

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""
        super().reset()
        #: What the next stop is judged by, and from where on stops have not been judged yet.
        self._window = ""
        self._judged = 0

    def _find_cuts(self, text: str) -> List[int]:
        window = self._window + text
        origin = self._fed - len(self._window)
        cuts = []
        judged = self._judged
        while True:
            found = CANDIDATE.search(window, judged)
            if found is None:
                judged = len(window)
                break
            place, behind = found.span()
            before = window[max(0, place - REACH) : place]
            end = find_end(before, found.group(), window[behind : behind + REACH])
            if end is None:
                judged = place
                break
            judged = behind
            if end != NO_END:
                cuts.append(origin + behind + end)
        keep = max(0, judged - REACH)
        self._window = window[keep:]
        self._judged = judged - keep
        return cuts
