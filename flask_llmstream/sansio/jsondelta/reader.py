"""Text in, changes of a JSON value out: an incremental reader that looks at each character once.

Decisions
    1. Every value is announced by ``add`` (``replace`` for a key that the object has already, and
       for each document after the first, whose path is empty again) and ends with ``complete``,
       which carries no value. Arrays and objects are announced empty. Numbers and literals
       are announced when they are whole, so their ``complete`` follows at once.
    2. A string grows by one ``append`` per token. Escapes that a token cuts wait for their rest.
    3. What of the input is accepted, and the value that results, never depend on how it was cut.
"""

from __future__ import annotations

from typing import List, Optional, Tuple

from flask_llmstream.exceptions import WireError
from flask_llmstream.sansio.events import JsonDelta
from flask_llmstream.sansio.jsondelta.options import JsonOptions
from flask_llmstream.sansio.jsondelta.structure import StructureReader

__all__ = ["JsonReader"]

#: What is read, and the fault that ended it.
Read = Tuple[List[JsonDelta], Optional[WireError]]


class JsonReader(StructureReader):
    """Reads JSON that arrives in pieces of any size, in linear time.

    :param options: what is read, and how much of it.
    """

    def __init__(self, options: Optional[JsonOptions] = None) -> None:
        options = JsonOptions() if options is None else options
        super().__init__(options)
        self._failure: Optional[WireError] = None
        self._flushed = False
        self._documents = 0  # that have ended
        self._begun_at: Optional[int] = None  # where the document began that has not
        self._ends_before = 0  # where it has reached its limit
        self._grows = False  # whether what is next may be no more than a piece of a text
        self._expect = self._expect_document
        self._step = self._find if options.prose else self._read_structure

    def feed(self, text: str) -> Read:
        """Return the changes in *text*, and the fault that ends them; the first one ends all.

        :returns: changes; ``None``, or a :exc:`~flask_llmstream.exceptions.DecodeError` or
            :exc:`~flask_llmstream.exceptions.JsonLimitExceeded`.
        :raises RuntimeError: after :meth:`flush`.
        """
        if self._grows:
            # Most of what models write is no more than the next piece of a text.
            end = self._base + len(text)
            if end <= self._ends_before and self._run(text) is not None:
                self._base = end
                return [JsonDelta(self._path, "append", text)], None
            self._grows = False
        if self._flushed:
            raise RuntimeError("feed() after flush(): make a new reader for a new text")
        if self._failure is not None:
            return [], self._failure
        found: List[JsonDelta] = []
        self._found = found
        if self._kept_back is None:
            self._out = found
        if self._held:
            text = self._held + text
            self._held = ""
        size = len(text)
        pos = 0
        try:
            while pos < size:
                pos = self._step(text, pos)
            if self._in_text:
                self._write_text()
            elif self._is_key and self._parts:
                self._check_key(text)
            self._check_size(text, size)
        except WireError as exc:
            if self._in_text:
                self._write_text()  # what there is of it
            return found, self._fail(exc)
        used = size - len(self._held)
        if "\n" in text:
            self._line += text.count("\n", 0, used)
            self._line_start = self._base + text.rfind("\n", 0, used) + 1
        self._base += used
        self._grows = self._in_text and self._kept_back is None and not self._held
        return found, None

    def flush(self) -> Read:
        """Say that the text has ended; return the last changes, and the fault that this makes."""
        found: List[JsonDelta] = []
        if self._failure is not None or self._flushed:
            return found, self._failure
        self._flushed = True
        self._grows = False
        if self._kept_back is not None:
            self._disprove(0)
        self._out = self._found = found
        try:
            if not self._open and self._step == self._read_word:
                self._end_word("", 0)
            if self._is_whole():
                return found, None
            if self._options.cut == "error":
                raise self._error("", 0, "the text ended too early" if self._base else "there is no text")
        except WireError as exc:
            return found, self._fail(exc)
        if self._options.cut == "close":
            if self._in_text:
                found.append(JsonDelta(self._path, "complete"))
            found += [JsonDelta(container.path, "complete") for container in reversed(self._open)]
        return found, None

    def _is_whole(self) -> bool:
        """Whether the text may end here."""
        if self._begun_at is not None or not self._documents:
            return False
        return self._options.prose or not (self._held or self._comment_end == "*/")

    def _fail(self, error: WireError) -> WireError:
        # Its traceback holds the frame of whoever fed, and so the text.
        self._failure = error.with_traceback(None)
        self._open = []
        self._parts = []
        return self._failure

    def _check_key(self, text: str) -> None:
        """Refuse a key that is too long before it is complete."""
        self._parts = ["".join(self._parts)]
        if len(self._parts[0]) > self._options.max_path:
            self._exceeded(text, len(text), "max_path", self._options.max_path)

    def _check_size(self, text: str, end: int) -> int:
        limit = self._options.max_size
        if self._begun_at is not None and self._base + end - self._begun_at > limit:
            return self._exceeded(text, end, "max_size", limit)
        return end

    # -- documents ----------------------------------------------------------------------------

    def _begin_document(self, char: str, text: str, pos: int) -> int:
        self._begun_at = self._base + pos
        self._ends_before = self._begun_at + self._options.max_size
        self._path = ""
        self._op = "replace" if self._documents else "add"
        self._may_close = False
        return self._expect_value(char, text, pos)

    def _abandon(self) -> None:
        self._begun_at = None
        self._open = []

    def _document_read(self, text: str, end: int) -> int:
        self._check_size(text, end)
        self._begun_at = None
        self._documents += 1
        is_last = self._documents == self._options.max_documents
        if self._options.prose:
            self._at_line_start = True
            self._step = self._pass_over if is_last else self._find
        else:
            self._expect = self._expect_nothing if is_last else self._expect_document
            self._step = self._read_structure
        return end

    def _pass_over(self, text: str, pos: int) -> int:
        return len(text)

    def _expect_document(self, char: str, text: str, pos: int) -> int:
        return self._begin_document(char, text, pos)

    def _expect_nothing(self, char: str, text: str, pos: int) -> int:
        return self._fault(text, pos, f"expected the end of the text, got {char!r}")
