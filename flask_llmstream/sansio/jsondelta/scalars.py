"""Strings, numbers and literals: what a reader of JSON does between two signs of structure."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Optional

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.events import JsonDelta
from flask_llmstream.sansio.jsondelta.options import JsonOptions

__all__ = ["ScalarReader"]

#: Runs of characters that stand for themselves, by quote and tolerance.
_PLAIN = {
    ('"', False): re.compile(r'[^"\\\x00-\x1f]*').match,
    ('"', True): re.compile(r'[^"\\]*').match,
    ("'", False): re.compile(r"[^'\\\x00-\x1f]*").match,
    ("'", True): re.compile(r"[^'\\]*").match,
}
#: The same for whole tokens, on one line.
_RUN = {
    ('"', False): re.compile(r'[^"\\\x00-\x1f]+').fullmatch,
    ('"', True): re.compile(r'[^"\\\n]+').fullmatch,
    ("'", False): re.compile(r"[^'\\\x00-\x1f]+").fullmatch,
    ("'", True): re.compile(r"[^'\\\n]+").fullmatch,
}
_ESCAPE = re.compile(r"""\\(?:["\\/bfnrt']|u[0-9a-fA-F]{4})""").match
_ESCAPE_CUT = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?\Z").match
_LOW_SURROGATE = re.compile(r"\\u[dD][c-fC-F][0-9a-fA-F]{2}").match
_LOW_SURROGATE_CUT = re.compile(r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?\Z").match
_ESCAPED = {
    '"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "'": "'",
}
_WORD = re.compile(r"[-+.0-9A-Za-z_]+").match
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]*)").fullmatch
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?").fullmatch
_LITERALS: Dict[str, Any] = {"true": True, "false": False, "null": None}
_PYTHON_LITERALS: Dict[str, Any] = {
    **_LITERALS, "True": True, "False": False, "None": None,
    "NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf"),
}
#: Most characters of a number: what Python reads as an int, and int() takes time that grows with
#: the square of them. https://docs.python.org/3/library/stdtypes.html#int-max-str-digits
_MAX_WORD = 4300


class ScalarReader:
    """What is read inside of values; the reader of structure, a subclass, does the rest.

    ``_step`` is the method that reads on: it takes a text and a position in it, reads at least one
    character, or keeps what it cannot decide yet in ``_held``, and returns the position behind.
    """

    _step: Callable[[str, int], int]

    def __init__(self, options: JsonOptions) -> None:
        self._options = options
        self._out: List[JsonDelta] = []
        self._held = ""  # begins the next text: too short to say what it is
        # Where the first character of the text is: for messages, and for the limit of size.
        self._base = 0
        self._line = 1
        self._line_start = 0
        # Of the value that is being read:
        self._path = ""
        self._op = "add"
        self._parts: List[str] = []  # of a string, a key or a word, since it was last written
        self._in_text = self._added = self._is_key = False
        self._is_weak = False  # no string has been read since a candidate began; see prose
        self._quote = '"'
        self._plain = _PLAIN['"', False]
        self._run = _RUN['"', False]
        self._word_size = 0
        self._literals = _PYTHON_LITERALS if options.python_literals else _LITERALS

    # -- what the rest of the reader does -----------------------------------------------------

    def _key_read(self, key: str, text: str, end: int) -> int:
        """Go on behind a key, at *end*."""
        raise NotImplementedError

    def _value_read(self, text: str, end: int) -> int:
        """Go on behind a value, at *end*."""
        raise NotImplementedError

    def _fault(self, text: str, at: int, message: str, resume: Optional[int] = None) -> int:
        """Raise, or return where to go on.

        :param at: position in *text* of what is wrong.
        :param resume: where to go on, if not there.
        """
        raise NotImplementedError

    # -- positions ----------------------------------------------------------------------------

    def _where(self, text: str, at: int) -> str:
        breaks = text.count("\n", 0, max(at, 0))
        start = self._base + text.rfind("\n", 0, at) + 1 if breaks else self._line_start
        offset = self._base + at
        return f"line {self._line + breaks} column {offset - start + 1} (char {offset})"

    def _error(self, text: str, at: int, message: str) -> DecodeError:
        return DecodeError(f"no valid JSON at {self._where(text, at)}: {message}")

    # -- strings ------------------------------------------------------------------------------

    def _begin_string(self, quote: str, is_key: bool) -> None:
        self._in_text = not is_key
        self._is_key = is_key
        self._added = False
        self._quote = quote
        self._plain = _PLAIN[quote, self._options.control_characters]
        self._run = _RUN[quote, self._options.control_characters]
        self._step = self._read_string

    def _read_string(self, text: str, pos: int) -> int:
        end = self._plain(text, pos).end()  # type: ignore[union-attr]
        if end > pos:
            self._parts.append(text[pos:end])
        if end == len(text):
            return end
        char = text[end]
        if char == self._quote:
            if self._is_key:
                key = "".join(self._parts)
                self._parts = []
                self._is_key = False
                return self._key_read(key, text, end + 1)
            self._write_text()
            self._in_text = self._is_weak = False
            self._out.append(JsonDelta(self._path, "complete"))
            return self._value_read(text, end + 1)
        if char == "\\":
            return self._read_escape(text, end)
        return self._fault(text, end, f"{char!r} in a string must be escaped")

    def _read_escape(self, text: str, pos: int) -> int:
        if _ESCAPE(text, pos) is None:
            if _ESCAPE_CUT(text, pos):
                return self._hold(text, pos)
            return self._fault(text, pos, "no such escape")
        char = text[pos + 1]
        if char != "u":
            if char == "'" and not self._options.single_quotes:
                return self._fault(text, pos, "no such escape")
            self._parts.append(_ESCAPED[char])
            return pos + 2
        unit = int(text[pos + 2 : pos + 6], 16)
        end = pos + 6
        if 0xD800 <= unit < 0xDC00:
            if _LOW_SURROGATE(text, end):
                low = int(text[end + 2 : end + 6], 16)
                unit = 0x10000 + ((unit & 0x3FF) << 10 | low & 0x3FF)
                end += 6
            elif _LOW_SURROGATE_CUT(text, end):
                # Half a character cannot be sent, and the other half may be in the next token.
                return self._hold(text, pos)
        self._parts.append(chr(unit))
        return end

    def _hold(self, text: str, pos: int) -> int:
        self._held = text[pos:]
        return len(text)

    def _write_text(self) -> None:
        """Write what has been read of a string that is a value."""
        if not self._added:
            self._added = True
            self._out.append(JsonDelta(self._path, self._op, "".join(self._parts)))
        elif self._parts:
            self._out.append(JsonDelta(self._path, "append", "".join(self._parts)))
        else:
            return
        self._parts = []

    # -- numbers and literals -----------------------------------------------------------------

    def _begin_word(self) -> None:
        self._word_size = 0
        self._step = self._read_word

    def _read_word(self, text: str, pos: int) -> int:
        found = _WORD(text, pos)
        if found is not None:
            end = found.end()
            self._parts.append(text[pos:end])
            self._word_size += end - pos
            if self._word_size > _MAX_WORD:
                at = end - self._word_size + _MAX_WORD
                return self._fault(text, at, f"a number of more than {_MAX_WORD} characters")
            if end == len(text):
                return end  # it may go on
        else:
            end = pos
        return self._end_word(text, end)

    def _end_word(self, text: str, end: int) -> int:
        word = "".join(self._parts)
        self._parts = []
        if word in self._literals:
            value = self._literals[word]
        elif _INTEGER(word):
            value = int(word)
        elif _FLOAT(word):
            value = float(word)
        else:
            return self._fault(text, end - len(word), "neither a number nor a literal", end)
        self._out.append(JsonDelta(self._path, self._op, value))
        self._out.append(JsonDelta(self._path, "complete"))
        return self._value_read(text, end)
