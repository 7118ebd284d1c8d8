"""Chunkers cut the text of a stream into segments that are worth an event of their own.

Whatever is fed comes out again: all segments put together are the text. Where it is cut does not
depend on how it was fed, up to the longest segment; for tokens, and for what users bring, it may.
A chunker belongs to one stream. None looks at a clock: who feeds it flushes it when it has held text
for too long.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional

from flask_llmstream.sansio.chunkers.base import MAX_HELD, Chunker, CuttingChunker
from flask_llmstream.sansio.chunkers.custom import FunctionChunker, PatternChunker
from flask_llmstream.sansio.chunkers.jsonvalues import JSONChunker
from flask_llmstream.sansio.chunkers.markdown import MarkdownChunker
from flask_llmstream.sansio.chunkers.sentences import SentenceChunker
from flask_llmstream.sansio.chunkers.words import LineChunker, ParagraphChunker, TokenChunker, WordChunker

__all__ = [
    "MAX_HELD", "Chunker", "CuttingChunker", "FunctionChunker", "JSONChunker", "LineChunker",
    "MarkdownChunker", "ParagraphChunker", "PatternChunker", "SentenceChunker", "TokenChunker",
    "WordChunker", "make_chunker",
]

_BY_NAME: Dict[str, Callable[[], Chunker]] = {
    "token": TokenChunker,
    "word": WordChunker,
    "sentence": SentenceChunker,
    "line": LineChunker,
    "paragraph": ParagraphChunker,
    "markdown": MarkdownChunker,
    "json": JSONChunker,
}


def make_chunker(spec: Any) -> Optional[Chunker]:
    """Return the chunker that *spec* asks for, ``None`` where text goes out as it comes.

    :param spec: ``None``: no chunker; one of ``"token"``, ``"word"``, ``"sentence"``, ``"line"``,
        ``"paragraph"``, ``"markdown"`` and ``"json"``; a compiled regular expression, to cut behind
        each match; a function that is given the text held so far and returns up to which index it
        is to be sent, or ``None``; a class, of which each stream gets an instance of its own; or an
        object with ``feed`` and ``flush``, for one stream only.
    :raises ValueError: for anything else.
    """
    if spec is None:
        return None
    if isinstance(spec, str) and spec in _BY_NAME:
        return _BY_NAME[spec]()
    if callable(getattr(spec, "finditer", None)):
        return PatternChunker(spec)
    if callable(getattr(spec, "feed", None)) and callable(getattr(spec, "flush", None)):
        chunker: Chunker = spec() if isinstance(spec, type) else spec
        return chunker
    if callable(spec) and not isinstance(spec, type):
        return FunctionChunker(spec)
    known = ", ".join(repr(name) for name in _BY_NAME)
    raise ValueError(
        f"chunk is {spec!r}, expected None, one of {known}, a compiled regular expression,"
        " a function of the text held so far, or an object with feed() and flush()"
    )
