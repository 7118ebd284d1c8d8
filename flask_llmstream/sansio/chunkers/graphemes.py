"""Where text may be cut without tearing apart what a reader sees as one character.

After UAX #29 (https://www.unicode.org/reports/tr29/), on the careful side: it never cuts where the
standard does not, and rarely keeps together what the standard would cut (behind any joiner, and
between a virama and a letter of whatever script). The tables of the standard library know the
marks; what they do not tell is written here as ranges.
"""

from __future__ import annotations

import unicodedata
from typing import Optional, Tuple

__all__ = ["NARROW", "is_boundary", "last_boundary", "stays_open"]

#: Characters that may stand alone, and that nothing joins by itself: all below the first mark.
NARROW = "\u0300"

_HANGUL_L = ("\u1100", "\u115f", "\ua960", "\ua97c")
_HANGUL_V = ("\u1160", "\u11a7", "\ud7b0", "\ud7c6")
_HANGUL_T = ("\u11a8", "\u11ff", "\ud7cb", "\ud7fb")
#: Letters and symbols that belong to what stands before them, though their category is no mark's.
_EXTENDING = frozenset("\u200c\u200d\u0e33\u0eb3\uff9e\uff9f")
#: Belong to what follows; in the order of UAX #29's property Prepend.
_PREPENDED = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\u0d4e\U000110bd\U000110cd"
    "\U000111c2\U000111c3\U0001193f\U00011941\U00011a3a\U00011a84\U00011a85\U00011a86\U00011a87"
    "\U00011a88\U00011a89\U00011d46\U00011f02"
)
#: Scripts that write with marks: a token may well end between a letter and its vowel.
_MARKED_SCRIPTS = ("\u0900", "\u109f", "\u1700", "\u18af", "\u1900", "\u1cff")
_EMOJI = ("\u2190", "\u21ff", "\u2300", "\u23ff", "\u25a0", "\u27bf", "\u2900", "\u297f", "\u2b00",
          "\u2bff", "\U0001f000", "\U0001faff")


def is_boundary(text: str, index: int, start: int = 0) -> Optional[bool]:
    """Return whether *text* may be cut at *index*; ``None`` where that depends on what follows.

    :param index: from ``start + 1`` up to the length of *text*.
    :param start: an earlier boundary. What stands before it is not looked at.
    """
    before = text[index - 1]
    if index == len(text):
        # Nothing ever joins a control character, except that CR LF is one.
        return True if before == "\n" or (before != "\r" and _is_control(before)) else None
    after = text[index]
    if before < NARROW and after < NARROW:
        return not (before == "\r" and after == "\n")
    whole_after = _character_at(text, index)
    if whole_after is None:
        # Half a pair: whatever it becomes, it does not join a control character.
        return True if _is_control(before) else None
    whole_before = _character_before(text, index, start)
    if len(whole_before) == 1 and _is_high(whole_before) and _is_low(after):
        return False
    return _is_boundary_between(whole_before, whole_after, text, index, start)


def last_boundary(text: str, index: int, start: int = 0) -> int:
    """Return the last boundary of *text* from *start* up to *index*; *start* where there is none."""
    while index > start and not is_boundary(text, index, start):
        index -= 1
    return index


def stays_open(text: str) -> bool:
    """Return whether the last character of *text* is likely to go on in the next token.

    Half a pair, a joiner, an emoji, a jamo, a letter of a script that writes with marks. Not so a
    letter of others: those that have marks are one code point each in what models write.
    """
    last = text[-1]
    if last < NARROW:
        return last == "\r"
    if _is_high(last):
        return True
    whole = _character_before(text, len(text), 0)
    return (
        _is_extending(whole) or whole in _PREPENDED or _is_flag(whole)
        or _within(whole, _EMOJI) or _within(whole, _HANGUL_L + _HANGUL_V)
        or (_within(whole, _MARKED_SCRIPTS) and unicodedata.category(whole)[0] == "L")
    )


def _is_boundary_between(before: str, after: str, text: str, index: int, start: int) -> bool:
    if _is_control(before) or _is_control(after):
        return True
    if _is_extending(after) or before == "\u200d" or before in _PREPENDED:
        return False
    if _is_flag(after) and _is_flag(before):
        return _flags_before(text, index, start) % 2 == 0
    if unicodedata.category(after) == "Lo":
        return not _joins_letters(before, after, text, index, start)
    return True


def _joins_letters(before: str, after: str, text: str, index: int, start: int) -> bool:
    if _within(before, _HANGUL_L):
        return _within(after, _HANGUL_L + _HANGUL_V) or "\uac00" <= after <= "\ud7a3"
    if _within(before, _HANGUL_V):
        return _within(after, _HANGUL_V + _HANGUL_T)
    if _within(before, _HANGUL_T):
        return _within(after, _HANGUL_T)
    if "\uac00" <= before <= "\ud7a3":
        without_final = (ord(before) - 0xAC00) % 28 == 0
        return _within(after, _HANGUL_T) or (without_final and _within(after, _HANGUL_V))
    # A virama makes one cluster of two consonants, also through a nukta.
    while index > start and _is_extending(before):
        if unicodedata.combining(before) == 9:
            return True
        index -= 1 if text[index - 1] == before else 2
        before = _character_before(text, index, start) if index > start else ""
    return False


def _is_high(character: str) -> bool:
    return "\ud800" <= character <= "\udbff"


def _is_low(character: str) -> bool:
    return "\udc00" <= character <= "\udfff"


def _pair(high: str, low: str) -> str:
    return chr(0x10000 + ((ord(high) - 0xD800) << 10) + ord(low) - 0xDC00)


def _character_at(text: str, index: int) -> Optional[str]:
    """Return the character at *index*; of two surrogates the one they make, ``None`` for half of it."""
    first = text[index]
    if not _is_high(first):
        return first
    if index + 1 == len(text):
        return None
    return _pair(first, text[index + 1]) if _is_low(text[index + 1]) else first


def _character_before(text: str, index: int, start: int) -> str:
    last = text[index - 1]
    if _is_low(last) and index - 2 >= start and _is_high(text[index - 2]):
        return _pair(text[index - 2], last)
    return last


def _flags_before(text: str, index: int, start: int) -> int:
    count = 0
    while index > start:
        before = _character_before(text, index, start)
        if not _is_flag(before):
            break
        count += 1
        index -= 1 if text[index - 1] == before else 2
    return count


def _is_flag(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _is_control(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cf")
        and not _is_extending(character) and character not in _PREPENDED
    )


def _is_extending(character: str) -> bool:
    return bool(character) and character >= NARROW and (
        character in _EXTENDING
        or unicodedata.category(character)[0] == "M"
        or "\U0001f3fb" <= character <= "\U0001f3ff"  # skin tones
        or "\U000e0020" <= character <= "\U000e007f"  # tags, of which regional flags are made
    )


def _within(character: str, ranges: Tuple[str, ...]) -> bool:
    return any(first <= character <= last for first, last in zip(ranges[::2], ranges[1::2]))
