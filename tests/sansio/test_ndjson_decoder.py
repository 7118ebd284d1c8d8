"""Lines of JSON: what was written is read, however it was cut, and nothing else is believed."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from costs import costs_at_most_times
from hypothesis import given
from hypothesis import strategies as st
from items import JSON
from splitting import decode_every_way, every_way

from flask_llmstream.exceptions import BufferLimitExceeded, DecodeError, WireError
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder


@pytest.mark.parametrize(
    "wire, values",
    [
        pytest.param(b'{"a":1}\n{"b":2}\n', [{"a": 1}, {"b": 2}], id="lines"),
        pytest.param(b'{"a":1}\r\n[2]\r\n', [{"a": 1}, [2]], id="crlf"),
        pytest.param(b'{"a":1}\n[2]', [{"a": 1}, [2]], id="no-last-line-end"),
        pytest.param(b'\n\r\n {"a":1} \n \t\r\n\n', [{"a": 1}], id="blank-lines"),
        pytest.param(b'\xef\xbb\xbf{"a":1}\n', [{"a": 1}], id="byte-order-mark"),
        pytest.param(b"\xef\xbb\xbf\n1\n", [1], id="byte-order-mark-alone"),
        pytest.param('"é\u2028\x85\U0001f600"\n"\\ud83d"\n'.encode(), ["é\u2028\x85\U0001f600", "\ud83d"],
                     id="characters"),
        pytest.param(b"1\nnull\ntrue\n", [1, None, True], id="scalars"),
        pytest.param(b"", [], id="empty"),
        pytest.param(b'"' + b"a" * 14 + b'"\n', ["a" * 14], id="as-long-as-allowed"),
    ],
)
def test_every_cut(wire, values):
    decode_every_way(lambda: NDJSONDecoder(max_line=16), wire, values)


@given(
    values=st.lists(JSON, max_size=4), ends=st.sampled_from(["\n", "\r\n", "\n\n"]), size=st.integers(1, 9),
)
def test_any_values(values, ends, size):
    wire = ends.join(json.dumps(value) for value in values).encode()
    decoder = NDJSONDecoder()
    pieces = [wire[i : i + size] for i in range(0, len(wire), size)]
    assert [value for piece in pieces for value in decoder.feed(piece)] + decoder.flush() == values


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_kinds_of_bytes(kind):
    assert NDJSONDecoder().feed(kind(b"[1]\n")) == [[1]]


FAULTS = [
    pytest.param(b'1\n{"secret\n', 2, id="cut"),
    pytest.param(b"1\n\nsecret\n2\n", 3, id="text"),
    pytest.param(b'1\n"secret\xff"\n', 2, id="utf-8"),
    pytest.param(b"1\n[NaN]\n", 2, id="nan"),
    pytest.param(b"1\n" + b"[" * 100000 + b"\n", 2, id="too-deep"),
    pytest.param(b"1\n\xef\xbb\xbf2\n", 2, id="a-late-byte-order-mark"),
    pytest.param(b"1\n1 2\n", 2, id="two-values"),
]


@pytest.mark.parametrize("wire, line", FAULTS)
def test_fault(wire, line):
    """What is before it comes out first, then the fault, each time."""
    for cuts in (1, 2):
        decoder = NDJSONDecoder()
        values = []
        with pytest.raises(DecodeError, match=f"line {line}: not JSON in UTF-8$") as caught:
            for i in range(0, len(wire), len(wire) // cuts):
                values += decoder.feed(wire[i : i + len(wire) // cuts])
            values += decoder.flush()
        assert values == [1]
        assert caught.value.line == line
        assert "secret" not in str(caught.value)
        assert caught.value.__cause__ is caught.value.__context__ is None
        for again in (lambda: decoder.feed(b"1\n"), decoder.flush):
            with pytest.raises(DecodeError):
                again()
        decoder.reset()
        assert decoder.feed(b"5\n") == [5]


def test_fault_in_the_last_line():
    decoder = NDJSONDecoder()
    assert decoder.feed(b'1\n{"a":') == [1]
    with pytest.raises(DecodeError, match="line 2"):
        decoder.flush()


@pytest.mark.parametrize("wire", [b"1\n" + b"2" * 17, b"1\n" + b"2" * 17 + b"\n", b"1\n" + b" " * 17 + b"\n"])
def test_limit(wire):
    for _, pieces in every_way(wire):
        decoder = NDJSONDecoder(max_line=16)
        values = []
        with pytest.raises(BufferLimitExceeded, match="line 2 is longer than max_line=16") as caught:
            for piece in pieces:
                values += decoder.feed(piece)
            values += decoder.flush()
        assert values == [1]
        assert caught.value.limit == 16


def test_feed_after_flush():
    decoder = NDJSONDecoder()
    assert decoder.feed(b"1") == []
    assert decoder.flush() == [1]
    assert decoder.flush() == []
    with pytest.raises(RuntimeError, match="call reset"):
        decoder.feed(b"2")
    decoder.reset()
    assert decoder.feed(b"2\n") == [2]


PIECES = st.binary(max_size=12) | st.sampled_from([b"\n", b"1", b'{"a":', b"}\n", b'"'])


@given(pieces=st.lists(PIECES, max_size=9))
def test_any_bytes_and_any_cut(pieces):
    def read(pieces):
        decoder = NDJSONDecoder(max_line=20)
        values = []
        try:
            for piece in pieces:
                values += decoder.feed(piece)
            return values + decoder.flush(), None
        except WireError as error:
            return values, str(error)

    assert read(pieces) == read([b"".join(pieces)])


def test_linear_in_the_length_of_a_line():
    """Eight times the line may cost 8 times the time, not 64 times."""
    def read(length):
        wire = b'"' + b"a" * length + b'"'
        decoder = NDJSONDecoder(max_line=1 << 23)
        for i in range(0, len(wire), 64):
            decoder.feed(wire[i : i + 64])
        decoder.flush()

    times = costs_at_most_times(24, lambda: read(250000), lambda: read(2000000))
    print(f"2 MB cost {times:.1f} times what 250 KB do")


def test_memory_is_let_go_of():
    decoder = NDJSONDecoder(max_line=100000)
    tracemalloc.start()
    try:
        for _ in range(200):
            decoder.feed(b'"' + b"a" * 90000 + b'"\n')
        with pytest.raises(BufferLimitExceeded):
            for _ in range(100):
                decoder.feed(b"a" * 5000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 50000
