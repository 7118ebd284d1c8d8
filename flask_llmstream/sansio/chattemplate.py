"""A shortcut through a chat completion's chunks, which mostly differ in nothing but their text.

Decisions
    1. It is exact, not a guess. A chunk that begins with the same characters, goes on with one
       JSON string, and ends with the same characters is the same JSON with another string there;
       and that the string there is the text was proven by decoding one with a known text. All
       else takes the long way, which costs ten times as much.
"""

from __future__ import annotations

import json.decoder
import re
from typing import Callable, Optional, Tuple

from flask_llmstream.exceptions import LLMStreamError
from flask_llmstream.sansio.events import Event, TextDelta
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder

__all__ = ["ChatTemplate"]

# What json itself reads strings with; the type stubs leave it out.
_read_string: Callable[[str, int, bool], Tuple[str, int]]
_read_string = getattr(json.decoder, "scanstring")
_TEXT = re.compile('"content" ?: ?"')
_KNOWN = "a known text"


class ChatTemplate:
    """Learns from a chunk and reads the text out of those that are alike."""

    def __init__(self) -> None:
        # A line break never is in an event's JSON, so nothing begins like this.
        self._before = "\n"
        self._behind = ""
        self._misses = 0

    def read(self, data: str) -> Optional[str]:
        """Return the text of a chunk that is like the one learned from, else ``None``.

        :param data: the data of an event.
        """
        before = self._before
        if data.startswith(before):
            try:
                text, end = _read_string(data, len(before), True)
            except ValueError:
                return None
            if text and data[end - 1 :] == self._behind:
                self._misses = 0
                return text
        return None

    def learn(self, data: str, text: str) -> None:
        """Learn from a chunk that :meth:`read` did not know.

        :param data: the data of its event.
        :param text: the text that it brought, and all that it brought.
        """
        # Servers that put something new into each chunk are not asked each time: after 1, 2, 4,
        # 8, … chunks. One that starts anew each second (a time stamp) is learned anew each second.
        self._misses += 1
        if self._misses & (self._misses - 1):
            return
        for found in _TEXT.finditer(data):
            start = found.end()
            value, end = _read_string(data, start, True)
            before, behind = data[:start], data[end - 1 :]
            if value == text and _brings(before + _KNOWN + behind, _KNOWN):
                self._before, self._behind = before, behind
                return


def _brings(data: str, text: str) -> bool:
    try:
        return ChatChunkDecoder().feed_event(Event(data)) == [TextDelta(text)]
    except LLMStreamError:
        return False
