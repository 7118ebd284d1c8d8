"""What an answer has cost, read from its bytes while they pass.

Decisions
    1. A line is parsed where it holds a key under which providers report usage, and only there. All
       else costs a search of its bytes.
    2. Who only looks on never disturbs: what cannot be read counts as not reported.
"""

from __future__ import annotations

import json
import re
from typing import Any, List, Optional

from flask_llmstream.exceptions import LLMStreamError
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.providers.recognise import make_decoder, recognise

__all__ = ["Meter"]

#: ``"usage":null`` stands in every chunk of some servers, and says nothing.
_REPORTED = re.compile(rb'"(?:usage|usageMetadata)"\s*:\s*\{|"(?:prompt_)?eval_count"\s*:')
#: The chunk that reports nothing else: a client that did not ask for it may fall over the empty list.
_NO_CHOICES = re.compile(rb'"choices"\s*:\s*\[\s*\]')
#: Bytes of an answer in one piece that are kept to be parsed.
_MAX_WHOLE = 1 << 22


class Meter:
    """Looks at the events of one answer as they pass.

    :param framing: ``sse``, ``ndjson``, or ``json`` for an answer in one piece. Defaults to ``sse``.
    :param hide: take out of OpenAI's chat streams the chunk that reports the usage and nothing else.
        Defaults to false.
    """

    __slots__ = (
        "_lines", "_events", "_lines_each", "_key", "_whole", "_size", "_hide", "_decoder", "_reported_last",
    )

    def __init__(self, framing: str = "sse", hide: bool = False) -> None:
        self._lines = 0
        self._events = 0
        self._lines_each = 1 if framing == "ndjson" else 0
        self._key = b'eval_count"' if framing == "ndjson" else b'"usage'
        self._whole: Optional[List[bytes]] = [] if framing == "json" else None
        self._size = 0
        self._hide = hide and framing == "sse"
        self._decoder: Any = None
        self._reported_last = False

    @property
    def events(self) -> int:
        """How many JSON objects have passed, one in each event or line: about one for each token."""
        return self._lines // self._lines_each if self._lines_each else self._events

    @property
    def usage(self) -> Optional[Usage]:
        """What the answer has cost as last reported; ``None`` where nothing was."""
        found: Optional[Usage] = None if self._decoder is None else self._decoder.usage
        return found

    @property
    def complete(self) -> bool:
        """Whether the usage is that of the whole answer, and not of what had come so far."""
        if self._decoder is None:
            return False
        return self._reported_last or self._decoder.finished is not None

    def feed(self, block: bytes) -> bytes:
        """Take what comes next, in whole events or lines; return what may go on of it."""
        if self._whole is not None:
            self._size += len(block)
            if self._size <= _MAX_WHOLE:
                self._whole.append(block)
            return block
        self._lines += block.count(b"\n")
        if not self._lines_each:
            self._events += block.count(b"}\n") + block.count(b"}\r\n")
            if self._events:
                # How many lines an event has is the provider's habit, and lines are counted the quickest.
                self._lines_each = self._lines // self._events
        # A plain search first: it costs a tenth of a pattern.
        return self._look(block) if self._key in block else block

    def flush(self) -> None:
        """Say that the answer has ended."""
        if self._whole is not None and self._size <= _MAX_WHOLE:
            self._read(b"".join(self._whole))
            self._whole = []

    def _look(self, block: bytes) -> bytes:
        """Read what *block* reports; return it without what is to be hidden."""
        kept: List[bytes] = []
        hiding = False
        for line in block.splitlines(True):
            if hiding and not line.strip():
                hiding = False  # the blank line behind a hidden event goes, too
                continue
            hiding = False
            if _REPORTED.search(line):
                self._read(line[5:] if line.startswith(b"data:") else line)
                if _NO_CHOICES.search(line):
                    self._reported_last = True
                    hiding = self._hide
            if not hiding:
                kept.append(line)
        return b"".join(kept) if self._hide else block

    def _read(self, text: bytes) -> None:
        try:
            chunk = json.loads(text.decode())
            name = recognise(chunk)
            if self._decoder is None and name is not None:
                self._decoder = make_decoder(name)
            if self._decoder is not None:
                feed = self._decoder.feed_chunk if self._whole is None else self._decoder.feed_whole
                feed(chunk)
        except (ValueError, RecursionError, LLMStreamError):
            pass
