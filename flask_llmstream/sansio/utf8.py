"""Text as bare UTF-8, for formats without escapes."""

from __future__ import annotations

from codecs import utf_8_encode

__all__ = ["HalvesJoined", "plain_utf8"]


class HalvesJoined:
    """Encodes a text that comes in pieces, which may be cut inside a surrogate pair.

    Models emit halves of a pair in two deltas, and UTF-8 has no bytes for one.
    """

    __slots__ = ("_half",)

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> bytes:
        """Return *text* in UTF-8; the first half of a pair at its end waits for the second."""
        if self._half and text:
            text = self._half + text
            self._half = ""
        try:
            return utf_8_encode(text)[0]
        except UnicodeEncodeError:
            if "\ud800" <= text[-1] <= "\udbff":
                self._half = text[-1]
                text = text[:-1]
            return plain_utf8(text)

    def flush(self) -> bytes:
        """Return what stands for a half without another, at the end of the text."""
        half, self._half = self._half, ""
        return plain_utf8(half)


def plain_utf8(text: str) -> bytes:
    """Return *text* in UTF-8: two halves of a surrogate pair as their character, one as U+FFFD."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
