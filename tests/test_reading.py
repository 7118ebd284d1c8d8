"""Bodies arrive as they are sent, whatever their framing, and connections are used again."""

from __future__ import annotations

import gzip
import io
import os
import signal
import threading
import zlib

import pytest
import requests
import urllib3

from flask_llmstream.reading import READ_ERRORS, read_available
from flask_llmstream.testing.upstreams import (
    ScriptedUpstream,
    close_delimited,
    cut,
    done,
    headers,
    hold,
    raw,
    reset,
    silence,
    status,
    tokens,
    wait,
)

FIRST, SECOND = b"data: first\n\n", b"data: second\n\n"

#: The framing is written by the test itself.
AS_IF_CHUNKED = headers({"Transfer-Encoding": "chunked"})

FRAMINGS = {
    "chunked": lambda size: headers({}),
    "close-delimited": lambda size: close_delimited,
    "sized": lambda size: headers({"Content-Length": str(size)}),
}


@pytest.fixture
def upstream():
    with ScriptedUpstream() as upstream:
        yield upstream
    assert not upstream.errors


@pytest.fixture
def session():
    with requests.Session() as session:
        yield session


@pytest.fixture
def get(upstream, session):
    """Return a function that has a script run and returns the response to it."""

    def get(*script, timeout=5):
        upstream.script = script
        return session.get(upstream.url, stream=True, timeout=timeout)

    return get


def compressed(*pieces):
    """Return each piece compressed and flushed, as a server does that streams."""
    packer = zlib.compressobj(wbits=31)
    packed = [packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH) for piece in pieces]
    return packed + [packer.flush()]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_piece_arrives_before_the_next_one_is_sent(get, framing, coding):
    flag = threading.Event()
    pieces = [FIRST, SECOND]
    coded = compressed(*pieces) if coding == "gzip" else pieces
    size = sum(map(len, coded))
    response = get(
        FRAMINGS[framing](size),
        headers({"Content-Encoding": coding}),
        raw(coded[0]),
        hold(flag),
        *map(raw, coded[1:]),
    )
    reader = read_available(response)
    assert next(reader) == FIRST
    flag.set()
    assert b"".join(reader) == SECOND
    assert reader.ended


def test_all_that_has_arrived_comes_at_once(get, upstream):
    """A burst of HTTP chunks is one piece, so that it can leave in one write."""
    count = 50
    response = get(*[raw(FIRST)] * count)
    upstream.wait_for(lambda upstream: upstream.exchanges[-1].completed)
    pieces = list(read_available(response))
    assert b"".join(pieces) == FIRST * count
    assert len(pieces) <= count / 5


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_large_body_arrives_whole(get, framing):
    data = bytes(range(256)) * 4096
    response = get(FRAMINGS[framing](2 * len(data)), raw(data), raw(data))
    assert b"".join(read_available(response)) == data * 2


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_empty_body(get, framing):
    reader = read_available(get(FRAMINGS[framing](0)))
    assert list(reader) == [] and reader.ended


@pytest.mark.parametrize("framing", ["chunked", "sized"])
def test_a_connection_is_used_again_once_its_body_is_read(get, upstream, framing):
    for _ in range(3):
        list(read_available(get(FRAMINGS[framing](len(FIRST)), raw(FIRST))))
    assert (upstream.connections, upstream.requests) == (1, 3)


def test_bytes_behind_the_body_end_the_connection(get, upstream):
    """What a server says unasked must not be taken for the next answer."""
    end = b"0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    response = get(
        AS_IF_CHUNKED, close_delimited, raw(b"3\r\nabc\r\n" + end), silence()
    )
    # As if it had promised to keep the connection.
    response.raw._fp.will_close = False
    assert list(read_available(response)) == [b"abc"]
    upstream.wait_closed()


@pytest.mark.parametrize(
    "script, reads",
    [
        pytest.param([raw(FIRST), cut()], FIRST, id="fin"),
        pytest.param([raw(FIRST), wait(0.05), reset()], FIRST, id="rst"),
        pytest.param([headers({"Content-Length": "99"}), raw(FIRST), cut()], FIRST, id="short"),
        pytest.param(
            [AS_IF_CHUNKED, close_delimited, raw(b"d\r\n" + FIRST + b"\r\nno\r\n")],
            FIRST,
            id="bad-framing",
        ),
        pytest.param(
            [AS_IF_CHUNKED, close_delimited, raw(b"ff\r\n" + FIRST), cut()],
            FIRST,
            id="inside-a-chunk",
        ),
    ],
)
def test_what_came_before_a_fault_is_delivered(get, upstream, script, reads):
    reader = read_available(get(*script))
    received = b""
    with pytest.raises(READ_ERRORS):
        for piece in reader:
            received += piece
    assert received == reads
    assert not reader.ended
    assert list(reader) == [], "a fault is the end"
    assert not reader.ended
    upstream.wait_closed()


def test_damaged_compression_is_a_read_error(get, upstream):
    flag = threading.Event()
    script = [raw(compressed(FIRST)[0]), hold(flag), raw(b"damage" * 9), silence()]
    reader = read_available(get(headers({"Content-Encoding": "gzip"}), *script))
    assert next(reader) == FIRST
    flag.set()
    with pytest.raises(urllib3.exceptions.DecodeError):
        next(reader)
    upstream.wait_closed()


def test_a_cut_compressed_body_is_a_read_error(get, upstream):
    script = [headers({"Content-Encoding": "gzip"}), raw(compressed(FIRST)[0]), cut()]
    reader = read_available(get(*script))
    assert next(reader) == FIRST
    with pytest.raises(urllib3.exceptions.ProtocolError):
        next(reader)


def test_a_timeout_while_reading_is_the_systems_own(get, upstream):
    reader = read_available(get(raw(FIRST), silence(), timeout=0.8))
    assert next(reader) == FIRST
    with pytest.raises(OSError, match="timed out"):
        next(reader)
    upstream.wait_closed()


def test_any_exception_closes_the_connection(get, upstream):
    """A cancellation is no Exception, and must not leave a connection half read in its pool."""

    class Cancelled(BaseException):
        pass

    def interrupt(*_):
        raise Cancelled

    reader = read_available(get(raw(FIRST), silence()))
    assert next(reader) == FIRST
    before = signal.signal(signal.SIGUSR1, interrupt)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
    try:
        with pytest.raises(Cancelled):
            timer.start()
            next(reader)
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)
    upstream.wait_closed()


def test_closing_the_response_under_the_reader_is_a_read_error(get):
    response = get(raw(FIRST), silence())
    reader = read_available(response)
    assert next(reader) == FIRST
    response.close()
    with pytest.raises(READ_ERRORS):
        next(reader)


@pytest.mark.parametrize("repeat", [1, 5])
def test_drain_makes_a_connection_reusable(get, upstream, repeat):
    for _ in range(repeat):
        reader = read_available(get(tokens("a"), done(), wait(0.01)))
        next(reader)
        assert reader.drain(5, 10_000)
    assert upstream.connections == 1


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([raw(FIRST), silence()], id="silent"),
        pytest.param([raw(FIRST), wait(0.05), raw(b"x" * 100_000), silence()], id="too-much"),
        pytest.param([close_delimited, raw(FIRST), silence()], id="not-reusable"),
        pytest.param([raw(FIRST), wait(0.02), cut()], id="cut"),
    ],
)
def test_drain_gives_up_and_closes(get, upstream, script):
    reader = read_available(get(*script))
    assert next(reader) == FIRST
    assert not reader.drain(0.3, 10_000)
    upstream.wait_closed()


def test_draining_leaves_the_timeout_as_it_was(get, upstream, session):
    flag = threading.Event()
    response = get(raw(FIRST), hold(flag), timeout=7)
    sock = response.raw._connection.sock
    reader = read_available(response)
    next(reader)
    flag.set()
    assert reader.drain(5, 10_000)
    assert sock.gettimeout() == 7


def test_take_is_bounded_in_bytes_and_in_time(get, upstream):
    reader = read_available(get(raw(b"x" * 200_000), silence()))
    taken = reader.take(5, 1000)
    assert 1000 <= len(taken) < 200_000
    upstream.wait_closed()
    reader = read_available(get(raw(FIRST), silence()))
    assert reader.take(0.1, 1000) == FIRST
    upstream.wait_closed()
    reader = read_available(get(raw(FIRST), raw(SECOND)))
    assert reader.take(5, 1000) == FIRST + SECOND and reader.ended
    assert read_available(get(raw(FIRST), silence())).take(0, 1000) == b""


def test_limit_silence(get, upstream):
    reader = read_available(get(raw(FIRST), silence(), timeout=60))
    assert next(reader) == FIRST
    assert reader.limit_silence(0.05)
    with pytest.raises(OSError, match="timed out"):
        next(reader)
    assert not reader.limit_silence(0.05), "there is no connection any more"
    reader = read_available(get(raw(FIRST), silence(), timeout=0.8))
    assert next(reader) == FIRST
    assert reader.limit_silence(60), "only ever shorter"
    with pytest.raises(OSError, match="timed out"):
        next(reader)


def test_a_compressed_bomb_unfolds_in_steps(get):
    packer = zlib.compressobj(wbits=31)
    bomb = packer.compress(b"\0" * (64 << 20)) + packer.flush()
    reader = read_available(get(headers({"Content-Encoding": "gzip"}), raw(bomb)))
    largest = total = 0
    for piece in reader:
        largest = max(largest, len(piece))
        total += len(piece)
    assert total == 64 << 20
    assert largest <= 8 << 20


def test_several_codings(get):
    body = gzip.compress(zlib.compress(FIRST))
    response = get(headers({"Content-Encoding": "deflate, gzip"}), raw(body))
    assert b"".join(read_available(response)) == FIRST


@pytest.mark.parametrize("size", [5, 7])
@pytest.mark.parametrize("decode", [True, False])
def test_what_was_read_already_is_not_read_again(get, size, decode):
    response = get(*[raw(b"%05d" % number) for number in range(100)])
    start = response.raw.read(size, decode_content=decode)
    assert start + b"".join(read_available(response)) == b"".join(b"%05d" % n for n in range(100))


def test_a_chunked_body_read_in_part_by_requests(get):
    response = get(*[raw(b"%05d" % number) for number in range(100)])
    pieces = response.iter_content(3)  # kept: requests closes the connection when it is dropped
    start = next(pieces)
    assert start + b"".join(read_available(response)) == b"".join(b"%05d" % n for n in range(100))


def test_a_sized_body_read_in_part(get):
    response = get(headers({"Content-Length": "10"}), raw(b"0123456789"))
    assert response.raw.read(3) + b"".join(read_available(response)) == b"0123456789"


def test_a_body_that_was_loaded(get, upstream, session):
    upstream.script = [raw(FIRST), raw(SECOND)]
    assert list(read_available(session.get(upstream.url))) == [FIRST + SECOND]
    upstream.script = [status(200, body=b"")]
    assert list(read_available(session.get(upstream.url))) == []


def test_a_response_without_a_connection():
    """As test doubles make them."""
    response = requests.Response()
    response.raw = urllib3.HTTPResponse(io.BytesIO(FIRST), preload_content=False)
    reader = read_available(response)
    assert b"".join(reader) == FIRST and reader.ended
    response = requests.Response()
    response.raw = io.BytesIO(FIRST)
    reader = read_available(response)
    assert not reader.limit_silence(1)
    assert b"".join(reader) == FIRST
    response = requests.Response()
    response.raw = io.BytesIO(FIRST)
    assert not read_available(response).drain(1, 1000)


def test_no_body(upstream, session):
    upstream.script = [status(204, body=b"")]
    assert list(read_available(session.get(upstream.url, stream=True))) == []
    upstream.script = [raw(FIRST)]
    response = session.head(upstream.url, stream=True)
    assert list(read_available(response)) == []
    response.close()
