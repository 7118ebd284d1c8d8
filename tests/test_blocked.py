"""What a suspended producer is waiting in, told from its frames."""

from __future__ import annotations

import http.client
import ssl
import sys
import threading
from socket import IPPROTO_TCP, TCP_INFO, create_connection, socket, socketpair, timeout
from typing import Any, Callable, Iterator, List, Tuple

import gevent
import gevent.socket
import pytest
import requests

from flask_llmstream.blocked import POOLED_CLIENTS, pooled_client, reading_socket, waiting_socket
from flask_llmstream.runtime import shut_down
from flask_llmstream.testing import wait_until

_SYN_SENT = b"\x02"  # of the states of TCP on Linux


class Mute:
    """A server that takes connections and never says anything."""

    def __init__(self) -> None:
        self.listener = socket()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.port: int = self.listener.getsockname()[1]
        self.accepted: List[socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self.accepted.append(self.listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        shut_down(self.listener)
        self._thread.join(10)
        self.listener.close()
        for each in self.accepted:
            each.close()


@pytest.fixture
def mute() -> Iterator[Mute]:
    server = Mute()
    yield server
    server.close()


class Suspended:
    """A thread that runs *work* and is soon blocked in it."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except (OSError, requests.RequestException, http.client.HTTPException):
            pass

    def frame(self) -> Any:
        return sys._current_frames().get(self.thread.ident or 0)

    def join(self) -> None:
        self.thread.join(10)
        assert not self.thread.is_alive()


def read_raw(mute: Mute) -> None:
    with create_connection(("127.0.0.1", mute.port)) as sock:
        with sock.makefile("rb") as file:
            file.readline()


def read_http_client(mute: Mute) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", mute.port)
    try:
        connection.request("GET", "/")
        connection.getresponse()
    finally:
        connection.close()


def read_requests(mute: Mute) -> None:
    with requests.Session() as session:
        session.get(f"http://127.0.0.1:{mute.port}/")


def shake_hands(mute: Mute) -> None:
    with create_connection(("127.0.0.1", mute.port)) as sock:
        with ssl.create_default_context().wrap_socket(sock, server_hostname="localhost") as wrapped:
            wrapped.recv(1)


@pytest.mark.parametrize("work", [read_raw, read_http_client, read_requests])
def test_socket_that_a_thread_reads_is_found_and_can_be_broken(
    mute: Mute, work: Callable[[Mute], None]
) -> None:
    suspended = Suspended(lambda: work(mute))
    wait_until(lambda: mute.accepted)  # a socket that is connecting still would be found as well
    sock = wait_until(lambda: reading_socket(suspended.frame()))
    assert sock.getpeername()[1] == mute.port
    shut_down(sock)
    suspended.join()


@pytest.mark.parametrize("connect", ["socket", "urllib3"])
def test_socket_that_a_thread_connects_is_found_and_can_be_broken(connect: str) -> None:
    with socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket() for _ in range(3)]
        for each in waiting:  # once its queue is full, the system drops what else would connect
            each.setblocking(False)
            each.connect_ex(listener.getsockname())
        address: Tuple[str, int] = listener.getsockname()
        if connect == "socket":
            suspended = Suspended(lambda: create_connection(address, 60))
        else:
            url = "http://{}:{}/".format(*address)
            suspended = Suspended(lambda: requests.get(url, timeout=60))
        sock = wait_until(lambda: reading_socket(suspended.frame()))
        # The frame is there a moment before it waits.
        wait_until(lambda: sock.getsockopt(IPPROTO_TCP, TCP_INFO, 1) == _SYN_SENT)
        shut_down(sock)
        suspended.join()
        for each in waiting:
            each.close()


def test_handshake_is_not_provably_a_read(mute: Mute) -> None:
    suspended = Suspended(lambda: shake_hands(mute))
    wait_until(lambda: mute.accepted)
    wait_until(lambda: suspended.frame().f_code.co_name == "do_handshake")
    assert reading_socket(suspended.frame()) is None
    for each in mute.accepted:
        each.close()
    suspended.join()


def test_thread_that_sleeps_or_waits_for_a_lock_reads_nothing() -> None:
    flag = threading.Event()
    suspended = Suspended(flag.wait)
    wait_until(lambda: suspended.frame() is not None)
    assert reading_socket(suspended.frame()) is None
    assert waiting_socket(suspended.frame()) is None
    assert pooled_client(suspended.frame()) is None
    flag.set()
    suspended.join()


def test_socket_further_up_is_not_the_one_that_is_read(mute: Mute) -> None:
    """It may be in the hands of clean-up code, which an exception would cut short."""
    flag = threading.Event()

    class Waiting(socket):
        def recv_into(self, *args: Any) -> int:  # called by socket.py's readinto
            flag.wait(20)
            return 0

    with Waiting() as sock:
        file = sock.makefile("rb")
        suspended = Suspended(file.readline)
        wait_until(lambda: suspended.frame().f_code.co_name == "wait")
        names = []
        frame = suspended.frame()
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        assert "readinto" in names and names[0] != "readinto"
        assert reading_socket(suspended.frame()) is None
        flag.set()
        suspended.join()
        file.close()


def test_no_frame_is_no_answer() -> None:
    assert reading_socket(None) is None
    assert waiting_socket(None) is None
    assert pooled_client(None) is None


def test_conversation_of_a_pooled_client_is_recognised_wherever_it_waits() -> None:
    module = {"__name__": "redis.connection"}
    exec("def read_response(read):\n    return read()", module)
    read_response: Any = module["read_response"]
    assert read_response(lambda: pooled_client(sys._getframe())) == "redis"
    assert pooled_client(sys._getframe()) is None


def test_further_packages_can_be_named() -> None:
    frame = sys._getframe()
    name = __name__.partition(".")[0]
    assert pooled_client(frame) is None
    assert pooled_client(frame, also=("something", name)) == name
    assert "redis" in POOLED_CLIENTS and "requests" not in POOLED_CLIENTS


def test_socket_that_a_greenlet_waits_on_is_found() -> None:
    left, right = gevent.socket.socketpair()
    greenlet = gevent.spawn(left.recv, 1)
    gevent.sleep(0.01)
    found = waiting_socket(greenlet.gr_frame)
    assert found is left
    shut_down(found)
    assert greenlet.get(timeout=5) == b""
    sleeping = gevent.spawn(gevent.sleep, 60)
    gevent.sleep(0.01)
    assert waiting_socket(sleeping.gr_frame) is None
    sleeping.kill()
    left.close()
    right.close()


def test_timeout_of_a_socket_is_none_of_our_business() -> None:
    left, right = socketpair()
    with left, right:
        left.settimeout(0.01)
        with pytest.raises(timeout), left.makefile("rb") as file:
            file.read(1)
