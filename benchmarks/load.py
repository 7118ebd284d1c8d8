"""A client for many streams that costs little: one epoll, bare sockets, and it only counts."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from typing import Callable, Dict, List, Tuple

__all__ = ["Load", "ask_again_and_again", "first_byte"]

Address = Tuple[str, int]

_REQUEST = "GET %s HTTP/1.1\r\nHost: benchmark\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n"


class Load:
    """Many streams of one server. As a context manager it closes what is left.

    :param awake: never sleep. Else whoever sends has to wake this process, and pays for it by chance: the
        more often, the more time passes between two events.
    """

    def __init__(self, awake: bool = False) -> None:
        self._awake = awake
        #: Events that have arrived, by the group that their streams were opened in.
        self.events: Counter[str] = Counter()
        self._epoll = select.epoll()
        self._open: Dict[int, socket.socket] = {}
        self._group: Dict[int, str] = {}
        self._half: Dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
        self._epoll.close()

    def open(self, address: Address, targets: List[str], group: str = "") -> None:
        """Send one request for each of *targets*, on a connection of its own."""
        for target in targets:
            sock = socket.create_connection(address, 30)
            sock.sendall((_REQUEST % target).encode())
            sock.setblocking(False)
            self._open[sock.fileno()] = sock
            self._group[sock.fileno()] = group
            self._half[sock.fileno()] = False
            self._epoll.register(sock.fileno(), select.EPOLLIN)

    def leave(self, count: int, pause: float) -> List[float]:
        """Leave *count* streams, one each *pause* seconds; return when each was left."""
        moments: List[float] = []
        for _ in range(min(count, len(self._open))):
            sock = self._open.popitem()[1]
            moments.append(time.monotonic())
            sock.close()
            time.sleep(pause)
        return moments

    def close(self) -> None:
        """Leave all streams at once."""
        self.leave(len(self._open), 0)

    def run(self, seconds: float) -> None:
        """Read for that long."""
        self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], seconds: float) -> bool:
        """Read until *done* or all streams have ended; return whether that was within *seconds*."""
        end = time.monotonic() + seconds
        while self._open and not done():
            left = end - time.monotonic()
            if left <= 0:
                return False
            for fd, _ in self._epoll.poll(0 if self._awake else left):
                self._read(fd)
        return True

    def _read(self, fd: int) -> None:
        try:
            data = self._open[fd].recv(262144)
        except ConnectionResetError:
            data = b""
        if not data:
            self._open.pop(fd).close()
            return
        # An event ends with an empty line, and nothing else in these answers has LF LF.
        if self._half[fd]:
            data = b"\n" + data
        self.events[self._group[fd]] += data.count(b"\n\n")
        self._half[fd] = data[-1:] == b"\n" and data[-2:] != b"\n\n"


def first_byte(address: Address, target: str) -> float:
    """Return the seconds from a request, on a new connection, to the first byte of an event."""
    with socket.create_connection(address, 30) as sock:
        begun = time.perf_counter()
        sock.sendall((_REQUEST % target).encode())
        data = b""
        while b"data:" not in data:
            piece = sock.recv(65536)
            if not piece:
                raise ConnectionError(f"{target} answered {data[:200]!r}")
            data += piece
        return time.perf_counter() - begun


def ask_again_and_again(address: Address, target: str, count: int) -> None:
    """Send *count* requests on one connection, each after the answer to the last."""
    request = f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    with socket.create_connection(address) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(count):
            sock.sendall(request)
            answer = b""
            while not answer.endswith(b"hello"):
                data = sock.recv(65536)
                if not data:
                    raise RuntimeError(f"the server closed the connection at request {number}: {answer!r}")
                answer += data
