"""The smallest WSGI server there is: one stream, one thread, one connection."""

from __future__ import annotations

import socket
import threading
from typing import Any, Callable, List, Optional, Tuple

from flask_llmstream.disconnect import Peer
from flask_llmstream.ending import StreamEnd
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream
from flask_llmstream.testing import wait_until


class Served:
    """Serves *source* on a thread of its own, as a context manager.

    :param before_write: called before each write of the server's own.
    :param options: ``chunker``, ``describe``, ``around_end``, and settings by name.
    """

    def __init__(
        self, source: Any, before_write: Optional[Callable[[], Any]] = None, **options: Any
    ) -> None:
        self.client, self.server = socket.socketpair()
        self.client.settimeout(10)
        own = {
            name: options.pop(name)
            for name in ("chunker", "describe", "around_end", "inner")
            if name in options
        }
        self.stream = Stream(source, format=SSEFormat(), settings=Settings(**options), **own)
        self.stream.on_end(self._note_end)
        self.ends: List[StreamEnd] = []
        self.heads: List[Tuple[str, List[Tuple[str, str]]]] = []
        self.closed = 0
        self.error: Optional[BaseException] = None
        self._before_write = before_write
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _note_end(self, end: StreamEnd) -> None:
        self.ends.append(end)

    def __enter__(self) -> Served:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.client.close()
        self.join()

    def start_response(
        self, status: str, headers: List[Tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], Any]:
        self.heads.append((status, headers))
        return self.server.sendall

    def _count_close(self) -> None:
        self.closed += 1

    def _serve(self) -> None:
        peer = Peer("test", self.server.fileno(), True, True)
        body = self.stream.attach(peer, self.start_response, "200 OK", [], self._count_close)
        try:
            try:
                for data in body:
                    if self._before_write is not None:
                        self._before_write()
                    self.server.sendall(data)
            finally:
                body.close()
        except BaseException as error:
            self.error = error
        finally:
            self.server.close()

    def join(self, timeout: float = 10.0) -> None:
        """Wait until the server is through with the request."""
        self._thread.join(timeout)
        assert not self._thread.is_alive(), f"{self.stream} does not come to its end"

    def read(self) -> bytes:
        """Read to the end and return it."""
        data = b""
        while True:
            block = self.client.recv(65536)
            data += block
            if not block:
                self.join()
                return data

    def read_until(self, marker: bytes) -> bytes:
        """Read until *marker* has come and return all up to there."""
        data = b""
        while marker not in data:
            block = self.client.recv(65536)
            assert block, f"the stream ended without {marker!r}: {data!r}"
            data += block
        return data

    def end(self) -> StreamEnd:
        """Wait for the end and return it, after making sure that there is one only."""
        wait_until(lambda: self.ends, 10.0, "the end of the stream")
        self.join()
        assert len(self.ends) == 1
        return self.ends[0]


def events_of(data: bytes) -> List[Event]:
    """Return the events in *data*."""
    return SSEDecoder().feed(data)
