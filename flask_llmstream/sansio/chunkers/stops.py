"""Which stop ends a sentence: rules for any language, rather than for one that must be named first.

In doubt two sentences stay together. The second is soon there, whereas a voice that is given
"I met Dr." drops at its end.
"""

from __future__ import annotations

import re
from typing import Match, Optional

from flask_llmstream.sansio.chunkers.abbreviations import (
    BEFORE_NUMBERS,
    MAY_END,
    NEVER_END,
    ORDINAL_BEFORE,
    ORDINAL_BEHIND,
    STARTERS,
    TITLES,
)

__all__ = ["CANDIDATE", "NO_END", "REACH", "find_end"]

#: So much is looked at on either side of a stop: a long word and what may stand around it.
REACH = 48
#: What :func:`find_end` returns where no sentence ends.
NO_END = -1

#: Stops that need no blank behind them: Chinese and Japanese, Arabic and Urdu, Devanagari, Ethiopic,
#: Armenian, Khmer, Burmese.
_WIDE_STOPS = "。！？｡؟۔।॥።፧։។៕။"
_STOPS = ".!?…" + _WIDE_STOPS
#: Where a sentence may end: a stop, or a line end.
CANDIDATE = re.compile(f"[{_STOPS}\n]")

_BLANKS = re.compile(r"\s*")
#: What belongs to a sentence behind its last stop: brackets, emphasis, and quotes, which close by
#: what opens them elsewhere; a French quote also behind a blank.
_CLOSERS = re.compile("(?:[\"'”’“‘»›«‹」』）】》〉］｝)\\]}*_~`]|[ \u00a0\u202f]»(?=\\s|$))*")
#: The word before a stop and the one before that, with the stops and hyphens inside of them.
_WORDS_BEFORE = re.compile(r"(?:([\w.’'-]+)[ \u00a0\u202f])?([\w.’'§-]+)$")
_WORD_BEHIND = re.compile(r"[\"'“‘„«‹»(\[*_¿¡]*([^\W\d_]+)(.)?", re.DOTALL)
_INITIALS = re.compile(r"(?:[^\W\d_]\.-?)*[^\W\d_]")
_LIST_NUMBER = re.compile(r"(?:^|\n)[\s>#*_-]*\d+$")


def find_end(before: str, stop: str, behind: str) -> Optional[int]:
    """Return how far in *behind* the sentence goes that *stop* ends.

    :param before: what stands before *stop*, as far as it matters.
    :param behind: what has come after it, at most :data:`REACH` characters.
    :returns: ``NO_END`` where none ends here, ``None`` where that depends on what comes next.
    """
    all_there = len(behind) == REACH
    closed = 0 if stop == "\n" else _end_of(_CLOSERS.match(behind))
    end = _end_of(_BLANKS.match(behind, closed))
    if end == len(behind) and not all_there:
        return None
    blanks = behind[closed:end]
    if stop == "\n" or "\n" in blanks:
        # A line that ends also ends a heading or a list item. Indents belong to what follows.
        return closed + blanks.rfind("\n") + 1
    if behind[closed : closed + 1] in set(_STOPS) or (not closed and behind[end : end + 1] in set(_STOPS)):
        return NO_END  # the last of several decides, also of ". . ."
    ends = _ends(before, stop, behind[:closed], blanks, behind[end:], all_there)
    return ends if ends is None else end if ends else NO_END


def _end_of(match: Optional[Match[str]]) -> int:
    assert match is not None  # these match nothing at all, too
    return match.end()


def _ends(
    before: str, stop: str, closers: str, blanks: str, behind: str, all_there: bool
) -> Optional[bool]:
    """Return whether a sentence ends; *behind* begins with what is neither closer nor blank."""
    if stop in _WIDE_STOPS:
        return not (closers and not blanks and behind[:1] in ("と", "っ"))  # 「…。」と言った
    if not blanks:
        return stop in "!?" and "\u2e80" <= behind[:1] <= "\u9fff"  # Chinese with ASCII stops
    small = behind[:1].islower()
    if stop in "!?":
        return not (closers and small)  # "Really?" he said
    if small:
        return False  # UAX #29, SB8: no sentence that follows a full stop begins with a small letter
    if stop == "…" or closers or before.endswith("."):
        return True
    return _ends_behind_word(before, _WORD_BEHIND.match(behind), behind, all_there)


def _ends_behind_word(
    before: str, following: Optional[Match[str]], behind: str, all_there: bool
) -> Optional[bool]:
    """Return whether a sentence ends with the full stop that comes directly behind a word."""
    words = _WORDS_BEFORE.search(before)
    if words is None:
        return True
    earlier, word = words.group(1) or "", words.group(2)
    small = word.lower()
    both = (earlier + word).lower()  # "z. B."
    if word in TITLES or small in NEVER_END or both in NEVER_END:
        return False
    if word.isdigit():
        day = len(word) <= 2 and (behind[:1].isdigit() or earlier.lower() in ORDINAL_BEFORE)
        if day or _LIST_NUMBER.search(before):
            return False
        expected, if_expected = ORDINAL_BEHIND, False
    elif small in BEFORE_NUMBERS and behind[:1].isdigit():
        return False
    elif small in MAY_END or both in MAY_END or _INITIALS.fullmatch(word):
        expected, if_expected = STARTERS, True
    else:
        return True
    if following is None:
        return not if_expected
    next_word, then = following.groups()
    if then is None and not all_there:
        return None
    initial = len(next_word) == 1 and then == "."
    return (next_word in expected and not initial) is if_expected
