"""Libraries that block a whole gevent worker are named, once, with what helps."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Iterator, List

import pytest

from flask_llmstream.testing import LiveServer, gunicorn_server

pytest.importorskip("psycopg2")
pytest.importorskip("psycogreen")
pytest.importorskip("grpc")
pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps") / "blocking.py"


@pytest.fixture(scope="module")
def bare() -> Iterator[LiveServer]:
    with gunicorn_server(APP) as server:
        yield server


@pytest.fixture(scope="module")
def remedied() -> Iterator[LiveServer]:
    with gunicorn_server(APP, env={"REMEDY": "yes"}) as server:
        yield server


def stream_once(server: LiveServer, timeout: float = 10.0) -> None:
    reader = server.request("/stream", timeout=timeout)
    with contextlib.closing(reader.sock):
        assert b"one" in reader.read()


def hazards(server: LiveServer) -> List[str]:
    return [line for line in server.log().splitlines() if "flask_llmstream.hazards" in line]


def test_each_is_named_once_with_its_remedy(bare: LiveServer) -> None:
    stream_once(bare)
    stream_once(bare)
    psycopg2, mysqlclient, grpc = hazards(bare)
    assert "psycopg2 blocks" in psycopg2 and "psycogreen.gevent.patch_psycopg()" in psycopg2
    assert "mysqlclient (MySQLdb) blocks" in mysqlclient and "PyMySQL" in mysqlclient
    assert "grpc blocks" in grpc and "grpc.experimental.gevent.init_gevent()" in grpc


def test_whoever_did_what_helps_hears_nothing(remedied: LiveServer) -> None:
    stream_once(remedied)
    assert hazards(remedied) == []


def test_threads_hear_nothing() -> None:
    with gunicorn_server(APP, "gthread", threads=2) as server:
        stream_once(server)
        assert hazards(server) == []


@contextlib.contextmanager
def waiting_for_a_database(server: LiveServer) -> Iterator[None]:
    """Have one request wait for a database that has accepted its connection and says nothing."""
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        listener.settimeout(10.0)
        reader = server.connect()
        with contextlib.closing(reader):
            port = listener.getsockname()[1]
            reader.sendall(f"GET /connect?port={port} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            accepted, _ = listener.accept()
            try:
                yield
            finally:
                accepted.close()
            assert b"200 OK" in reader.recv(4096)


def test_the_warning_is_true(bare: LiveServer, remedied: LiveServer) -> None:
    with waiting_for_a_database(bare), pytest.raises(socket.timeout):
        stream_once(bare, timeout=0.5)
    with waiting_for_a_database(remedied):
        stream_once(remedied)
