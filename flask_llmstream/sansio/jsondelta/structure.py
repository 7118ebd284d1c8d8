"""Brackets, commas, colons and comments: what of JSON may follow what."""

from __future__ import annotations

import re
from typing import Callable, List, Optional, Set

from flask_llmstream.sansio.events import JsonDelta
from flask_llmstream.sansio.jsondelta.options import JsonOptions
from flask_llmstream.sansio.jsondelta.pointer import token_of
from flask_llmstream.sansio.jsondelta.prose import ProseReader

__all__ = ["StructureReader"]

_BLANKS = " \t\n\r"
_skip_blanks = re.compile(r"[ \t\n\r]*").match
_WORD_STARTS = frozenset("-0123456789tfn")
_PYTHON_WORD_STARTS = _WORD_STARTS | frozenset("TFNI")


class _Container:
    """An array or object that is open."""

    __slots__ = ("path", "keys", "size")

    def __init__(self, path: str, is_object: bool) -> None:
        self.path = path
        self.keys: Optional[Set[str]] = set() if is_object else None
        self.size = 0  # of an array, less one


class StructureReader(ProseReader):
    """Reads the inside of documents.

    ``_expect`` is the method that knows what may follow: it takes the first character that is
    neither blank nor comment, the text and the position of that character.
    """

    _expect: Callable[[str, str, int], int]

    def __init__(self, options: JsonOptions) -> None:
        super().__init__(options)
        self._open: List[_Container] = []
        self._may_close = False  # what is expected, or else the end of its container
        self._comment_end = ""
        self._comment_starts = "/#" if options.comments else ""
        self._quotes = "\"'" if options.single_quotes else '"'
        self._word_starts = _PYTHON_WORD_STARTS if options.python_literals else _WORD_STARTS

    def _document_read(self, text: str, end: int) -> int:
        """Go on behind a document."""
        raise NotImplementedError

    def _read_structure(self, text: str, pos: int) -> int:
        """Read the next sign; the step inside of documents, outside of strings and words."""
        char = text[pos]
        if char in _BLANKS:
            pos = _skip_blanks(text, pos).end()  # type: ignore[union-attr]
            if pos == len(text):
                return pos
            char = text[pos]
        # "[#12]" is prose more often than an array that begins with a comment.
        if char in self._comment_starts and (char == "/" or self._kept_back is None):
            return self._begin_comment(char, text, pos)
        return self._expect(char, text, pos)

    def _expect_value(self, char: str, text: str, pos: int) -> int:
        if char in self._quotes:
            if self._kept_back is not None and not self._proof_needed:
                self._prove()
            self._begin_string(char, False)
            return pos + 1
        if char == "{" or char == "[":
            return self._begin_container(char == "{", text, pos)
        if char in self._word_starts:
            self._begin_word()
            return pos
        if char == "]" and self._may_close:
            return self._end_container(text, pos)
        return self._fault(text, pos, f"expected a value, got {char!r}")

    def _expect_key(self, char: str, text: str, pos: int) -> int:
        if char in self._quotes:
            self._begin_string(char, True)
            return pos + 1
        if char == "}" and self._may_close:
            return self._end_container(text, pos)
        return self._fault(text, pos, f"expected a key in quotes, got {char!r}")

    def _key_read(self, key: str, text: str, end: int) -> int:
        keys = self._open[-1].keys
        assert keys is not None
        self._op = "replace" if key in keys else "add"
        keys.add(key)
        self._expect = self._expect_colon
        self._step = self._read_structure
        return self._go_to(token_of(key), text, end)

    def _expect_colon(self, char: str, text: str, pos: int) -> int:
        if char != ":":
            return self._fault(text, pos, f"expected ':', got {char!r}")
        if self._kept_back is not None:
            self._prove()
        self._may_close = False
        self._expect = self._expect_value
        return pos + 1

    def _value_read(self, text: str, end: int) -> int:
        if not self._open:
            return self._document_read(text, end)
        self._expect = self._expect_more
        self._step = self._read_structure
        return end

    def _expect_more(self, char: str, text: str, pos: int) -> int:
        container = self._open[-1]
        close = "]" if container.keys is None else "}"
        if char == close:
            return self._end_container(text, pos)
        if char != ",":
            return self._fault(text, pos, f"expected ',' or {close!r}, got {char!r}")
        if self._kept_back is not None and not self._is_proven():
            return self._disprove(pos)
        self._may_close = self._options.trailing_commas
        if container.keys is not None:
            self._expect = self._expect_key
            return pos + 1
        container.size += 1
        self._op = "add"
        self._expect = self._expect_value
        return self._go_to(str(container.size), text, pos + 1)

    def _begin_container(self, is_object: bool, text: str, pos: int) -> int:
        if len(self._open) == self._options.max_depth:
            return self._exceeded(text, pos, "max_depth", self._options.max_depth)
        path = self._path
        self._out.append(JsonDelta(path, self._op, {} if is_object else []))
        self._open.append(_Container(path, is_object))
        self._may_close = True
        self._op = "add"
        self._step = self._read_structure
        if is_object:
            self._expect = self._expect_key
            return pos + 1
        self._expect = self._expect_value
        return self._go_to("0", text, pos + 1)

    def _end_container(self, text: str, pos: int) -> int:
        if self._kept_back is not None and not self._is_proven():
            return self._disprove(pos)
        self._out.append(JsonDelta(self._open.pop().path, "complete"))
        return self._value_read(text, pos + 1)

    def _go_to(self, token: str, text: str, end: int) -> int:
        """Make *token* of the innermost container the path of what follows at *end*."""
        self._path = path = f"{self._open[-1].path}/{token}"
        if len(path) > self._options.max_path:
            return self._exceeded(text, end, "max_path", self._options.max_path)
        return end

    def _begin_comment(self, char: str, text: str, pos: int) -> int:
        following = text[pos + 1 : pos + 2]
        if char == "/":
            if not following:
                return self._hold(text, pos)
            if following not in "/*":
                return self._fault(text, pos, "expected a value or a comment, got '/'")
        self._comment_end = "*/" if char == "/" and following == "*" else "\n"
        self._step = self._read_comment
        return pos + (2 if char == "/" else 1)

    def _read_comment(self, text: str, pos: int) -> int:
        end = text.find(self._comment_end, pos)
        if end < 0:
            if self._comment_end == "*/" and text.endswith("*"):
                return self._hold(text, len(text) - 1)
            return len(text)
        end += len(self._comment_end)
        self._comment_end = ""
        self._step = self._read_structure
        return end
