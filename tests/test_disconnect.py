"""Who the client is, and how its leaving is noticed without reading from it."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

from flask_llmstream.disconnect import Peer, Watcher, current_watcher, find_peer, leave_quietly
from flask_llmstream.runtime import Runtime
from flask_llmstream.testing import wait_until

Pair = Tuple[socket.socket, socket.socket]


@pytest.fixture
def connect() -> Iterator[Callable[[], Pair]]:
    """Return a function that makes a TCP connection: (server's end, client's end)."""
    made: List[socket.socket] = []

    def pair() -> Pair:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
        made.extend((server, client))
        return server, client

    yield pair
    for each in made:
        each.close()


class Noting:
    """Notes the news; *stays* is what it answers to a FIN."""

    def __init__(self, stays: bool = True) -> None:
        self.news: List[str] = []
        self.stays = stays

    def peer_event(self, gone: bool) -> bool:
        self.news.append("gone" if gone else "FIN")
        return self.stays and not gone


# -- the table of servers ------------------------------------------------------------------


class FakeSocket:
    def __init__(self, fd: int) -> None:
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


class HTTP2Response:
    def start_response(self) -> None:
        """As gunicorn's, which frames what its write() is given."""


@pytest.mark.parametrize(
    "environ, expected",
    [
        ({"gunicorn.socket": FakeSocket(7)}, Peer("gunicorn", 7, True, True)),
        ({"gunicorn.sock": FakeSocket(7)}, Peer("gunicorn gevent_pywsgi", 7, True, True)),
        ({"werkzeug.socket": FakeSocket(7)}, Peer("werkzeug", 7, True, True)),
        ({"gunicorn.socket": FakeSocket(-1)}, Peer("unknown", None, False, False)),
        ({}, Peer("unknown", None, False, False)),
        (
            {"gunicorn.socket": FakeSocket(7), "SERVER_PROTOCOL": "HTTP/2.0"},
            Peer("gunicorn HTTP/2", 7, False, False),
        ),
    ],
)
def test_peer_is_found_by_the_table_of_servers(environ: Dict[str, Any], expected: Peer) -> None:
    assert find_peer(environ, lambda *args: None) == expected


def test_write_of_gunicorns_own_http2_response_can_be_used() -> None:
    environ = {"gunicorn.socket": FakeSocket(7), "SERVER_PROTOCOL": "HTTP/2"}
    peer = find_peer(environ, HTTP2Response().start_response)
    assert peer == Peer("gunicorn HTTP/2", 7, True, False)


def test_socket_that_is_closed_is_no_peer() -> None:
    sock = socket.socket()
    sock.close()
    assert find_peer({"gunicorn.socket": sock}, None).fd is None


def test_way_out_is_the_one_that_the_server_takes_quietly() -> None:
    error = leave_quietly(Peer("gunicorn", 7, True, True))
    assert isinstance(error, ConnectionResetError) and error.errno == errno.ECONNRESET
    assert isinstance(leave_quietly(Peer("unknown", None, False, False)), StopIteration)


# -- the watcher ---------------------------------------------------------------------------


@pytest.fixture
def watcher() -> Watcher:
    return Watcher(Runtime())


def test_reset_is_seen_as_gone(watcher: Watcher, connect: Callable[[], Pair]) -> None:
    server, client = connect()
    noting = Noting()
    watcher.add(server.fileno(), noting)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    wait_until(lambda: noting.news == ["gone"])
    wait_until(lambda: len(watcher) == 0)


def test_half_close_is_told_once_and_the_rest_of_it_again(
    watcher: Watcher, connect: Callable[[], Pair]
) -> None:
    server, client = connect()
    noting = Noting()
    watcher.add(server.fileno(), noting)
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: noting.news == ["FIN"])
    client.close()
    time.sleep(0.05)  # nothing may come now: that the socket is closed shows when it is written to
    assert noting.news == ["FIN"] and len(watcher) == 1
    server.sendall(b"a heartbeat")
    wait_until(lambda: noting.news == ["FIN", "gone"])


def test_who_does_not_stay_is_forgotten(watcher: Watcher, connect: Callable[[], Pair]) -> None:
    server, client = connect()
    noting = Noting(stays=False)
    watcher.add(server.fileno(), noting)
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: len(watcher) == 0)
    assert noting.news == ["FIN"]


def test_what_the_client_sends_is_neither_news_nor_eaten(
    watcher: Watcher, connect: Callable[[], Pair]
) -> None:
    server, client = connect()
    noting = Noting()
    watcher.add(server.fileno(), noting)
    client.sendall(b"a pipelined request")
    time.sleep(0.05)
    assert noting.news == []
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: noting.news == ["FIN"])
    assert server.recv(100) == b"a pipelined request"


def test_removed_client_is_not_news(watcher: Watcher, connect: Callable[[], Pair]) -> None:
    server, client = connect()
    first, second = Noting(), Noting()
    watcher.add(server.fileno(), first)
    watcher.remove(server.fileno(), second)
    assert len(watcher) == 1, "it is not the one that is watched"
    watcher.remove(server.fileno(), first)
    watcher.remove(server.fileno(), first)
    assert len(watcher) == 0
    watcher.add(server.fileno(), second)  # the next request on the same connection
    client.close()
    wait_until(lambda: second.news == ["FIN"])
    assert first.news == []


@pytest.mark.parametrize("stays", [True, False])
def test_number_that_was_given_to_another_connection_stays_watched(
    watcher: Watcher, connect: Callable[[], Pair], stays: bool
) -> None:
    """While the news of one request are dealt with, it ends, and the next one gets its number."""
    server, client = connect()
    next_server, next_client = connect()
    number = server.fileno()
    second = Noting()

    class Ending(Noting):
        def peer_event(self, gone: bool) -> bool:
            watcher.remove(number, self)
            os.dup2(next_server.fileno(), number)
            watcher.add(number, second)
            return super().peer_event(gone)

    first = Ending(stays)
    watcher.add(number, first)
    client.shutdown(socket.SHUT_WR)
    wait_until(lambda: first.news == ["FIN"])
    next_client.shutdown(socket.SHUT_WR)
    wait_until(lambda: second.news == ["FIN"])
    watcher.remove(number, second)


def test_late_news_of_an_earlier_connection_are_not_believed(connect: Callable[[], Pair]) -> None:
    class Stale:
        """An epoll object that tells of a connection what was true of another."""

        def __init__(self) -> None:
            self.modified: List[int] = []

        def register(self, fd: int, mask: int) -> None:
            self.mask = mask

        def modify(self, fd: int, mask: int) -> None:
            self.modified.append(mask)

        def poll(self, timeout: float, maxevents: int) -> List[Tuple[int, int]]:
            return [(server.fileno(), 0x10)]

    class Unwatching(Runtime):
        def epoll(self) -> Any:
            return stale

        def watch(self, epoll: Any, ready: Callable[[float], None]) -> Any:
            return ready

    server, _ = connect()
    stale = Stale()
    watcher = Watcher(Unwatching())
    noting = Noting()
    watcher.add(server.fileno(), noting)
    watcher._ready(0)
    assert noting.news == []
    assert stale.modified == [stale.mask], "it has to be armed again"


def test_stream_that_fails_is_reported_and_the_others_are_watched_on(
    watcher: Watcher, connect: Callable[[], Pair], caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        def peer_event(self, gone: bool) -> bool:
            raise ValueError("boom")

    (server, client), (other_server, other_client) = connect(), connect()
    noting = Noting()
    watcher.add(server.fileno(), Failing())
    watcher.add(other_server.fileno(), noting)
    client.close()
    wait_until(lambda: len(watcher) == 1)
    assert "boom" in caplog.text
    other_client.close()
    wait_until(lambda: noting.news == ["FIN"])


def test_file_that_cannot_be_watched_is_left_alone(watcher: Watcher, tmp_path: Any) -> None:
    with open(tmp_path / "file", "w") as file:
        watcher.add(file.fileno(), Noting())
    assert len(watcher) == 0


def test_system_without_epoll_watches_nothing(connect: Callable[[], Pair]) -> None:
    class Without(Runtime):
        def epoll(self) -> Any:
            return None

    server, _ = connect()
    watcher, noting = Watcher(Without()), Noting()
    watcher.add(server.fileno(), noting)
    watcher.remove(server.fileno(), noting)
    assert len(watcher) == 0


def test_many_threads_share_one_watcher(watcher: Watcher, connect: Callable[[], Pair]) -> None:
    def serve(number: int) -> None:
        for _ in range(100):
            server, client = socket.socketpair()
            noting = Noting(stays=False)
            with server:
                watcher.add(server.fileno(), noting)
                client.close()
                if number % 2:
                    wait_until(lambda: noting.news)
                watcher.remove(server.fileno(), noting)

    failures: List[BaseException] = []

    def run(number: int) -> None:
        try:
            serve(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == [] and len(watcher) == 0


def test_each_process_has_one() -> None:
    assert current_watcher() is current_watcher()


def test_child_of_a_fork_does_not_take_the_news_from_its_parent(connect: Callable[[], Pair]) -> None:
    class Unwatching(Runtime):
        def watch(self, epoll: Any, ready: Callable[[float], None]) -> Any:
            return ready

    server, client = connect()
    watcher, noting = Watcher(Unwatching()), Noting()
    watcher.add(server.fileno(), noting)
    client.shutdown(socket.SHUT_WR)
    child = os.fork()
    if not child:
        watcher._ready(0)
        os._exit(0)
    os.waitpid(child, 0)
    watcher._ready(0)
    assert noting.news == ["FIN"]
