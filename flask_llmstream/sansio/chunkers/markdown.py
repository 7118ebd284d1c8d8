"""Markdown in pieces that each can be rendered: nothing that is open is cut.

Fences and rows are told line by line; what is open inside of a paragraph is told by
:mod:`~flask_llmstream.sansio.chunkers.inline`.
"""

from __future__ import annotations

import re
from typing import List

from flask_llmstream.sansio.chunkers.base import CuttingChunker
from flask_llmstream.sansio.chunkers.inline import OpenInlines

__all__ = ["MarkdownChunker"]

_CONTAINERS = r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*"
_FENCE = re.compile(rf"(?P<indent>{_CONTAINERS})(?P<fence>`{{3,}}|~{{3,}})")
_CLOSING_FENCE = re.compile(r"(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})[ \t\r]*")
#: Begins a block, as soon as a blank follows.
_BLOCK_MARK = re.compile(r"[ \t>]*(?:[-*+]|\d{1,9}[.)]|#{1,6})")
_ROW_OF_DASHES = re.compile(r"[ \t>]*[|:-][-|: \t\r]*")
_CELL_OF_DASHES = re.compile(r"[ \t>]*:?--+:?")
#: No line that matters is told by more than that.
_LINE_BEGINNING = 256


class MarkdownChunker(CuttingChunker):
    """Cuts behind words and lines, where no emphasis, link, code span, fence or table row is open.

    A fence goes out as one, a table by the row. A row that does not begin with ``|`` is held from its
    first ``|`` on. What is never closed is open up to the end of its paragraph.
    """

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""
        super().reset()
        self._inlines = OpenInlines()
        self._line = ""
        self._before = "\n"
        #: The fence that is open, and how far it is indented.
        self._fence = ""
        self._indent = 0
        self._in_info = False
        self._in_row = False
        self._in_table = False
        self._in_word = False

    def _find_cuts(self, text: str) -> List[int]:
        position = self._fed
        cuts = []
        for character in text:
            position += 1
            if self._read(character):
                cuts.append(position)
            self._before = character
            if character == "\n":
                self._line = ""
            elif len(self._line) < _LINE_BEGINNING:
                self._line += character
        return cuts

    def _read(self, character: str) -> bool:
        """Take the next character; return whether to cut behind it."""
        if self._fence:
            if not self._in_info:
                return character == "\n" and self._ends_fence()
            if character == "\n":
                self._in_info = False
            if character != "`" or self._fence[0] != "`":
                return False
            # No fence: its info string may hold no backtick, so these began a code span.
            self._inlines.open_code(len(self._fence))
            self._fence = ""
            self._in_info = False
        elif self._line[-3:] in ("```", "~~~") and self._begins_fence(character):
            return False
        if character == "\n":
            return self._end_line()
        self._inlines.feed(character)
        if character.isspace():
            return self._end_word()
        self._in_word = True
        if self._in_table or (character == "|" and self._before != "\\" and not self._inlines.in_code):
            self._in_row = True
        return False

    def _begins_fence(self, character: str) -> bool:
        found = _FENCE.fullmatch(self._line)
        if found is None or character == self._line[-1]:
            return False
        self._fence = found.group("fence")
        self._indent = len(found.group("indent"))
        self._in_info = character != "\n"
        self._in_table = self._in_row = False
        self._inlines.reset()
        return True

    def _ends_fence(self) -> bool:
        found = _CLOSING_FENCE.fullmatch(self._line)
        if (
            found is None
            or not found.group("fence").startswith(self._fence)
            or len(found.group("indent")) > self._indent + 3
        ):
            return False
        self._fence = ""
        return True

    def _end_word(self) -> bool:
        if _BLOCK_MARK.fullmatch(self._line):
            self._inlines.reset()
        ends = not self._in_row and not self._inlines.open and not _CELL_OF_DASHES.fullmatch(self._line)
        ends = ends and self._in_word
        self._in_word = False
        return ends

    def _end_line(self) -> bool:
        self._in_word = False
        self._inlines.feed("\n")
        if not self._line.strip(" \t>\r"):
            self._in_table = False
            self._inlines.reset()
        elif self._in_row or self._line.strip(" \t>\r").startswith("|"):
            if _ROW_OF_DASHES.fullmatch(self._line) and "-" in self._line:
                self._in_table = True
            if self._in_table or self._line.lstrip(" \t>").startswith("|"):
                self._inlines.reset()  # nothing goes on from one row to the next
        self._in_row = False
        return not self._inlines.open
