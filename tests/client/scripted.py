"""An HTTP server that sends exactly the bytes it is told, over real sockets.

One thread per connection runs the script of the test once per request, so the test decides on
framing, on pauses and on how the connection ends, and sees when the client closes it.
"""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

__all__ = ["Exchange", "Request", "ScriptedServer", "Serve", "chunk", "wait_for"]

#: Seconds after which a test is considered stuck.
PATIENCE = 10.0


def chunk(data: bytes) -> bytes:
    """Return *data* as one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


class Request(NamedTuple):
    method: str
    target: str
    #: With lower-case names.
    headers: Dict[str, str]
    body: bytes


class Exchange:
    """One request, and the means to answer it byte by byte."""

    def __init__(self, sock: socket.socket, request: Request, number: int) -> None:
        self.request = request
        #: How many requests the server had got before this one.
        self.number = number
        self.keep_alive = False
        self._sock = sock
        self._chunked = False

    def head(self, status: str = "200 OK", **headers: str) -> None:
        """Send status line and headers; ``chunked`` follows unless something else is said."""
        fields = {"Content-Type": "text/event-stream"}
        fields.update((name.replace("_", "-"), value) for name, value in headers.items())
        names = {name.lower() for name in fields}
        self._chunked = not names & {"content-length", "connection"} and status[:3] != "204"
        # The whole answer. To close behind it, without a word, would be a race with the next request.
        self.keep_alive = status[:3] == "204" or fields.get("Content-Length") == "0"
        if self._chunked:
            fields["Transfer-Encoding"] = "chunked"
        lines = [f"HTTP/1.1 {status}"] + [f"{name}: {value}" for name, value in fields.items()]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))

    def send(self, data: bytes) -> None:
        """Send *data* as it is."""
        self._sock.sendall(data)

    def body(self, data: bytes) -> None:
        """Send *data* as a part of the body."""
        # An empty HTTP chunk would be the end of the body.
        self.send(chunk(data) if self._chunked and data else data)

    def end(self, data: bytes = b"") -> None:
        """End the body as its framing demands, and keep the connection where that is possible.

        *data* are its last bytes: in one write with the end, so that nothing can come in between.
        """
        if self._chunked:
            self.send((chunk(data) if data else b"") + b"0\r\n\r\n")
            self.keep_alive = True
        else:
            self.send(data)

    def answer(self, data: bytes, **headers: str) -> None:
        """Send a complete event stream."""
        self.head(**headers)
        self.end(data)

    def reset(self) -> None:
        """Close the connection with a RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def wait_closed(self, timeout: float = PATIENCE) -> bool:
        """Wait until the client has closed its side; return whether it has."""
        self._sock.settimeout(timeout)
        try:
            return not self._sock.recv(1)
        except socket.timeout:
            return False
        except OSError:
            return True


class ScriptedServer:
    """Runs *script* for each request, on a free port of this machine.

    :param script: may raise; what it raised is in :attr:`errors`.
    :param certificate: paths of a certificate and its key, to speak TLS.
    """

    def __init__(
        self, script: Callable[[Exchange], None], certificate: Optional[Tuple[str, str]] = None
    ) -> None:
        self.requests: List[Request] = []
        self.errors: List[BaseException] = []
        self.connections = 0
        self._script = script
        self._threads: List[threading.Thread] = []
        self._socks: List[socket.socket] = []
        self._stopping = False
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/stream"
        self._tls: Optional[ssl.SSLContext] = None
        if certificate is not None:
            self.url = self.url.replace("http:", "https:")
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(*certificate)
        self._spawn(self._accept)

    def stop(self) -> None:
        """Take no new connections, break the open ones, and wait for the threads."""
        if self._stopping:
            return
        self._stopping = True
        # Linux: wakes accept(); closing alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in self._socks:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(PATIENCE)
        alive = [thread for thread in self._threads if thread.is_alive()]
        assert not alive, f"still running: {alive}"

    def _spawn(self, run: Callable[..., Any], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._socks.append(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE * 2)
        try:
            if self._tls is not None:
                self._socks.remove(sock)
                sock = self._tls.wrap_socket(sock, server_side=True)
                self._socks.append(sock)
            with sock, sock.makefile("rb") as file:
                while True:
                    request = _read_request(file)
                    if request is None:
                        return
                    self.requests.append(request)
                    exchange = Exchange(sock, request, len(self.requests) - 1)
                    self._script(exchange)
                    if not exchange.keep_alive:
                        return
        except OSError:
            pass  # the client has gone, which many tests want
        except BaseException as exc:
            self.errors.append(exc)


#: What the fixture ``serve`` gives to a test.
Serve = Callable[..., ScriptedServer]


def _read_request(file: Any) -> Optional[Request]:
    line = file.readline().decode("latin-1").split()
    if not line:
        return None
    headers: Dict[str, str] = {}
    while True:
        field = file.readline().decode("latin-1").rstrip("\r\n")
        if not field:
            break
        name, _, value = field.partition(":")
        headers[name.lower()] = value.strip()
    body = file.read(int(headers.get("content-length", "0")))
    return Request(line[0], line[1], headers, body)


def wait_for(condition: Callable[[], Any], timeout: float = PATIENCE) -> None:
    """Wait until *condition* holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {condition}"
        time.sleep(0.005)
