"""Markdown is never cut where something is open; ``¦`` marks the cuts."""

from __future__ import annotations

import pytest
from splitting import decode_every_way

from flask_llmstream.sansio.chunkers import MarkdownChunker

CASES = {
    "nothing": "",
    "words and lines": "one ¦two ¦ three\n¦\n¦four",
    "emphasis": "a ¦**b c** ¦*d e* ¦_f g_ ¦__h i__ ¦~~j k~~ ¦l",
    "emphasis in words": "a ¦un*believ able*ly ¦**(a b)** ¦c ¦**(d)**e f",
    "emphasis in emphasis": "*a **b c** d* ¦***e f** g* ¦**h *i j*** ¦k",
    "emphasis over lines": "*a\nb* ¦c\n¦d",
    "punctuation around": '"*a b*", ¦(**c d**) ¦*"e f"* ¦g',
    "rule of three": "*a**b c* ¦**d*e f* g** ¦h",
    "several closers": "**a *b **c d** e* f** ¦g",
    "other closers": "*a _b* ¦c ¦_d e_ ¦f",
    "no emphasis": "2 ¦* ¦3 ¦snake_case ¦and_more ¦_ ¦a** ¦b_c_ ¦d",
    "escaped": "\\*a ¦b\\* ¦\\[c ¦d] ¦\\`e ¦f ¦\\\\*g h* ¦i",
    "never closed": "*a b c\nd\n\n¦e ¦f",
    "never closed in an item": "- ¦*a b\n- ¦c ¦d\n¦1. ¦[e f\n2) ¦g ¦h\n¦*i j\n# ¦k ¦l",
    "links": 'a ¦[b c](d "e (f) g") ¦![h i](j (k) l) ¦[m n][o p] ¦[q] ¦r',
    "link around a title with a bracket": '[a](b "c) d") ¦e',
    "link text with a bracket": "[a [b c] d](e f) ¦[a *b c](d e) ¦f* ¦g",
    "link on two lines": "[a\nb](c\nd) ¦e",
    "emphasis around a link": "*a [b* c](d e) f* ¦g",
    "no link": "a] ¦b ¦(c ¦d) ¦[e]: ¦f ¦[g]*(h i)* ¦j ¦[] ¦k",
    "code": "`a b` ¦``c ` d`` ¦`*e` ¦f* ¦`g\nh` ¦`[i`j ¦k ¦l",
    "backslash in code": "`a\\` ¦b",
    "code that is never closed": "`a b\n\n¦c ¦d",
    "code like a fence": "```a b``` ¦c\n¦``` d ` e ```\n¦f ¦g\n",
    "fence": "a ¦b\n¦```py\nx = 1\n\ny *z\n```\n¦c ¦d",
    "fence of tildes": "~~~ `a`\n```\nb c\n~~~~ \n¦d ¦e",
    "fence in a fence": "````md\n```\na b\n```\n````\n¦c ¦d",
    "fence in an item": "1. ¦```sh\n   a b\n   ```\n¦2. ¦c ¦d",
    "fence in a quotation": "> ¦```\n> a b\n> ```\n¦> ¦c ¦d",
    "fence with deep lines": "```\na\n        ```\nb c\n```\n¦d ¦e",
    "fence behind open emphasis": "*a b\n```\nc d\n```\n¦e* ¦f ¦g",
    "fence that looks closed": "```\n``` a\n~~~\n``\nb c\n```\n¦d ¦e",
    "fence that never closes": "```\na b\n\nc d",
    "fence without a language": "```\n```\n¦a ¦b",
    "no fence": "a ¦```b c``` ¦d\n¦``\ne f",
    "rows": "| a b | c |\n¦| - | :-: |\n¦| *d e | f g |\n¦| h* i | j |\n¦\n¦k ¦l",
    "row in a quotation": "> ¦| a b |\n¦> ¦c ¦d",
    "rows without an edge": "a ¦| b c | d\n¦--- | ---\n¦e f | g h\n¦i j\n¦\n¦k ¦l",
    "row of dashes that ends in blanks": ":-- | --: \n¦a b\n¦",
    "pipe that is none": "a\\|b ¦c ¦`d|e` ¦f ¦- ¦g\n¦--- h\n¦-- i",
    "emphasis that goes on behind a pipe": "*a |b\nc d* ¦e",
    "rules": "***\n¦\n¦* ¦* ¦*\n¦---\n¦a ¦b",
    "CRLF": "a ¦b\r\n¦\r\n¦```\r\nc d\r\n```\r\n¦e ¦f",
    "long line": "a" * 300 + " ¦b ¦`c d` ¦" + "| e f\n¦",
    "mark at the end": "a ¦**b c**",
}


@pytest.mark.parametrize("name", list(CASES))
def test_markdown(name):
    text = CASES[name]
    decode_every_way(MarkdownChunker, text.replace("¦", ""), [part for part in text.split("¦") if part])


def test_line_end_waits_for_no_next_line():
    chunker = MarkdownChunker()
    assert chunker.feed("| a b |\n") == ["| a b |\n"]
    assert chunker.feed("```\na\n```\n") == ["```\na\n```\n"]


def test_what_was_flushed_is_still_the_context():
    """The second half of a fence that had to be sent is code too."""
    chunker = MarkdownChunker()
    assert chunker.feed("```\na b") + chunker.flush() == ["```\na b"]
    assert chunker.feed(" c\n") == []
    assert chunker.feed("```\nd ") + chunker.feed("e") == [" c\n```\n", "d "]


def test_reset_forgets_the_context():
    chunker = MarkdownChunker()
    chunker.feed("```\na b")
    chunker.reset()
    assert chunker.feed("a b ") == ["a "]


def test_endless_nesting_costs_no_endless_search():
    chunker = MarkdownChunker()
    text = " _a b*" * 5000
    assert "".join(chunker.feed(text) + chunker.flush()) == text
    assert len(chunker._inlines._runs) == 100
