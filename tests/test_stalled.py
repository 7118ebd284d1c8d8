"""A client that takes nothing is told from one that takes little."""

from __future__ import annotations

import os
import socket
import time
from typing import Iterator, Tuple

import pytest

from flask_llmstream.runtime import Runtime
from flask_llmstream.stalled import Stall, cut_off
from flask_llmstream.testing import wait_until

Pair = Tuple[socket.socket, socket.socket]


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """A server's socket and its client's."""
    if request.param == "unix":
        server, client = socket.socketpair()
    else:
        with socket.socket() as listener, socket.socket() as client:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            client, server = socket.socket(fileno=client.detach()), listener.accept()[0]
    with server, client:
        yield server, client


def fill(server: socket.socket) -> None:
    """Send until nothing more fits."""
    server.setblocking(False)
    runtime = Runtime()

    def is_full() -> bool:
        try:
            while True:
                server.send(b"x" * 65536)
        except BlockingIOError:
            return not runtime.writable(server.fileno())

    wait_until(is_full, 10, "the buffers to be full")


def test_client_that_can_be_written_to_is_well(pair: Pair) -> None:
    server, _ = pair
    stall = Stall()
    assert stall.seconds(server.fileno(), 1.0, Runtime()) == 0
    assert stall.seconds(server.fileno(), 1000.0, Runtime()) == 0


def test_time_counts_from_the_first_look_at_a_full_buffer(pair: Pair) -> None:
    server, _ = pair
    fill(server)
    stall = Stall()
    assert [stall.seconds(server.fileno(), now, Runtime()) for now in (5.0, 6.0, 15.0)] == [0, 1, 10]


def test_whoever_takes_something_starts_anew() -> None:
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            fill(server)
            stall = Stall()
            stall.seconds(server.fileno(), 0.0, Runtime())
            clock = [0.0]

            def starts_anew() -> bool:
                client.recv(4096)
                clock[0] += 1.0
                seconds = stall.seconds(server.fileno(), clock[0], Runtime())
                assert not Runtime().writable(server.fileno()), "its buffer is full all the time"
                return seconds == 0

            wait_until(starts_anew, 10, "the acknowledgement to be seen")


def test_cutting_off_breaks_a_full_connection(pair: Pair) -> None:
    server, _ = pair
    fill(server)
    assert cut_off(server.fileno(), Runtime())
    with pytest.raises(BrokenPipeError):
        server.send(b"x")


def test_connection_that_is_well_is_never_cut_off(pair: Pair) -> None:
    """Its number may have been another's when the decision was made."""
    server, client = pair
    assert not cut_off(server.fileno(), Runtime())
    server.sendall(b"well")
    assert client.recv(10) == b"well"


def test_client_that_has_acknowledged_something_else_is_not_cut_off() -> None:
    """A black hole is made in tests/faults; here the client only looks like one that has vanished."""
    with socket.socket() as listener, socket.socket() as client:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        with server:
            server.sendall(b"well")
            assert client.recv(10) == b"well"
            stall = Stall()
            # The acknowledgement is there by the second look at the latest.
            wait_until(lambda: stall.seconds(server.fileno(), 10.0 + time.monotonic(), Runtime()) == 0)
            assert not cut_off(server.fileno(), Runtime(), 4)
            server.sendall(b"still well")
            assert client.recv(20) == b"still well"


def test_number_that_is_nobodys_is_no_error() -> None:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    assert not cut_off(fd, Runtime())
    assert Stall().seconds(fd, 1.0, Runtime()) == 0


def test_nothing_is_left_open(pair: Pair) -> None:
    server, _ = pair
    fill(server)
    before = len(os.listdir("/proc/self/fd"))
    Stall().seconds(server.fileno(), 1.0, Runtime())
    cut_off(server.fileno(), Runtime())
    assert len(os.listdir("/proc/self/fd")) == before
