"""Sentences end where a reader would say so, however the text was cut; ``|`` marks the cuts."""

from __future__ import annotations

import pytest
from splitting import decode_every_way

from flask_llmstream.sansio.chunkers import SentenceChunker
from flask_llmstream.sansio.chunkers.abbreviations import MAY_END, NEVER_END, TITLES
from flask_llmstream.sansio.chunkers.stops import find_end

CASES = {
    "two": "One. |Two.",
    "blanks belong to what they follow": "One.  \t|Two! |Three?",
    "no capital letter": "ok. sure. i think so",
    "digit": "One. |2 more.",
    "symbol": "Hi! |\U0001f600 Done. |- so",
    "title": "I met Dr. Smith, Mr. and Mrs. Jones. |They left St. Louis.",
    "title in small letters": "It was a gem in the col. |He knew.",
    "initials": "J. R. R. Tolkien and J. S. Bach. |Good.",
    "initials with a hyphen": "J.-P. Sartre wrote. |Good.",
    "letter at the end": "It is plan B. |The end. |Take vitamin C. |It helps.",
    "letter and a list of letters": "Take A. B. or C. |Now.",
    "acronym": "The U.S. Army won. |They left the U.S. |The end.",
    "time": "At 5 p.m. |The bus left. |At 5 p.m. Monday it rained.",
    "etc": "Cats, dogs, etc. |The end.",
    "etc goes on": "Cats etc. Dogs too. |No.",
    "company": "Acme Inc. |It grew. |Acme Inc. Ltd. Co. Paris.",
    "degree": "She has a Ph.D. |She is proud. |A Ph.D. Student.",
    "for example": "Bands, e.g. The Beatles, i.e. A band. |Yes.",
    "number sign": "See No. 5 and Fig. 3, pp. 4. |He said no. |Then he left.",
    "section": "See § 5. |Then sec. 4.",
    "month": "On Jan. 5 and in Dec. 2024. |It ended in Dec. |Then not.",
    "decimals": "Pi is 3.14. |It costs 1.000,50 or $.5. |Yes.",
    "version": "Version 2.0. |New is v1.2.3 at www.a.com/x.html?y=1. |Yes.",
    "year": "It was in 2024. |Then he left.",
    "small number at the end": "He has 5. |Then 6.",
    "list numbers": "1. First item. |More.\n|2. Second.\n|**3. Third**\n|> 4. Fourth",
    "ellipsis": "Wait... what? |Well... |Maybe... not. |Well\u2026 |So\u2026 no.",
    "spaced ellipsis": "Well . . . and so . . . |Then.",
    "several": "What?! |No!!! |Yes.",
    "quotes": (
        '"Go." |"Really?" he said. |"Yes!" |She left. |\'No.\' |\u201cA.\u201d |'
        '\u201cB!\u201d said she.'
    ),
    "brackets": "(Yes.) |[No.] |He (it?) left. |{x}",
    "emphasis": "**Bold.** |*Em.* |_Em!_ |`code.` |~~no~~. |End",
    "German": (
        "Das sind ca. 5 Mio. Euro, z. B. Die \u00c4rzte, d. h. Sie, usw. |Das war es. |"
        "Sog. Hr. Dr. Ab."
    ),
    "German ordinals": "Am 3. Oktober im 19. Jahrhundert, der 2. Weltkrieg, vom 5. Rang. |Ende 1945. |Ja.",
    "German quotes": "\u201eHallo.\u201c |\u00bbJa.\u00ab |Er ging. |\u00bbGut.\u00ab",
    "German date": "Am 3. 10. 1990. |Um 44 v. Chr. |Er starb.",
    "French": (
        "M. Dupont et Mme. Curie, p. ex. Les chats. |Il dort, etc. |Elle aussi. |C\u2019est J.-C. |"
        "L\u2019homme."
    ),
    "French blanks": "\u00ab Bonjour ! \u00bb |Il part. |Oui ? |\u00ab\u00a0Non\u00a0!\u00a0\u00bb |Fin",
    "Spanish": (
        "\u00bfQu\u00e9? |\u00a1Hola! |La Sra. L\u00f3pez, p. ej. Los gatos en EE. UU. |El fin. |"
        "Gracias a Ud. |Por eso."
    ),
    "Russian": (
        "Рост и т. д. А. С. Пушкин умер. |"
        "Да."
    ),
    "Chinese": (
        "\u4f60\u597d\u3002|\u4e16\u754c\uff01|\u771f\u7684\uff1f|\u300c\u597d\u3002\u300d|"
        "\u4ed6\u8bf4\u3002\u3002\u3002|\u5b8c"
    ),
    "Chinese with ASCII stops": "\u771f\u7684?|\u597d!|\u5bf9.",
    "Japanese": "\u300c\u884c\u304f\u3002\u300d\u3068\u5f7c\u306f\u8a00\u3063\u305f\u3002|\u6b21\u3002",
    "Arabic": "\u0645\u0631\u062d\u0628\u0627\u061f |\u0646\u0639\u0645. |\u062a\u0645",
    "Urdu": "\u06cc\u06c1 \u06c1\u06d2\u06d4 |\u0648\u06c1",
    "Hindi": (
        "\u0930\u093e\u092e \u0906\u092f\u093e\u0964 |"
        "\u0938\u0940\u0924\u093e \u0917\u092f\u0940\u0965 |\u0905\u0902\u0924"
    ),
    "headings and items": "# Head\n|Text here\n\n|- item\n|  - sub.\n|End.\n",
    "line ends at the beginning": "\n|Text.",
    "nothing": "",
    "no sentence": "word word",
    "stop only": ".",
    "stop behind brackets": "f(). |Then",
    "long word": "A. " + "B" * 100 + " word. |D.",
    "many blanks": "A word." + " " * 48 + "|" + " " * 12 + "more. |D",
}


@pytest.mark.parametrize("text", list(CASES.values()), ids=list(CASES))
def test_sentences(text):
    decode_every_way(SentenceChunker, text.replace("|", ""), [part for part in text.split("|") if part])


def test_stop_at_the_end_waits_for_what_follows():
    chunker = SentenceChunker()
    assert [chunker.feed(piece) for piece in ("It is 3", ".", "1", ".", " ", "N")] == [
        [], [], [], [], [], ["It is 3.1. "]
    ]
    assert chunker.characters_held == 1
    assert chunker.flush() == ["N"]


def test_word_that_decides_is_waited_for():
    chunker = SentenceChunker()
    assert [chunker.feed(piece) for piece in ("At 5 p.m", ". Th", "e", " bus")] == [
        [], [], [], ["At 5 p.m. "]
    ]
    chunker = SentenceChunker()
    assert chunker.feed("At 5 p.m. There") == [] and chunker.flush() == ["At 5 p.m. There"]


def test_what_was_flushed_is_still_the_context():
    """A number is a decimal also if its first half had to go."""
    chunker = SentenceChunker()
    assert chunker.feed("It is 3.") + chunker.flush() == ["It is 3."]
    assert chunker.feed("14. And Dr.") == ["14. "]
    assert chunker.flush() == ["And Dr."]
    assert chunker.feed(" Who. ") + chunker.feed("Yes") == [" Who. "]


def test_reset_forgets_the_context():
    chunker = SentenceChunker()
    chunker.feed("Dr")
    chunker.reset()
    assert chunker.feed(". A") == [". "]


@pytest.mark.parametrize("words", [TITLES, NEVER_END], ids=["titles", "abbreviations"])
def test_no_sentence_ends_behind_an_abbreviation(words):
    for word in sorted(words):
        text = f"It is {word}. The one."
        assert SentenceChunker().feed(text + " X") == [text + " "], word


def test_abbreviation_that_may_end_a_sentence():
    for word in sorted(MAY_END):
        assert SentenceChunker().feed(f"It is {word}. The one. X") == [f"It is {word}. ", "The one. "], word
        assert SentenceChunker().feed(f"It is {word}. Paris. X") == [f"It is {word}. Paris. "], word


@pytest.mark.parametrize("before, behind, ends", [
    ("We like apples, etc", " (", False), ("J", " — ", False), ("usw", " 1", False),
    ("on the 3", " (", True), ("am 3", " — ", True),
])
def test_no_word_behind_the_stop(before: str, behind: str, ends: bool) -> None:
    """What ends many sentences ends none then; the number of a day does."""
    assert (find_end(before, ".", behind) == 1) is ends
