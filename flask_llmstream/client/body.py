"""The bytes of a streamed response, and a way to end them from anywhere."""

from __future__ import annotations

import threading
import time

import requests

from flask_llmstream.reading import READ_ERRORS, read_available
from flask_llmstream.upstream.sockets import sever

__all__ = ["Body"]

#: As many bytes after the last event are read, not to cut off a server that is still ending.
_REST = 65536


class Body:
    """The body of *response*, as it arrives.

    One thread or greenlet reads; any may close.

    :param response: was asked for with ``stream=True``.
    """

    def __init__(self, response: requests.Response) -> None:
        self.response = response
        #: Whether :meth:`close` was called.
        self.closed = False
        self._ended = False
        self._pieces = read_available(response)
        self._reading = threading.Lock()

    def read(self) -> bytes:
        """Return what has arrived, waiting for it where nothing has; ``b""`` is the end.

        Once it is closed there is nothing more to read, and nothing that could fail.

        :raises READ_ERRORS: as they come.
        """
        piece = b""
        try:
            with self._reading:
                while not (self.closed or self._ended or piece):
                    found = next(self._pieces, None)
                    self._ended = found is None
                    piece = found or b""
        except Exception:
            # Whatever a reader says whose connection was shut down under it is our own doing.
            if not self.closed:
                raise
        finally:
            if self.closed:
                self._release()
        return b"" if self.closed else piece

    def finish(self, seconds: float) -> None:
        """Let the server end in its own time, and close.

        A server that is left between its last event and the end of the body takes that for a
        client that has gone. Read to the end, the connection can also be used again.

        :param seconds: how long that may take.
        """
        deadline = time.monotonic() + seconds
        rest = _REST
        with self._reading:
            while not (self.closed or self._ended):
                left = deadline - time.monotonic()
                # False where the connection has been given back, or has no socket to be found.
                if left <= 0 or rest <= 0 or not self._pieces.limit_silence(left):
                    self._ended = True
                    break
                try:
                    rest -= len(next(self._pieces))
                except (StopIteration,) + READ_ERRORS:
                    self._ended = True
        self.close()

    def close(self) -> None:
        """End the connection now; a reader that waits for the next byte wakes up.

        Returns at once, which ``response.close()`` does not: while another thread reads, that
        waits for the next byte. So the socket is shut down, the peer sees it, and the response is
        closed by whoever leaves the read last.
        """
        self.closed = True
        if not self._ended:
            sever(self.response)
        self._release()

    def _release(self) -> None:
        if self._reading.acquire(False):
            try:
                self.response.close()
            finally:
                self._reading.release()
