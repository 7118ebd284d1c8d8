"""Opens a connection and sends the one request."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from flask_llmstream.doctor.observations import Hop, Observation
from flask_llmstream.whereabouts import address_text

__all__ = ["Request", "hidden", "open_socket", "shown", "with_query"]

#: Query parameters that nobody needs to see.
_SECRET = ("token",)
#: What is not escaped in a URL that somebody gives: all ASCII, since it may be escaped already.
_AS_IT_IS = "".join(map(chr, range(128)))


class Request(NamedTuple):
    """What is sent to each hop, and how long it may take."""

    headers: Tuple[Tuple[str, str], ...] = ()
    body: Optional[bytes] = None
    #: Seconds for the connection, for the head, and for silence inside of the body.
    connect_timeout: float = 10.0
    timeout: float = 30.0
    #: Seconds after which the reading ends.
    limit: float = 60.0
    #: Whether certificates are not checked.
    insecure: bool = False

    def to(self, hop: Hop) -> Request:
        """Return what is sent to *hop*: to one that was found nothing of what the caller wants to be sent."""
        return self._replace(headers=(), body=None) if hop.found else self


def with_query(url: str, **more: str) -> str:
    """Return *url* with more in its query."""
    parts = urlsplit(url)
    query = parts.query + ("&" if parts.query else "") + urlencode(more)
    return urlunsplit(parts._replace(query=query))


def shown(url: str) -> str:
    """Return *url* without what is nobody's business."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    query = urlencode([(name, "..." if name in _SECRET else value) for name, value in pairs])
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query))


def hidden(text: str, url: str) -> str:
    """Return what was answered to *url* without what is nobody's business and may be repeated in it."""
    for name, value in parse_qsl(urlsplit(url).query):
        text = text.replace(value, "...") if name in _SECRET else text
    return text


def open_socket(url: str, request: Request, seen: Optional[Observation] = None) -> Any:
    """Connect to the host of *url* and send the request.

    :raises OSError: there is no connection.
    :raises ValueError: the URL cannot be asked.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"expected a URL with http:// or https:// and a host, got {url!r:.60}")
    secure = parts.scheme == "https"
    address = (parts.hostname, parts.port or (443 if secure else 80))
    began = time.monotonic()
    sock: Any = _connect(address, request)
    try:
        connected = time.monotonic()
        if seen is not None:
            seen.connect_time = connected - began
            seen.local = address_text(sock.getsockname())
            seen.remote = address_text(sock.getpeername()).rpartition(":")[0]
        if secure:
            sock = _wrap(sock, parts.hostname, request, ["http/1.1"])
        sock.sendall(_request_bytes(parts, request))
        if seen is not None:
            seen.alpn = _offered(address, parts.hostname, request) if secure else None
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(address: Tuple[str, int], request: Request) -> socket.socket:
    sock = socket.create_connection(address, request.connect_timeout)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(request.timeout)
    return sock


def _wrap(sock: socket.socket, host: str, request: Request, protocols: List[str]) -> Any:
    context = ssl.create_default_context()
    if request.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    return context.wrap_socket(sock, server_hostname=host)


def _offered(address: Tuple[str, int], host: str, request: Request) -> Optional[str]:
    """Return what a server prefers that is offered HTTP/2, too, on a connection of its own."""
    try:
        with _connect(address, request) as sock, _wrap(sock, host, request, ["h2", "http/1.1"]) as secure:
            chosen: Optional[str] = secure.selected_alpn_protocol()
            return chosen
    except OSError:
        return None


def _request_bytes(parts: Any, request: Request) -> bytes:
    target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), _AS_IT_IS)
    host = parts.netloc.rpartition("@")[2]
    fields: Dict[str, Tuple[str, str]] = {}
    standing = [
        ("Host", host), ("User-Agent", "flask-llmstream-doctor"), ("Accept", "text/event-stream, */*;q=0.1"),
        ("Accept-Encoding", "gzip"), ("Cache-Control", "no-cache"),
    ]
    if request.body is not None:
        standing += [("Content-Type", "application/json"), ("Content-Length", str(len(request.body)))]
    for name, value in [*standing, *request.headers]:
        fields[name.lower()] = (name, value)
    lines = [f"{'GET' if request.body is None else 'POST'} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in fields.values()]
    if any("\r" in line or "\n" in line or "\0" in line for line in lines) or " " in target:
        raise ValueError("a URL or header holds a line break or a space, which is %20 in a URL")
    try:
        head = "\r\n".join(lines + ["", ""]).encode("latin-1")
    except UnicodeEncodeError as exc:
        wrong = exc.object[exc.start]
        raise ValueError(f"a header holds {wrong!r}, which HTTP cannot send; Latin-1 was expected") from None
    return head + (request.body or b"")
