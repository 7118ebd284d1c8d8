"""Finds where JSON begins in the prose around it.

Decisions
    1. A bracket in prose begins a *candidate*. Its deltas are kept back until it has proved itself:
       an object by its first key and the colon behind it, an array by what its first value is. A
       candidate that fails is prose, and nobody has heard of it. From the proof on, a fault is
       a fault.
    2. In the middle of a line, ``[1]`` is a footnote, ``[]`` and ``{}`` are signs, and
       ``["a" …`` may be a quotation. At the beginning of a line and in a fence they are JSON.
    3. The search goes on behind the candidate's fault, not behind its bracket: each character is
       looked at once.
"""

from __future__ import annotations

import re
from typing import List, Optional

from flask_llmstream.exceptions import JsonLimitExceeded
from flask_llmstream.sansio.events import JsonDelta
from flask_llmstream.sansio.jsondelta.options import JsonOptions
from flask_llmstream.sansio.jsondelta.scalars import ScalarReader

__all__ = ["ProseReader"]

_FENCE = r"`{3,}[\w+.-]*|`{1,2}\Z"
_FENCE_OR_BRACKET = re.compile(r"[\[{]|" + _FENCE).search
_ONLY_FENCE = re.compile(_FENCE).search
#: What a fence may be called that holds JSON.
_JSON = ("", "json", "json5", "jsonc", "jsonl", "ndjson")
#: A fence's line that is longer than this is none.
_MAX_FENCE = 40


class ProseReader(ScalarReader):
    """What is read outside of documents."""

    def __init__(self, options: JsonOptions) -> None:
        super().__init__(options)
        self._fence: Optional[str] = None  # the language of the one we are in
        self._at_line_start = True  # no more than blanks before the text
        # The deltas that wait for the proof; None where none is needed.
        self._kept_back: Optional[List[JsonDelta]] = None
        self._proof_needed = False
        self._found: List[JsonDelta] = []  # what is handed out for this token

    def _begin_document(self, char: str, text: str, pos: int) -> int:
        """Go on with the bracket *char* at *pos*."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """Forget the document that has begun."""
        raise NotImplementedError

    def _find(self, text: str, pos: int) -> int:
        """Pass over prose; the step outside of documents."""
        in_other = self._fence is not None and self._fence not in _JSON
        found = (_ONLY_FENCE if in_other else _FENCE_OR_BRACKET)(text, pos)
        at = len(text) if found is None else found.start()
        line = text.rfind("\n", pos, at) + 1
        is_blank = not text[line or pos : at].strip()
        self._at_line_start = is_blank and (self._at_line_start or line > 0)
        if found is None:
            return at
        mark = found.group()
        if mark[0] == "`":
            if found.end() == len(text) and len(mark) <= _MAX_FENCE:
                return self._hold(text, at)  # it may go on
            self._fence = mark.strip("`").lower() if self._fence is None else None
            self._at_line_start = False
            return found.end()
        self._kept_back = self._out = []
        self._proof_needed = not self._at_line_start and self._fence is None
        self._is_weak = True
        return self._begin_document(mark, text, at)

    def _prove(self) -> None:
        """Let the deltas out that were kept back."""
        kept_back, self._kept_back = self._kept_back, None
        self._out = self._found
        self._out += kept_back or ()

    def _is_proven(self) -> bool:
        """Whether the candidate is JSON, now that its first value has been read or is missing."""
        if self._proof_needed and self._is_weak:
            return False
        self._prove()
        return True

    def _fault(self, text: str, at: int, message: str, resume: Optional[int] = None) -> int:
        if self._kept_back is None:
            raise self._error(text, at, message)
        return self._disprove(at if resume is None else resume)

    def _exceeded(self, text: str, at: int, name: str, limit: int) -> int:
        """As :meth:`_fault`, for the limit called *name*."""
        if self._kept_back is None:
            raise JsonLimitExceeded(name, limit, self._where(text, at))
        return self._disprove(at)

    def _disprove(self, resume: int) -> int:
        """Take the candidate for prose."""
        self._kept_back = None
        self._out = self._found
        self._parts = []
        self._in_text = self._is_key = self._at_line_start = False
        self._abandon()
        self._step = self._find
        return resume
