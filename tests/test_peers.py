"""What the table of servers makes of an environ, and what a stream does with it; live: tests/servers."""

from __future__ import annotations

import errno
import io
import socket
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from flask_llmstream.disconnect import Peer, find_peer, leave_quietly
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.servers import SERVERS
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream
from flask_llmstream.testing import wait_until

Pair = Tuple[socket.socket, socket.socket]


@pytest.fixture
def connection() -> Iterator[Pair]:
    """A TCP connection: (server's end, client's end)."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = socket.create_connection(listener.getsockname(), 10)
        server, _ = listener.accept()
    yield server, client
    server.close()
    client.close()


class ClientDisconnected(Exception):
    """As waitress', which is no OSError."""


class Channel:
    """Of waitress: the bound method in the environ leads to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    def check_client_disconnected(self) -> bool:
        return False


class GeventInput:
    """Of gevent.pywsgi: wraps the file that reads from the socket."""

    def __init__(self, file: Any) -> None:
        self.rfile = file


def is_sent_at_once(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


# -- the rows ------------------------------------------------------------------------------


def test_every_row_says_something_for_the_docs() -> None:
    for server in SERVERS:
        assert server.name and server.about.endswith(".")


def test_waitress_is_found_by_its_channel(connection: Pair, monkeypatch: Any) -> None:
    module = types.ModuleType("waitress.channel")
    monkeypatch.setattr(module, "ClientDisconnected", ClientDisconnected, raising=False)
    monkeypatch.setitem(sys.modules, "waitress.channel", module)
    server, _ = connection
    peer = find_peer({"waitress.client_disconnected": Channel(server).check_client_disconnected}, None)
    assert peer == Peer("waitress", server.fileno(), True, True, ClientDisconnected)
    assert isinstance(leave_quietly(peer), ClientDisconnected)


@pytest.mark.parametrize(
    "software, name, wrap",
    [
        ("gevent/26.9 Python/3.11", "gevent.pywsgi", GeventInput),
        ("Werkzeug/0.16.1", "werkzeug", lambda file: file),
        ("WSGIServer/0.2", "wsgiref", lambda file: file),
    ],
)
def test_socket_is_found_behind_the_body(
    connection: Pair, software: str, name: str, wrap: Callable[[Any], Any]
) -> None:
    server, _ = connection
    with server.makefile("rb") as file:
        environ = {"SERVER_SOFTWARE": software, "wsgi.input": wrap(file)}
        assert find_peer(environ, None) == Peer(name, server.fileno(), True, True)
    assert is_sent_at_once(server)
    assert server.gettimeout() is None


def test_body_without_a_socket_is_no_fault() -> None:
    environ = {"SERVER_SOFTWARE": "WSGIServer/0.2", "wsgi.input": io.BytesIO()}
    assert find_peer(environ, None).server == "unknown"


def test_foreign_server_is_not_searched(connection: Pair) -> None:
    server, _ = connection
    with server.makefile("rb") as file:
        peer = find_peer({"SERVER_SOFTWARE": "Other/1", "wsgi.input": file}, None)
    assert peer.server == "unknown" and not is_sent_at_once(server)


def test_unix_socket_needs_no_option() -> None:
    server, client = socket.socketpair()
    with server, client:
        assert find_peer({"werkzeug.socket": server}, None).fd == server.fileno()


def test_mod_wsgi_hides_the_connection_and_can_be_written_to() -> None:
    assert find_peer({"mod_wsgi.version": (4, 9, 4)}, None) == Peer("mod_wsgi", None, True, False)


# -- uWSGI, by a stand-in for the module that only exists inside of it ----------------------


def uwsgi_spit(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        raise OSError("uWSGI's own write() works in the request's thread only")

    return write


@pytest.fixture
def uwsgi(connection: Pair, monkeypatch: Any) -> Any:
    module: Any = types.ModuleType("uwsgi")
    module.connection_fd = connection[0].fileno
    module.opt = {}
    monkeypatch.setitem(sys.modules, "uwsgi", module)
    return module


def test_uwsgi_is_written_to_past_its_own_write(uwsgi: Any, connection: Pair) -> None:
    server, client = connection
    peer = find_peer({"uwsgi.version": b"2.0.21"}, uwsgi_spit)
    assert (peer.server, peer.fd, peer.can_write, peer.opens_aside) == ("uWSGI", server.fileno(), True, False)
    assert is_sent_at_once(server)
    assert peer.start_response is not None
    write = peer.start_response("200 OK", [])
    server.setblocking(False)  # as uWSGI has it
    size = 8_000_000  # more than fits into the buffers
    writing = threading.Thread(target=write, args=(b"x" * size,))
    writing.start()
    received = 0
    while received < size:
        received += len(client.recv(1 << 20))
    writing.join(10)
    assert received == size and not writing.is_alive()


def test_uwsgi_client_that_does_not_read_is_given_up(
    uwsgi: Any, connection: Pair, monkeypatch: Any
) -> None:
    monkeypatch.setattr("flask_llmstream.servers._WRITE_TIMEOUT", 20)
    start = find_peer({"uwsgi.version": b"2.0.21"}, uwsgi_spit).start_response
    assert start is not None
    connection[0].setblocking(False)
    with pytest.raises(ConnectionResetError) as caught:
        start("200 OK", [])(b"x" * 20_000_000)
    assert caught.value.errno == errno.ECONNRESET


def test_uwsgi_is_not_written_to_where_that_could_harm(uwsgi: Any) -> None:
    environ = {"uwsgi.version": b"2.0.21"}
    assert not find_peer(environ, lambda *args: None).can_write, "a middleware is between"
    uwsgi.opt["https-socket"] = b"0.0.0.0:443"
    assert not find_peer(environ, uwsgi_spit).can_write, "the connection is encrypted"


def test_uwsgi_connection_that_is_gone_is_no_peer(uwsgi: Any) -> None:
    uwsgi.connection_fd = lambda: -1
    assert find_peer({"uwsgi.version": b"2.0.21"}, uwsgi_spit).server == "unknown"


def test_uwsgi_request_is_lent_to_the_greenlet_that_writes(uwsgi: Any, monkeypatch: Any) -> None:
    """In its gevent mode uWSGI looks at the running greenlet to know whose connection is meant."""
    seen = []

    def start_response(*args: Any) -> Callable[[bytes], None]:
        seen.append(getattr(runtime.task(), "uwsgi_wsgi_req", None))
        return lambda data: seen.append(getattr(runtime.task(), "uwsgi_wsgi_req", None))

    def running(**attributes: Any) -> Any:
        greenlet = types.SimpleNamespace(**attributes)
        monkeypatch.setattr(runtime, "task", lambda: greenlet)
        return greenlet

    runtime = types.SimpleNamespace(sees_blocking=True, task=None)
    monkeypatch.setattr("flask_llmstream.servers.current_runtime", lambda: runtime)
    running(uwsgi_wsgi_req=17)
    peer = find_peer({"uwsgi.version": b"2.0.21"}, start_response)
    assert (peer.can_write, peer.opens_aside) == (True, True)
    assert peer.start_response is not None
    ticker = running()
    write = peer.start_response("200 OK", [])
    other = running(uwsgi_wsgi_req=18)
    write(b"x")
    assert seen == [17, 17]
    assert not hasattr(ticker, "uwsgi_wsgi_req") and other.uwsgi_wsgi_req == 18


# -- what a stream makes of it -------------------------------------------------------------


class Silent:
    """A source that gives one item and then waits to be closed."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.given = False

    def __iter__(self) -> Silent:
        return self

    def __next__(self) -> str:
        if not self.given:
            self.given = True
            return "one"
        self.go_on.wait(10)
        raise StopIteration


class Serving:
    """Runs one stream in a thread, as a server with the given *peer* does."""

    def __init__(self, peer: Peer, write: Callable[[bytes], Any], **settings: Any) -> None:
        self.source = Silent()
        self.pieces: List[bytes] = []
        self.heads: List[str] = []
        stream = Stream(self.source, format=SSEFormat(), settings=Settings(**settings))
        self.stream = stream

        def start_response(status: str, headers: Any) -> Callable[[bytes], Any]:
            self.heads.append(status)
            return write

        stream.attach(peer, start_response, "200 OK", [])
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.pieces.extend(self.stream)
        finally:
            self.stream.close()

    def __enter__(self) -> Serving:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.source.go_on.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_exception_of_the_servers_own_is_a_departure() -> None:
    """waitress raises it from ``write()``."""
    ends = []

    def write(data: bytes) -> None:
        raise ClientDisconnected

    peer = Peer("test", None, True, False, ClientDisconnected)
    with Serving(peer, write, heartbeat_interval=0.05) as serving:
        serving.stream.on_end(ends.append)
        wait_until(lambda: serving.stream.cancelled, 5.0)
    assert [end.reason for end in ends] == ["disconnect"]


def test_heartbeat_that_may_block_does_not_hold_the_ticker() -> None:
    """Without a descriptor nobody knows whether it will; another stream's heartbeats must go on."""
    blocked, others_beats = threading.Event(), []

    def write(data: bytes) -> None:
        blocked.set()
        serving.source.go_on.wait(10)

    hidden = Peer("test", None, True, False)
    with Serving(hidden, write, heartbeat_interval=0.05) as serving:
        assert blocked.wait(5)
        server, client = socket.socketpair()
        with server, client:
            seen = Peer("test", server.fileno(), True, False)
            with Serving(seen, others_beats.append, heartbeat_interval=0.05):
                wait_until(lambda: len(others_beats) >= 2, 5.0)


def test_stream_opens_at_once_where_only_the_request_can_open_it() -> None:
    written: List[bytes] = []
    peer = Peer("test", None, True, False, opens_aside=False)
    with Serving(peer, written.append, status_hold=60.0) as serving:
        wait_until(lambda: len(serving.pieces) >= 2, 5.0)
        assert serving.heads == ["200 OK"]
        assert serving.pieces[0].startswith(b":") and b"one" in serving.pieces[1]


def test_stand_in_for_start_response_is_used() -> None:
    started: List[Any] = []
    beats: List[bytes] = []

    def start_response(*args: Any) -> Callable[[bytes], Any]:
        started.append(args)
        return beats.append

    peer = Peer("test", None, True, False, start_response=start_response)
    with Serving(peer, lambda data: pytest.fail("not this one"), heartbeat_interval=0.05) as serving:
        wait_until(lambda: beats, 5.0)
        assert len(started) == 1 and not serving.heads


def leave_while_written_to() -> float:
    """Return how long a source went on reading, in s, whose client was seen to leave by two at a time."""
    upstream, ours = socket.socketpair()
    times = {}

    def source() -> Iterator[str]:
        try:
            with ours.makefile("rb") as file:
                yield "one"
                file.readline()
        finally:
            times["left"] = time.monotonic()

    def write(data: bytes) -> None:
        # The watcher sees the RST that the first packet of a heartbeat has provoked; the next fails.
        times["seen"] = time.monotonic()
        stream.peer_event(True)
        raise ConnectionResetError(errno.ECONNRESET, "the client has left")

    stream = Stream(source(), format=SSEFormat(), settings=Settings(heartbeat_interval=0.05))
    stream.attach(Peer("test", None, True, True), lambda *args: write, "200 OK", [])
    with upstream, ours:
        try:
            with pytest.raises(ConnectionResetError):
                for _ in stream:
                    pass
        finally:
            stream.close()
    return times["left"] - times["seen"]


def test_departure_that_a_failing_heartbeat_shows_as_well_is_acted_on_at_once() -> None:
    """The one who sees it first cannot interrupt the source, because the other is writing."""
    # Not in the main thread: there greenlet tidies up after threads that have ended, which happens to
    # be where Python raises what is thrown into a thread, and would drop it.
    seconds: List[float] = []
    with ThreadPoolExecutor(1) as pool:
        # The next regular try comes after 0.02 s, however often; a busy machine is not slow each time.
        while len(seconds) < 40 and min(seconds, default=1.0) >= 0.015:
            seconds.append(pool.submit(leave_while_written_to).result())
    assert min(seconds) < 0.015, seconds
