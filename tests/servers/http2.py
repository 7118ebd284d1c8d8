"""A client that speaks HTTP/2, with answers that can be used like those of the test kit's reader."""

from __future__ import annotations

import socket
import time
from typing import Any, Dict, Iterator, List, Tuple

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset

__all__ = ["Http2Answer"]


class Http2Answer:
    """One answer on an HTTP/2 connection of its own; iterate it for (arrival time, bytes).

    :param sock: a connected socket on which HTTP/2 was agreed.
    :param target: the path to ask for.
    """

    def __init__(self, sock: socket.socket, target: str, headers: Dict[str, str]) -> None:
        self.sock = sock
        self.status = 0
        self.headers: Dict[str, str] = {}
        self.head_at = 0.0
        #: Whether the peer has said that this was all.
        self.complete = False
        self._over = False
        self._connection = H2Connection(H2Configuration(header_encoding="utf-8"))
        self._connection.initiate_connection()
        self._stream = self._connection.get_next_available_stream_id()
        fields = [(":method", "GET"), (":path", target), (":scheme", "https"), (":authority", "localhost")]
        fields += [(name.lower(), value) for name, value in headers.items()]
        self._connection.send_headers(self._stream, fields, end_stream=True)
        self._send()
        self._arrived: List[Tuple[float, bytes]] = []
        while not self.status and not self._over:
            self._receive()

    def __iter__(self) -> Iterator[Tuple[float, bytes]]:
        while True:
            while self._arrived:
                yield self._arrived.pop(0)
            if self._over:
                return
            self._receive()

    def close(self) -> None:
        """Close the connection as a client does that leaves."""
        self.sock.close()

    def reset(self) -> None:
        """Give up the stream with a RST_STREAM, and keep the connection."""
        self._connection.reset_stream(self._stream, ErrorCodes.CANCEL)
        self._send()

    def is_connected(self) -> bool:
        """Return whether the peer still answers on the connection."""
        self._connection.ping(b"stillyou")
        self._send()
        self.sock.settimeout(5.0)
        return bool(self.sock.recv(65536))

    def _send(self) -> None:
        self.sock.sendall(self._connection.data_to_send())

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        at = time.monotonic()
        self._over = not data
        for event in self._connection.receive_data(data) if data else ():
            self._take(event, at)
        if data:
            self._send()

    def _take(self, event: Any, at: float) -> None:
        if isinstance(event, ResponseReceived):
            self.head_at = at
            self.headers = {name: value for name, value in event.headers or ()}
            self.status = int(self.headers.pop(":status"))
        elif isinstance(event, DataReceived):
            if event.data:
                self._arrived.append((at, event.data))
            self._connection.acknowledge_received_data(event.flow_controlled_length or 0, self._stream)
        elif isinstance(event, (StreamEnded, StreamReset)):
            self.complete = isinstance(event, StreamEnded)
            self._over = True
