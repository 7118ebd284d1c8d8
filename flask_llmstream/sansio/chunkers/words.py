"""Tokens, words, lines and paragraphs: cut at blanks, or not at all."""

from __future__ import annotations

import re
from typing import List

from flask_llmstream.sansio.chunkers.base import CuttingChunker
from flask_llmstream.sansio.chunkers.graphemes import last_boundary, stays_open

__all__ = ["LineChunker", "ParagraphChunker", "TokenChunker", "WordChunker"]


class TokenChunker:
    """Passes text on as it comes, except for a last character that is likely to go on.

    That is half of a surrogate pair, an emoji, a flag, a jamo, or a letter of a script that
    writes with marks. It waits for the next token, so what one sees as one character arrives as
    one. A mark that comes by itself behind a letter of another script goes out by itself.
    """

    _LONGEST_CLUSTER = 256

    def __init__(self) -> None:
        self._held = ""

    @property
    def characters_held(self) -> int:
        """How many characters are held back."""
        return len(self._held)

    def feed(self, text: str) -> List[str]:
        """Take more text, return what of it is complete."""
        if not text:
            return []
        text = self._held + text
        end = len(text)
        if stays_open(text):
            start = max(0, end - self._LONGEST_CLUSTER)
            # The last place where text may be cut, if that is not in the air.
            end = last_boundary(text, end - 1, start)
            if end == start and start:
                end = len(text)
        self._held = text[end:]
        return [text[:end]] if end else []

    def flush(self) -> List[str]:
        """Return what is held back; more may be fed afterwards."""
        rest, self._held = self._held, ""
        return [rest] if rest else []

    def reset(self) -> None:
        """Forget what is held back."""
        self._held = ""


class WordChunker(CuttingChunker):
    """Cuts behind the first blank, of whatever kind, after each word.

    A script that sets no blanks between words is one long word here; ``max_delay`` sends it on.
    """

    _BLANK_BEHIND_WORD = re.compile(r"(?<=\S)\s")

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""
        super().reset()
        self._in_word = False

    def _find_cuts(self, text: str) -> List[int]:
        cuts = [self._fed + blank.end() for blank in self._BLANK_BEHIND_WORD.finditer(text)]
        if self._in_word and text[0].isspace():
            cuts.insert(0, self._fed + 1)
        self._in_word = not text[-1].isspace()
        return cuts


class LineChunker(CuttingChunker):
    """Cuts behind each LF, and so behind CRLF too."""

    _LINE_END = re.compile("\n")

    def _find_cuts(self, text: str) -> List[int]:
        return [self._fed + end.end() for end in self._LINE_END.finditer(text)]


class ParagraphChunker(CuttingChunker):
    """Cuts behind the blank lines that follow a paragraph, as soon as the next one begins."""

    _LINE_END_OR_WORDS = re.compile(r"\n|\S[^\n]*")

    def reset(self) -> None:
        """Forget what is held back, and all that went before."""
        super().reset()
        self._begun = False
        self._line_ends = 0
        self._behind_line_end = 0

    def _find_cuts(self, text: str) -> List[int]:
        cuts = []
        for found in self._LINE_END_OR_WORDS.finditer(text):
            if found.group() == "\n":
                self._line_ends += 1
                self._behind_line_end = self._fed + found.end()
                continue
            if self._line_ends >= 2 and self._begun:
                cuts.append(self._behind_line_end)
            self._line_ends = 0
            self._begun = True
        return cuts
