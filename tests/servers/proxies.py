"""Starts real reverse proxies in front of a live server.

Decision: every proxy runs in the foreground and in a session of its own, so that its helpers end
with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, Optional, Tuple

from core import free_port
from variants import PROXIES, Setup

from flask_llmstream.testing import StreamReader, read_stream, send_request, wait_until

__all__ = ["Proxy", "proxy_server"]

_ATTEMPTS = 3


class Proxy:
    """A running proxy; :func:`proxy_server` starts one.

    :param name: the variant, a key of :data:`variants.PROXIES`.
    :param process: the leader of a session of its own.
    :param port: of 127.0.0.1, where it listens.
    :param log_path: what gets all its output.
    :param ca_file: the certificate that it shows, where it speaks TLS.
    """

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], port: int, log_path: Path, ca_file: Optional[str]
    ) -> None:
        self.name = name
        self.process = process
        self.address: Tuple[str, int] = ("127.0.0.1", port)
        self.ca_file = ca_file
        self._log_path = log_path

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return self.address[1]

    @property
    def url(self) -> str:
        """Where the app is, without a slash at the end."""
        return f"{'https' if self.ca_file else 'http'}://127.0.0.1:{self.port}"

    def log(self) -> str:
        """Return what the proxy has written so far."""
        return self._log_path.read_text(errors="replace")

    def connect(self, timeout: float = 10.0, alpn: str = "http/1.1") -> socket.socket:
        """Open a connection, TLS where the proxy speaks it.

        :param timeout: seconds that any operation on the socket may take. Defaults to 10.
        :param alpn: what to speak inside of TLS. Defaults to HTTP/1.1.
        """
        sock = socket.create_connection(self.address, timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.ca_file:
                context = ssl.create_default_context(cafile=self.ca_file)
                context.check_hostname = False
                context.set_alpn_protocols([alpn])
                sock = context.wrap_socket(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def request(self, path: str, timeout: float = 10.0, **request: Any) -> StreamReader:
        """Send one request on a new connection and return its answer, whose head has arrived."""
        sock = self.connect(timeout)
        try:
            send_request(sock, path, **request)
            return read_stream(sock, timeout, head=request.get("method") == "HEAD")
        except BaseException:
            sock.close()
            raise

    def stop(self) -> None:
        """End the proxy with all its processes."""
        if self.process.returncode is None:
            if not self._has_ended():
                os.kill(self.process.pid, signal.SIGTERM)
                deadline = time.monotonic() + 5.0
                while time.monotonic() < deadline and not self._has_ended():
                    time.sleep(0.01)
            # Not reaped yet, so the number of the group can be nobody else's.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def is_up(self) -> bool:
        """Return whether it takes connections, or has ended."""
        if self._has_ended():
            return True
        with contextlib.suppress(OSError):
            socket.create_connection(self.address, 1).close()
            return True
        return False

    def has_failed(self) -> bool:
        """Return whether it has ended."""
        return self._has_ended()

    def _has_ended(self) -> bool:
        ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return self.process.returncode is not None or os.waitid(os.P_PID, self.process.pid, ended) is not None


@contextlib.contextmanager
def proxy_server(
    name: str,
    app: Tuple[str, int],
    certificate: Optional[Tuple[str, str]] = None,
    patience: int = 60,
    timeout: float = 30.0,
) -> Iterator[Proxy]:
    """Run the variant *name* of :data:`variants.PROXIES` in front of *app* while the block lasts.

    :param app: address of the server behind it.
    :param certificate: paths of a certificate and its key, for variants that speak TLS.
    :param patience: seconds of silence after which it gives up, where the shipped file says how many.
    :param timeout: seconds that it may take to start. Defaults to 30.
    :raises AssertionError: it does not start; shows its log.
    """
    with tempfile.TemporaryDirectory(prefix="llmstream-proxy-") as folder, contextlib.ExitStack() as stack:
        for attempt in range(_ATTEMPTS):
            setup = Setup(Path(folder), free_port(), f"{app[0]}:{app[1]}", certificate, patience)
            command = PROXIES[name](setup)
            log_path = setup.folder / "log"
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    cwd=folder, start_new_session=True,
                )
            ca_file = certificate[0] if certificate and "tls" in name else None
            proxy = Proxy(name, process, setup.port, log_path, ca_file)
            stack.callback(proxy.stop)
            wait_until(proxy.is_up, timeout, lambda: f"{name} to start:\n{proxy.log()}")
            # Somebody else may have taken the port meanwhile; anything else fails every time.
            if not proxy.has_failed():
                break
            assert attempt + 1 < _ATTEMPTS, f"{name} does not start:\n{proxy.log()}"
        yield proxy
