"""What is still open in a paragraph of Markdown: emphasis, links, code.

After CommonMark's delimiter runs (https://spec.commonmark.org/0.31.2/#delimiter-run). What is never
closed counts as open up to the end of its block.
"""

from __future__ import annotations

import unicodedata
from typing import List

__all__ = ["OpenInlines"]

#: What stands before the first character of a block.
_BLANK = "\n"
#: Who opens more means no markup, and each is looked at for each that closes.
_DEEPEST = 100


class _Run:
    """Delimiters that may begin emphasis, or the bracket of a link text."""

    __slots__ = ("mark", "count", "both")

    def __init__(self, mark: str, count: int, both: bool) -> None:
        self.mark = mark
        self.count = count
        self.both = both


class OpenInlines:
    """Reads a paragraph by the character. Whether something is open is settled by a blank."""

    __slots__ = (
        "_runs", "_code", "_parens", "_in_title", "_escaped", "_behind_bracket", "_mark", "_count",
        "_before_mark", "_before",
    )

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin a new block."""
        self._runs: List[_Run] = []
        #: How many backticks close the code span, or 0.
        self._code = 0
        #: How deep inside of a link's destination.
        self._parens = 0
        self._in_title = False
        self._escaped = False
        self._behind_bracket = False
        #: The run of delimiters that is being read.
        self._mark = ""
        self._count = 0
        self._before_mark = _BLANK
        self._before = _BLANK

    @property
    def open(self) -> bool:
        """Whether a cut would tear something."""
        return bool(self._runs or self._code or self._parens)

    @property
    def in_code(self) -> bool:
        """Whether a code span is open."""
        return bool(self._code)

    def open_code(self, backticks: int) -> None:
        """Take note of a code span that looked like a fence at first."""
        self.reset()
        self._code = backticks

    def feed(self, character: str) -> None:
        """Take the next character."""
        if self._mark and character != self._mark:
            self._end_run(character)
        if not self._escaped and character in ("`" if self._code or self._parens else "`*_~"):
            if not self._mark:
                self._mark = character
                self._before_mark = self._before
            self._count += 1
        elif self._escaped:
            self._escaped = False
        elif not self._code:
            self._read(character)
        self._before = character

    def _read(self, character: str) -> None:
        behind_bracket, self._behind_bracket = self._behind_bracket, False
        if character == "\\":
            self._escaped = True
        elif self._parens:
            self._read_destination(character)
        elif character == "(" and behind_bracket:
            self._parens = 1
        elif character == "[":
            self._push(_Run("[", 1, False))
        elif character == "]":
            self._close_bracket()

    def _read_destination(self, character: str) -> None:
        if character == '"':
            self._in_title = not self._in_title
        elif not self._in_title and character in "()":
            self._parens += 1 if character == "(" else -1

    def _close_bracket(self) -> None:
        for place in range(len(self._runs) - 1, -1, -1):
            if self._runs[place].mark == "[":
                # Emphasis that was begun inside of the brackets ends with them.
                del self._runs[place:]
                self._behind_bracket = True
                return

    def _end_run(self, after: str) -> None:
        mark, count = self._mark, self._count
        self._mark, self._count = "", 0
        self._behind_bracket = False
        if mark == "`":
            if not self._code:
                self._code = count
            elif self._code == count:
                self._code = 0
            return
        before = self._before_mark
        # Blanks push delimiters away, letters draw them, punctuation lets the other side decide.
        drawn_before, drawn_after = _pull(before), _pull(after)
        left = drawn_after > 0 and (drawn_after == 2 or drawn_before < 2)
        right = drawn_before > 0 and (drawn_before == 2 or drawn_after < 2)
        opens, closes = left, right
        if mark == "_":
            opens = left and (not right or drawn_before == 1)
            closes = right and (not left or drawn_after == 1)
        if closes:
            count = self._close(mark, count, opens)
        if opens and count:
            self._push(_Run(mark, count, closes))

    def _push(self, run: _Run) -> None:
        if len(self._runs) < _DEEPEST:
            self._runs.append(run)

    def _close(self, mark: str, count: int, opens: bool) -> int:
        """Close emphasis; return how many delimiters are left."""
        whole = count
        for place in range(len(self._runs) - 1, -1, -1):
            run = self._runs[place]
            if run.mark == "[":
                break  # a link binds tighter
            if run.mark != mark:
                continue
            if (run.both or opens) and (run.count + whole) % 3 == 0 and (run.count % 3 or whole % 3):
                continue  # CommonMark's rule 9: *foo**bar*
            closed = min(run.count, count)
            run.count -= closed
            count -= closed
            del self._runs[place if run.count == 0 else place + 1 :]
            if not count:
                break
        return count


def _pull(character: str) -> int:
    if character.isspace():
        return 0
    return 1 if unicodedata.category(character)[0] in "PS" else 2
