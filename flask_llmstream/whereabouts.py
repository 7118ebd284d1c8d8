"""Where the app itself is reached: what the probe tells a doctor who has come through a proxy.

Decisions
    1. It tells what the socket says, not what headers do: those are the proxy's words, and middleware has
       put them in the place of the server's.
    2. At a found address somebody else may listen, on another machine for one. So the app proves there
       that it is the same: by a key that only the reader of the probe has, over the address that the
       question comes from, as the socket has it. A hop in between that passes the question on has
       another address, and fails.
    3. The question is signed, and holds for minutes. Who has none gets what everybody gets: no such page.
"""

from __future__ import annotations

import _socket
import hashlib
import hmac
import ipaddress
import secrets
import time
from typing import Any, Dict, Mapping, Optional, Tuple
from urllib.parse import quote, urlsplit

from itsdangerous import BadData, URLSafeSerializer

from flask_llmstream.servers import find_peer

__all__ = ["address_text", "answer_for", "proof_of", "whereabouts"]

_SALT = "flask-llmstream whereabouts"
#: Seconds for which a question is answered: reading the probe comes before it.
_HOLDS = 300.0


def whereabouts(environ: Mapping[str, Any], secret: Any) -> Dict[str, Any]:
    """Return what the app can say of where this request has reached it.

    ``address`` (host, port) or ``unix`` (a path), ``peer`` (who has connected), ``path`` (of the probe, as
    the server was asked for it), ``tls``; with a *secret*, ``ask`` and ``key``, too. Empty where the server
    hides its socket.

    :param secret: of the app, signs the question.
    """
    ends = _ends(environ)
    if ends is None:
        return {}
    mine, peer = ends
    here: Dict[str, Any] = {"path": _path(environ), "tls": _is_tls(environ)}
    if not isinstance(mine, tuple):
        name = mine.decode("utf-8", "replace") if isinstance(mine, bytes) else str(mine)
        return dict(here, unix=name.replace("\0", "@"))
    here.update(address=[_host(mine[0]), mine[1]], peer=address_text(peer))
    if secret:
        said = _serializer(secret).dumps({"until": int(time.time() + _HOLDS), "of": secrets.token_hex(8)})
        ask = said if isinstance(said, str) else said.decode("ascii")
        here.update(ask=ask, key=_key(secret, ask))
    return here


def answer_for(environ: Mapping[str, Any], secret: Any, ask: str) -> Optional[str]:
    """Return the proof that is asked for; ``None`` where the question is not of this app, or is too old."""
    ends = _ends(environ) if secret else None
    try:
        if ends is None or _serializer(secret).loads(ask)["until"] < time.time():
            return None
    except BadData:
        return None
    return proof_of(_key(secret, ask), address_text(ends[1]))


def proof_of(key: str, peer: str) -> str:
    """Return what proves that its sender has *key*, to somebody who asks from the address *peer*."""
    return hmac.new(key.encode("ascii"), peer.encode("utf-8"), hashlib.sha256).hexdigest()


def address_text(address: Any) -> str:
    """Return ``host:port`` of what a socket says; both ends of a connection come to the same."""
    return f"{_host(address[0])}:{address[1]}" if isinstance(address, tuple) else ""


def _host(text: str) -> str:
    """Return an address without what only one side sees: a zone, or the form that a server for both has."""
    host = text.partition("%")[0]
    try:
        parsed = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


def _ends(environ: Mapping[str, Any]) -> Optional[Tuple[Any, Any]]:
    """Return both addresses of the request's connection."""
    fd = find_peer(environ, None).fd
    if fd is None:
        return None
    try:
        sock = _socket.socket(fileno=fd)
    except OSError:
        return None
    try:
        return sock.getsockname(), sock.getpeername()
    except OSError:
        return None  # the client has left
    finally:
        sock.detach()


def _is_tls(environ: Mapping[str, Any]) -> bool:
    """Whether the connection is encrypted; the URL scheme of the environ may be a proxy's word."""
    names = ("gunicorn.socket", "gunicorn.sock", "werkzeug.socket")
    return any(hasattr(environ.get(name), "cipher") for name in names)


def _path(environ: Mapping[str, Any]) -> str:
    """Return the path that the server was asked for."""
    for name in ("REQUEST_URI", "RAW_URI"):
        if environ.get(name):
            return urlsplit(str(environ[name])).path
    known = str(environ.get("SCRIPT_NAME", "")) + str(environ.get("PATH_INFO", ""))
    return quote(known.encode("latin-1", "replace"))


def _key(secret: Any, ask: str) -> str:
    secret = secret.encode("utf-8") if isinstance(secret, str) else bytes(secret)
    return hmac.new(secret, f"{_SALT} key\0{ask}".encode("utf-8"), hashlib.sha256).hexdigest()


def _serializer(secret: Any) -> URLSafeSerializer:
    return URLSafeSerializer(secret, salt=_SALT)
