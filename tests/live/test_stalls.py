"""A stream that stalls says why in the log, once: its source, the worker's loop, or its reader."""

from __future__ import annotations

import contextlib
import re
import socket
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

pytestmark = pytest.mark.live

APP = Path(__file__).with_name("apps") / "stalls.py"


@pytest.fixture(scope="module")
def silence() -> Iterator[str]:
    """The URL of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) if hasattr(socket, "create_server") else _listening() as sock:
        yield "http://127.0.0.1:%d" % sock.getsockname()[1]


def _listening() -> Any:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(8)
    return sock


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: Any, silence: str) -> Iterator[LiveServer]:
    with gunicorn_server(APP, request.param, threads=8, env={"UPSTREAM": silence}) as running:
        yield running


def lines(server: LiveServer, what: str) -> List[str]:
    return [line for line in server.log().splitlines() if what in line]


def test_source_that_is_silent_is_named_with_its_place_and_peer(server: LiveServer, silence: str) -> None:
    reader = server.request("/silent?path=/v1/chat")
    with contextlib.closing(reader.sock):
        wait_until(lambda: lines(server, "nothing has come"), 10.0, lambda: server.log())
        (line,) = lines(server, "nothing has come")
        said = r"stream [0-9a-f]{16}: nothing has come from its source for [0-4] s; it waits in "
        assert re.search(said, line), line
        assert "listen_to_the_model" in line and f"{APP}:" in line
        assert line.endswith(f", for {silence[7:]}")
        assert not re.search("gevent|urllib3|flask.helpers", line.partition("waits in")[2])
        # Once for each stream, though it is looked at again and again.
        other = server.request("/silent?path=/other")
        with contextlib.closing(other.sock):
            wait_until(lambda: len(lines(server, "nothing has come")) == 2, 10.0, lambda: server.log())
            assert lines(server, "nothing has come")[0] == line


def test_reader_that_takes_nothing_is_named(server: LiveServer) -> None:
    reader = server.request("/much")
    with contextlib.closing(reader.sock):
        wait_until(lambda: lines(server, "has read nothing"), 20.0, lambda: server.log())
        # It is looked at until it is cut off, and named once.
        wait_until(lambda: lines(server, "much is over"), 20.0, lambda: server.log())
        (line,) = lines(server, "has read nothing of what waits for it")
        assert re.search(r"stream [0-9a-f]{16}: its client has read nothing .* for \d s$", line)


def test_lively_stream_is_not_named(server: LiveServer) -> None:
    before = server.log()
    reader = server.request("/lively?count=30")
    with contextlib.closing(reader.sock):
        pairs = list(reader)
    assert b"".join(data for _, data in pairs).count(b'"x"') == 30
    longest = max(after - at for (at, _), (after, _) in zip(pairs, pairs[1:]))
    named = [line for line in server.log()[len(before) :].splitlines() if "stream" in line]
    # Where the machine itself has stood still for half a second, it was not lively.
    assert not named or longest > 0.4, server.log()


def test_who_holds_the_loop_is_named(silence: str) -> None:
    with gunicorn_server(APP, "gevent", env={"UPSTREAM": silence, "STALL_WARNING": "30"}) as server:
        waiting = server.request("/lively?count=80")
        with contextlib.closing(waiting.sock):
            for seconds in (0.4, 1.6, 1.6):  # the first is not worth a word, the last has been named
                reader = server.request(f"/hold?seconds={seconds}")
                with contextlib.closing(reader.sock):
                    assert reader.read().count(b"data: {") == 3
            wait_until(lambda: lines(server, "event loop was held"), 10.0, lambda: server.log())
            assert waiting.read().count(b'"x"') == 80
        (line,) = lines(server, "event loop was held")
        assert re.search(r"held for [12]\.\d s by \w*stalls\w*\.hold_the_loop \(", line), line
        assert f"{APP}:" in line and "called by" in line and "2 streams of this worker stood still" in line
