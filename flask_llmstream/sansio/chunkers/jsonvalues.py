"""JSON, one field or element at a time, also where it stands inside of prose."""

from __future__ import annotations

import re
from typing import List

from flask_llmstream.sansio.chunkers.base import CuttingChunker

__all__ = ["JSONChunker"]


class JSONChunker(CuttingChunker):
    """Cuts behind the comma after each field or element, at any depth, and behind each document.

    So a string, a number and a literal always go out whole. Outside of a document, it cuts behind
    line ends, for values that stand on lines, and before a document that begins in prose.
    """

    _SURE = True  # no JSON has a combining mark behind a comma, a bracket or a closing quote
    _OUTSIDE = re.compile(r'[\[{}\]\n"]')
    _INSIDE = re.compile(r'[\[{}\],"]')
    _IN_STRING = re.compile(r'["\\]')

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""
        super().reset()
        self._depth = 0
        self._in_string = False
        self._escaped = False
        #: Whether there is more than blanks since the last cut outside of documents.
        self._prose = False

    def _find_cuts(self, text: str) -> List[int]:
        cuts: List[int] = []
        place = 0
        while place < len(text):
            if self._in_string:
                place = self._read_string(text, place, cuts)
            elif self._depth:
                place = self._read_inside(text, place, cuts)
            else:
                place = self._read_outside(text, place, cuts)
        return cuts

    def _read_string(self, text: str, place: int, cuts: List[int]) -> int:
        if self._escaped:
            self._escaped = False
            return place + 1
        found = self._IN_STRING.search(text, place)
        if found is None:
            return len(text)
        if found.group() == "\\":
            self._escaped = True
        else:
            self._in_string = False
            if not self._depth:
                cuts.append(self._fed + found.end())
        return found.end()

    def _read_inside(self, text: str, place: int, cuts: List[int]) -> int:
        found = self._INSIDE.search(text, place)
        if found is None:
            return len(text)
        mark = found.group()
        if mark == '"':
            self._in_string = True
        elif mark in "[{":
            self._depth += 1
        elif mark in "]}":
            self._depth -= 1
        if mark == "," or not self._depth:
            cuts.append(self._fed + found.end())
        return found.end()

    def _read_outside(self, text: str, place: int, cuts: List[int]) -> int:
        found = self._OUTSIDE.search(text, place)
        end = len(text) if found is None else found.start()
        if text[place:end].strip():
            self._prose = True
        if found is None:
            return end
        mark = found.group()
        if mark in "]}" or (mark == '"' and self._prose):
            self._prose = True
        elif mark == "\n":
            if self._prose:
                cuts.append(self._fed + found.end())
            self._prose = False
        else:
            if self._prose:
                cuts.append(self._fed + end)
            self._prose = False
            self._in_string = mark == '"'
            self._depth = 0 if self._in_string else 1
        return found.end()
