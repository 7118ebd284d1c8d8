"""A cursor is good for the stream, the place and the owner that it was written for, and for nothing else."""

from __future__ import annotations

import itertools
import string
from typing import Any, List

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.exceptions import BadCursor
from flask_llmstream.sansio.cursor import Cursor, CursorKeys

STREAM = "0123456789abcdef" * 2
KEYS = CursorKeys([b"secret"])
GOOD = KEYS.cursors(STREAM, 3, "owner").at(42)


def test_cursor_says_where_its_reader_is() -> None:
    assert KEYS.read(GOOD, "owner") == Cursor(STREAM, 3, 42)
    assert KEYS.read(KEYS.cursors(STREAM, 0, "").at(0), "") == Cursor(STREAM, 0, 0)


def test_cursor_can_stand_in_an_id_field_and_says_nothing_of_its_owner() -> None:
    assert set(GOOD) <= set(string.ascii_letters + string.digits + "._-")
    assert "owner" not in GOOD
    assert len(GOOD) < 90


@given(st.text(), st.text())
def test_owner_is_who_it_was_written_for(owner: str, other: str) -> None:
    text = KEYS.cursors(STREAM, 1, owner).at(7)
    assert KEYS.read(text, owner).sequence == 7
    if owner != other:
        with pytest.raises(BadCursor):
            KEYS.read(text, other)
        with pytest.raises(BadCursor):
            KEYS.redeem(KEYS.ticket(STREAM, owner), other)
    assert KEYS.redeem(KEYS.ticket(STREAM, owner), owner) == STREAM


def changed(text: str) -> List[str]:
    """Return *text* with each character changed, taken out and doubled, and cut anywhere."""
    found = [text[:at] for at in range(len(text))] + [text + each for each in ("0", "A", ".", "\n", " ")]
    for at, each in itertools.product(range(len(text)), ("0", "1", "a", "Z", ".", "", "é", "\u0661")):
        found.append(text[:at] + each + text[at + 1 :])
    found += [text[:at] + text[at] + text[at:] for at in range(len(text))]
    return [each for each in found if each != text]


def test_whatever_is_changed_spoils_it() -> None:
    for text in changed(GOOD):
        with pytest.raises(BadCursor):
            KEYS.read(text, "owner")
    ticket = KEYS.ticket(STREAM, "owner")
    for text in changed(ticket):
        with pytest.raises(BadCursor):
            KEYS.redeem(text, "owner")


@pytest.mark.parametrize("text", [
    "", "5", "v1", "v1....", GOOD.replace("v1", "v2"), GOOD * 1000, "v1." + "0" * 100_000, "\0", "\udc80",
    GOOD.replace(".42.", ".0x2a."), GOOD.replace(".3.", ".4."), GOOD.replace(".42.", ".43."),
    GOOD.replace(".42.", ".042."), GOOD.upper(),
])
def test_what_we_have_not_written_is_refused_alike(text: str) -> None:
    with pytest.raises(BadCursor, match="no cursor of a stream"):
        KEYS.read(text, "owner")
    with pytest.raises(BadCursor, match="no such stream"):
        KEYS.redeem(text, "owner")


@given(st.text() | st.from_regex(r"v1\.[0-9a-f]{32}\.[0-9]+\.[0-9]+\.[0-9a-f]{24}"))
def test_nobody_guesses_one(text: str) -> None:
    with pytest.raises(BadCursor):
        KEYS.read(text, "owner")


def test_secrets_may_be_changed() -> None:
    rotated = CursorKeys([b"new", b"secret"])
    assert rotated.read(GOOD, "owner").sequence == 42
    assert rotated.redeem(KEYS.ticket(STREAM, "owner"), "owner") == STREAM
    with pytest.raises(BadCursor):
        KEYS.read(rotated.cursors(STREAM, 3, "owner").at(42), "owner")
    with pytest.raises(BadCursor):
        CursorKeys([b"new"]).read(GOOD, "owner")


def test_ticket_is_no_cursor_and_no_stream_is_named_like_another() -> None:
    assert KEYS.ticket(STREAM, "a") != KEYS.ticket(STREAM, "b")
    first, second = KEYS.cursors(STREAM, 1, "2x").at(1), KEYS.cursors(STREAM, 12, "x").at(1)
    assert first.rpartition(".")[2] != second.rpartition(".")[2]


@pytest.mark.parametrize("secrets", [[], [b""], [b"a", b""]])
def test_secret_must_be_there(secrets: Any) -> None:
    with pytest.raises(ValueError, match="app.secret_key"):
        CursorKeys(secrets)


def test_secret_may_be_of_any_length() -> None:
    keys = CursorKeys([b"x" * 5000])
    assert keys.read(keys.cursors(STREAM, 1, "").at(1), "") == Cursor(STREAM, 1, 1)
