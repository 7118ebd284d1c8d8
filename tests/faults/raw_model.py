"""A model that sends bytes as they are given, right or wrong; it need not know HTTP."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any, Iterable, List, Union

__all__ = ["RawModel", "chunked"]

#: Bytes to send, seconds to wait, or what to wait for.
Step = Union[bytes, float, threading.Event]


def chunked(*pieces: bytes) -> bytes:
    """Return the HTTP chunks with *pieces*."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


class RawModel:
    """Answers every request with the same steps and closes; a context manager.

    :param steps: may be endless; a peer that leaves ends them.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = steps
        #: Bytes that the system has taken.
        self.sent = 0
        #: Requests, those that are over, and those whose peer has left before their end.
        self.begun = self.over = self.broken = 0
        self._leaving = threading.Event()
        self._threads: List[threading.Thread] = []
        self._listener = socket.socket()

    @property
    def url(self) -> str:
        host, port = self._listener.getsockname()
        return f"http://{host}:{port}/v1"

    def __enter__(self) -> RawModel:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._leaving.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._answer, sock)

    def _answer(self, sock: socket.socket) -> None:
        sock.settimeout(10)
        try:
            with sock:
                data = b""
                while b"\r\n\r\n" not in data or b'"messages"' not in data:
                    more = sock.recv(65536)
                    if not more:
                        return
                    data += more
                self.begun += 1
                for step in self.steps:
                    if self._leaving.is_set():
                        return
                    if isinstance(step, float):
                        self._leaving.wait(step)
                    elif isinstance(step, threading.Event):
                        while not (step.wait(0.01) or self._leaving.is_set()):
                            pass
                    else:
                        sock.sendall(step)
                        self.sent += len(step)
        except OSError:
            self.broken += 1
        finally:
            self.over += 1
