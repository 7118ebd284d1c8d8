"""The reader as a stage of a stream: text in, changes of the value out, held against a schema.

It stands where a chunker stands, and is fed and flushed as one. Decisions
    1. ``flush()`` comes in the middle of a text, too: when something else is sent, or when text has
       been held for long. The stage holds nothing back, so it means nothing; ``finish()`` is the end.
    2. What came before a fault is sent before it: the ``flush()`` behind the fault returns it. The
       ``complete`` of an invalid value is not among it.
    3. Formats without a word for changes get the text as it is written, and it is read all the same.
"""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Union

from flask_llmstream.exceptions import OutputInvalid
from flask_llmstream.sansio.events import JsonDelta
from flask_llmstream.sansio.jsondelta.document import JsonDocument
from flask_llmstream.sansio.jsondelta.options import JsonOptions
from flask_llmstream.sansio.jsondelta.pointer import find
from flask_llmstream.sansio.jsondelta.reader import JsonReader
from flask_llmstream.sansio.jsondelta.schema import FieldChecks, OutputSchema, Problem

__all__ = ["JsonStage", "make_options"]

_MOMENTS = ("field", "end")


class JsonStage:
    """Reads the text of one stream as JSON.

    :param options: what is read, and how much of it.
    :param schema: what the value must look like. Defaults to none.
    :param validate: when: ``"field"``, each value once it is complete, where that can be told, and
        the whole; ``"end"``, the whole, when the text has ended.
    :param as_text: whether the text itself is handed out instead of changes.
    :raises ValueError: for another *validate*.
    """

    #: Nothing waits here that time could set free.
    characters_held = 0

    def __init__(
        self,
        options: Optional[JsonOptions] = None,
        schema: Optional[OutputSchema] = None,
        validate: str = "field",
        as_text: bool = False,
    ) -> None:
        if validate not in _MOMENTS:
            raise ValueError(f"validate is {validate!r}, expected one of {', '.join(map(repr, _MOMENTS))}")
        #: The last value that was whole and valid, as the schema makes it.
        self.value: Any = None
        self._options = options
        self._schema = schema
        self._at_end = validate == "end"
        self._as_text = as_text
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.value = None
        self._reader: Optional[JsonReader] = JsonReader(self._options)
        self._document = JsonDocument()
        self._whole = False
        self._checks: Optional[FieldChecks] = None
        if self._schema is not None and not self._at_end:
            self._checks = FieldChecks(self._schema)
        self._last: List[Any] = []

    def feed(self, text: str) -> List[Any]:
        """Take more text, return what it changes; nothing once something has failed.

        :raises DecodeError: the text is no valid JSON.
        :raises JsonLimitExceeded: it goes past a limit.
        :raises OutputInvalid: it is not what the schema asks for.
        """
        if self._reader is None:
            return []
        found = self._follow(*self._reader.feed(text))
        return [text] if self._as_text else found

    def flush(self) -> List[Any]:
        """Return what came before a fault, once."""
        last, self._last = self._last, []
        return last

    def finish(self) -> List[Any]:
        """Say that the text has ended; return the last changes.

        :raises DecodeError: with ``cut="error"``, where the text ended inside of a value.
        :raises OutputInvalid: there is no value, or not the one that the schema asks for.
        """
        if self._reader is None:
            return self.flush()
        deltas = self._follow(*self._reader.flush())
        self._reader = None
        if self._schema is not None:
            try:
                self._check_end(self._schema)
            except OutputInvalid:
                self._last = [] if self._as_text else deltas
                raise
        return [] if self._as_text else deltas

    def _check_end(self, schema: OutputSchema) -> None:
        if not self._whole:
            seen = "ends before it is whole" if self._document.value is not None else "is missing"
            raise schema.error("", [Problem((), "incomplete", f"the JSON of the answer {seen}")])
        if self._at_end:
            self.value = schema.validate(self._document.value)

    def _follow(self, deltas: List[JsonDelta], failure: Optional[Exception]) -> List[JsonDelta]:
        """Apply *deltas* and return them, or raise."""
        apply = self._document.apply
        for number, delta in enumerate(deltas):
            op = delta.op
            if op == "complete":
                try:
                    self._completed(delta.path)
                except OutputInvalid as exc:
                    deltas = deltas[:number]
                    failure = exc
                    break
            elif op != "append":
                if not delta.path:
                    self._whole = False
                if self._checks is not None:
                    self._checks.begun(delta.path, delta.value)
            apply(delta)
        if failure is not None:
            self._reader = None
            self._last = [] if self._as_text else deltas
            raise failure
        return deltas

    def _completed(self, path: str) -> None:
        """Take note that a value is final.

        :raises OutputInvalid: it is not valid.
        """
        schema, checks = self._schema, self._checks
        if not path:
            self._whole = True
            value = self._document.value
            if schema is None:
                self.value = value
            elif not self._at_end:
                self.value = schema.validate(value)
        elif schema is not None and checks is not None:
            node = checks.node_of(path)
            if node is not None:
                problems = schema.problems(node, find(self._document.value, path))
                if problems:
                    raise schema.error(path, problems)


def make_options(
    structured: Union[bool, Mapping[str, Any], JsonOptions], has_schema: bool
) -> Optional[JsonOptions]:
    """Return the options of a reader; ``None`` where nothing is to be read.

    :param structured: whether; or options, as an object or by name.
    :param has_schema: whether there is a schema. It stands for one value, so one document is read
        where *structured* does not say how many.
    :raises ValueError: for options that there are not, or anything else.
    """
    if isinstance(structured, JsonOptions):
        return structured
    if not isinstance(structured, (bool, Mapping)):
        raise ValueError(
            f"structured is {structured!r}, expected True, False, or options of JsonOptions as a dict"
        )
    if structured is False and not has_schema:
        return None
    options = dict(structured) if isinstance(structured, Mapping) else {}
    if has_schema:
        options.setdefault("max_documents", 1)
    try:
        return JsonOptions(**options)
    except TypeError as exc:
        raise ValueError(f"structured has an option that there is not: {exc}") from None
