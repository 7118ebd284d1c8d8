"""What is read as JSON, and how much of it."""

from __future__ import annotations

from typing import Any, Dict, Optional

__all__ = ["JsonOptions"]

_CUTS = ("leave", "close", "error")


class JsonOptions:
    """How tolerant a reader is, and its limits.

    Without options it takes what models really write. ``strict=True`` turns every tolerance off,
    and those that are named beside it on again.

    :param strict: read one document as RFC 8259 has it, and nothing but it. Whatever ``json.loads``
        rejects is rejected, and so are ``NaN`` and ``Infinity``, which it takes. Defaults to false.
    :param prose: pass over text around documents, and Markdown fences of other languages than JSON.
        Only objects and arrays are found in prose. Defaults to true.
    :param trailing_commas: ``[1, 2,]`` and ``{"a": 1,}``. Defaults to true.
    :param comments: ``// …``, ``# …`` and ``/* … */`` between values. Defaults to true.
    :param single_quotes: ``{'a': 'b'}``, and ``\\'`` in any string. Defaults to true.
    :param python_literals: ``True``, ``False``, ``None``; and ``NaN``, ``Infinity``, ``-Infinity``,
        which become floats. Defaults to true.
    :param control_characters: line breaks, tabs and other control characters that are not escaped
        in strings, as ``json.loads(…, strict=False)`` takes them. Defaults to true.
    :param cut: what becomes of a document that has not ended when the text ends. ``"leave"``: what
        has come stands, and what was open is never ``complete``. ``"close"``: strings, arrays
        and objects that are open end here, and are ``complete``. ``"error"``: a
        :exc:`~flask_llmstream.exceptions.DecodeError`, also where there was no document at all.
        Defaults to ``"leave"``, with *strict* to ``"error"``.
    :param max_documents: how many documents are read. What follows them counts as prose. Defaults
        to all, with *strict* to 1.
    :param max_depth: most arrays and objects inside each other. Defaults to 100.
    :param max_size: most characters of one document. Defaults to 4 Mi.
    :param max_path: most characters of a path, and so of a key: each delta carries a path, and a
        long one makes a long stream of a short text. Defaults to 4096.
    :raises ValueError: for values that make no sense.
    """

    __slots__ = (
        "prose", "trailing_commas", "comments", "single_quotes", "python_literals",
        "control_characters", "cut", "max_documents", "max_depth", "max_size", "max_path",
    )

    def __init__(
        self,
        strict: bool = False,
        *,
        prose: Optional[bool] = None,
        trailing_commas: Optional[bool] = None,
        comments: Optional[bool] = None,
        single_quotes: Optional[bool] = None,
        python_literals: Optional[bool] = None,
        control_characters: Optional[bool] = None,
        cut: Optional[str] = None,
        max_documents: Optional[int] = None,
        max_depth: int = 100,
        max_size: int = 1 << 22,
        max_path: int = 4096,
    ) -> None:
        tolerant = not strict
        self.prose = tolerant if prose is None else prose
        self.trailing_commas = tolerant if trailing_commas is None else trailing_commas
        self.comments = tolerant if comments is None else comments
        self.single_quotes = tolerant if single_quotes is None else single_quotes
        self.python_literals = tolerant if python_literals is None else python_literals
        self.control_characters = tolerant if control_characters is None else control_characters
        self.cut = ("leave" if tolerant else "error") if cut is None else cut
        self.max_documents = 1 if strict and max_documents is None else max_documents
        self.max_depth = max_depth
        self.max_size = max_size
        self.max_path = max_path
        if self.cut not in _CUTS:
            raise ValueError(f"cut is {cut!r}, expected one of {', '.join(map(repr, _CUTS))}")
        limits: Dict[str, Any] = {
            "max_depth": max_depth, "max_size": max_size, "max_path": max_path,
        }
        if self.max_documents is not None:
            limits["max_documents"] = self.max_documents
        for name, limit in limits.items():
            if not isinstance(limit, int) or limit < 1:
                raise ValueError(f"{name} is {limit!r}, expected a whole number of at least 1")
