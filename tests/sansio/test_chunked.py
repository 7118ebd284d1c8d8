"""The chunked coding: what was sent comes out, however it was cut; broken framing is an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitting import every_way

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.chunked import ChunkedDecoder


@pytest.mark.parametrize(
    "wire, payload, unused",
    [
        pytest.param(b"0\r\n\r\n", b"", b"", id="empty"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\n", b"hello", b"", id="one"),
        pytest.param(b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n", b"hello!", b"", id="two"),
        pytest.param(b"1\r\na\r\n1\r\nb\r\n1\r\nc\r\n0\r\n\r\n", b"abc", b"", id="same-size"),
        pytest.param(b"B\r\nhello world\r\n0\r\n\r\n", b"hello world", b"", id="upper-case"),
        pytest.param(b"00b\r\nhello world\r\n000\r\n\r\n", b"hello world", b"", id="leading-zeros"),
        pytest.param(b"5;a=b\r\nhello\r\n0;c\r\n\r\n", b"hello", b"", id="extensions"),
        pytest.param(b"5 \r\nhello\r\n0\r\n\r\n", b"hello", b"", id="blank-behind-size"),
        pytest.param(b"5\r\nhello\r\n0\r\nA: b\r\nC: d\r\n\r\n", b"hello", b"", id="trailer"),
        pytest.param(b"5\nhello\n0\n\n", b"hello", b"", id="bare-line-feeds"),
        pytest.param(b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", b"", id="line-ends-inside"),
        pytest.param(b"5\r\nhello\r\n0\r\n\r\nHTTP/1.1", b"hello", b"HTTP/1.1", id="more-behind"),
    ],
)
def test_payload(wire, payload, unused):
    for way, pieces in every_way(wire):
        decoder = ChunkedDecoder()
        assert b"".join(decoder.feed(piece) for piece in pieces) == payload, way
        assert decoder.done, way
        assert decoder.unused == unused, way


@pytest.mark.parametrize(
    "wire, payload",
    [
        pytest.param(b"hello\r\n", b"", id="no-size"),
        pytest.param(b"\r\nhello\r\n", b"", id="empty-size"),
        pytest.param(b"-1\r\n\r\n", b"", id="negative"),
        pytest.param(b"+5\r\nhello\r\n", b"", id="sign"),
        pytest.param(b"1_0\r\n", b"", id="underscore"),
        pytest.param(b"0x5\r\nhello\r\n", b"", id="prefix"),
        pytest.param(b"11111111111111111\r\n", b"", id="beyond-64-bits"),
        pytest.param(b"5\r\nhello!\r\n0\r\n\r\n", b"hello", id="longer-than-it-said"),
        pytest.param(b"5\r\nhello!!", b"hello", id="longer-without-a-line-end"),
        pytest.param(b"5\r\nhello\r\nno\r\n", b"hello", id="second-size"),
        pytest.param(b"1\r\na\r\n1\r\nb\r\nno\r\n", b"ab", id="third-size"),
    ],
)
def test_broken_framing_ends_what_came_before(wire, payload):
    for way, pieces in every_way(wire):
        decoder = ChunkedDecoder()
        received = b""
        for piece in pieces:
            received += decoder.feed(piece)
            if decoder.broken:
                break
        assert received == payload, way
        assert decoder.broken and not decoder.done, way
        with pytest.raises(DecodeError):
            decoder.feed(b"0\r\n\r\n")


def test_an_endless_size_line_is_refused():
    decoder = ChunkedDecoder()
    with pytest.raises(DecodeError, match="never ends"):
        for _ in range(100):
            decoder.feed(b"0" * 1000)


def test_the_end_is_not_invented():
    decoder = ChunkedDecoder()
    assert decoder.feed(b"5\r\nhello\r\n0\r\n") == b"hello"
    assert not decoder.done


def test_more_sizes_than_are_remembered():
    wire = b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in range(1, 400))
    decoder = ChunkedDecoder()
    assert decoder.feed(wire + b"0\r\n\r\n") == b"x" * sum(range(1, 400))
    assert decoder.done


@pytest.mark.parametrize("left, wire", [(3, b"llo\r\n"), (0, b"\r\n"), (None, b"")])
def test_going_on_where_somebody_else_has_stopped(left, wire):
    for way, pieces in every_way(wire + b"1\r\n!\r\n0\r\n\r\n"):
        decoder = ChunkedDecoder(left)
        assert b"".join(decoder.feed(piece) for piece in pieces) == wire.strip() + b"!", way
        assert decoder.done, way


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.data())
def test_any_body_cut_anywhere(chunks, data):
    wire = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in chunks) + b"0\r\n\r\n"
    decoder = ChunkedDecoder()
    received = b""
    while wire:
        size = data.draw(st.integers(1, len(wire)))
        received += decoder.feed(wire[:size])
        wire = wire[size:]
    assert received == b"".join(chunks)
    assert decoder.done and not decoder.unused


def test_bodies_with_chunks_of_any_number_of_lengths_are_read() -> None:
    texts = [b"x" * length for length in range(1, 700)]
    decoder = ChunkedDecoder()
    for start in range(0, len(texts), 100):
        part = texts[start : start + 100]
        assert decoder.feed(b"".join(b"%x\r\n%b\r\n" % (len(text), text) for text in part)) == b"".join(part)


def test_line_break_alone_ends_a_size_as_well_wherever_the_body_is_cut() -> None:
    data = b"3;e=b\n0\r\n\r\n0\r\n\r\n"  # one chunk: "0", CR, LF
    for cut in range(len(data)):
        decoder = ChunkedDecoder()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == b"0\r\n"
        assert decoder.done
