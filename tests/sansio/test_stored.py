"""What is stored of a stream is read back as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from items import COUNT, ITEMS, JSON, TEXT

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, Channels, Tagged
from flask_llmstream.sansio.stored import Done, Failed, load, store

USAGE = st.builds(e.Usage, COUNT, COUNT, COUNT, COUNT)
#: As check_names() lets them through.
NAME = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8)
CHANNEL = (
    ITEMS
    | st.builds(ChannelDone, TEXT, st.none() | USAGE)
    | st.builds(ChannelFailed, TEXT, TEXT, st.booleans())
)
STORED = (
    ITEMS
    | st.builds(e.Finish, TEXT)
    | st.lists(JSON, max_size=3)
    | st.dictionaries(TEXT, JSON, max_size=3)
    | st.builds(Channels, st.lists(NAME, max_size=3))
    | st.builds(Tagged, NAME, CHANNEL)
    | st.builds(Done, TEXT, st.none() | USAGE)
    | st.builds(Failed, TEXT, TEXT, st.booleans())
)


def parts(item: Any) -> Any:
    """Return what *item* is made of, for comparison: also where it has no equality of its own."""
    if isinstance(item, e.Value):
        return type(item), [parts(getattr(item, name)) for name in item.__slots__]
    if isinstance(item, (Done, Failed)):
        return type(item), [parts(each) for each in item]
    return item


@given(STORED)
def test_what_is_stored_is_read_back(item: Any) -> None:
    data = store(item)
    assert isinstance(data, bytes)
    assert parts(load(data)) == parts(item)


@given(TEXT)
def test_text_is_a_delta(text: str) -> None:
    assert parts(load(store(text))) == parts(e.TextDelta(text))


def test_a_subclass_is_stored_as_what_it_is() -> None:
    class Mine(e.Custom):
        __slots__ = ()

    class Words(str):
        pass

    assert parts(load(store(Mine("mine", [1])))) == parts(e.Custom("mine", [1]))
    assert parts(load(store(Words("word")))) == parts(e.TextDelta("word"))


def test_the_exception_behind_a_failed_channel_is_not_stored() -> None:
    data = store(ChannelFailed("masked", "internal_error", False, ValueError("secret")))
    assert b"secret" not in data
    assert load(data).error is None


@pytest.mark.parametrize("item", [b"bytes", 1, None, object(), {"a": object()}, e.Custom("c", object())])
def test_what_has_no_form_is_a_type_error(item: Any) -> None:
    with pytest.raises(TypeError):
        store(item)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", b"x1", b"t\xff", b"r\xc3", b"v", b"v[]", b"v{}", b'v["Nothing"]',
        b'v["Usage",1,2,3,4,5,6,7,8]',
        b"d1", b"d[1]", b"d[1,[1,2,3,4,5,6,7,8,9]]", b"f[1]", b"f1", b"j", b"j{", b"c", b"cname", b"cname\n",
        b"c\xff\nta", b"cname\nv[", b"j" + b"[" * 100_000, b'v["ChannelDone"]', b'v["ChannelDone","x",1]',
    ],
)
def test_what_is_damaged_is_said(data: bytes) -> None:
    with pytest.raises(DecodeError, match="an entry of the event log"):
        load(data)


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        load(data)
    except DecodeError:
        pass


def test_end_of_a_channel_keeps_what_it_has_cost() -> None:
    for end in (ChannelDone("stop", e.Usage(7, 2, 1, 3)), ChannelDone("length")):
        assert load(store(Tagged("a", end))) == Tagged("a", end)
