"""Who is at the other end of a request: the table of WSGI servers.

One row for each: where its socket is, how to write to it while the app is being asked for the
next item, and how to leave without a traceback in its log. A server that no row knows is served
too; a departure shows there when a write fails.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import socket
import sys
from typing import Any, Callable, Mapping, NamedTuple, Optional, Tuple, Type

from flask_llmstream.culprits import tracker_above
from flask_llmstream.runtime import current_runtime

__all__ = ["SERVERS", "Peer", "Server", "break_off", "end_body", "find_peer", "leave_quietly"]

#: What has left must not hold the thread that writes to it for ever, in ms.
_WRITE_TIMEOUT = 30000


class Peer(NamedTuple):
    """The client of one request, as far as its server lets us see it."""

    #: Name of the row below that matched, for logs and reports.
    server: str
    #: Descriptor of the client's connection, ``None`` where the server hides it.
    fd: Optional[int]
    #: Whether the callable that ``start_response`` returns writes to this connection.
    can_write: bool
    #: Whether the server takes an exception as the quiet way out.
    leaves_with_error: bool
    #: That exception; the server's ``write()`` raises it, too, if it is none of ``OSError``.
    error: Type[Exception] = ConnectionResetError
    #: Whether status and headers can be sent while the source blocks, from outside of the request.
    opens_aside: bool = True
    #: Stands in for a ``start_response`` whose ``write()`` works inside the request only.
    start_response: Optional[Callable[..., Any]] = None


class Server(NamedTuple):
    """One row of the table."""

    name: str
    #: Takes the environ and ``start_response``, returns the :class:`Peer` or ``None``.
    find: Callable[[Mapping[str, Any], Any], Optional[Peer]]
    #: For the docs: how a departure is seen, and what cannot be done.
    about: str


_UNKNOWN = Peer("unknown", None, False, False)


def _descriptor(sock: Any) -> Optional[int]:
    try:
        fd: int = sock.fileno()
    except (AttributeError, OSError, ValueError):
        return None
    return fd if fd >= 0 else None


def _send_at_once(fd: int) -> None:
    """Set TCP_NODELAY: without it a client that delays its ACKs gets every second token 40 ms late."""
    try:
        sock = _socket.socket(fileno=fd)
    except OSError:
        return
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        pass  # a unix socket has no such delay
    finally:
        sock.detach()


def _at(name: str, sock: Any, delayed: bool = False, error: Type[Exception] = ConnectionResetError) -> Peer:
    fd = _descriptor(sock)
    if fd is None:
        return _UNKNOWN
    if delayed:
        _send_at_once(fd)
    return Peer(name, fd, True, True, error)


def _gunicorn(environ: Mapping[str, Any], start_response: Any) -> Optional[Peer]:
    sock = environ.get("gunicorn.socket")
    if sock is None:
        return None
    peer = _at("gunicorn", sock)
    if not str(environ.get("SERVER_PROTOCOL", "")).startswith("HTTP/2") or peer.fd is None:
        return peer
    # Only gunicorn's own HTTP/2 response frames what write() is given; before 26.2 it
    # would put HTTP/1 bytes on the connection. The socket is good for watching only.
    owner = type(getattr(start_response, "__self__", None)).__name__
    return Peer("gunicorn HTTP/2", peer.fd, owner == "HTTP2Response", False)


def _gunicorn_pywsgi(environ: Mapping[str, Any], start_response: Any) -> Optional[Peer]:
    sock = environ.get("gunicorn.sock")
    return None if sock is None else _at("gunicorn gevent_pywsgi", sock)


def _waitress(environ: Mapping[str, Any], start_response: Any) -> Optional[Peer]:
    asks = environ.get("waitress.client_disconnected")
    if asks is None:
        return None
    channel = sys.modules.get("waitress.channel")
    error = getattr(channel, "ClientDisconnected", ConnectionResetError)
    return _at("waitress", getattr(getattr(asks, "__self__", None), "socket", None), False, error)


def _werkzeug(environ: Mapping[str, Any], start_response: Any) -> Optional[Peer]:
    sock = environ.get("werkzeug.socket")
    return None if sock is None else _at("werkzeug", sock, True)


#: Servers whose socket is found behind the request's body, by the beginning of SERVER_SOFTWARE.
_BEHIND_INPUT = {"gevent": "gevent.pywsgi", "Werkzeug": "werkzeug", "WSGIServer": "wsgiref"}


def _behind_input(environ: Mapping[str, Any], start_response: Any) -> Optional[Peer]:
    name = _BEHIND_INPUT.get(str(environ.get("SERVER_SOFTWARE", "")).partition("/")[0])
    if name is None:
        return None
    body = environ.get("wsgi.input")
    body = getattr(body, "rfile", body)
    return _at(name, getattr(getattr(body, "raw", None), "_sock", None), True)


def _mod_wsgi(environ: Mapping[str, Any], start_response: Any) -> Optional[Peer]:
    # Its write() works in any thread, but nobody can say beforehand whether it would block.
    return Peer("mod_wsgi", None, True, False) if "mod_wsgi.version" in environ else None


def _uwsgi(environ: Mapping[str, Any], start_response: Any) -> Optional[Peer]:
    if "uwsgi.version" not in environ:
        return None
    import uwsgi

    fd: int = uwsgi.connection_fd()
    if fd < 0:
        return _UNKNOWN
    _send_at_once(fd)
    request = _uwsgi_request()
    if request is not None:
        return Peer("uWSGI", fd, True, False, start_response=_lending(start_response, request))
    # What write() would do, past the server: not where it encrypts, and not where a middleware
    # has put itself between, which may change what is written.
    bare = getattr(start_response, "__name__", "") == "uwsgi_spit" and "https-socket" not in uwsgi.opt
    return Peer(
        "uWSGI", fd, bare, False, opens_aside=False, start_response=_past_uwsgi(start_response, fd)
    )


def _uwsgi_request() -> Any:
    """Return what ties the running greenlet to its request in uWSGI's gevent mode, else ``None``."""
    if not current_runtime().sees_blocking:
        return None
    return getattr(current_runtime().task(), "uwsgi_wsgi_req", None)


def _lending(start_response: Any, request: Any) -> Callable[..., Any]:
    """Let *start_response*, and the ``write()`` that it returns, work in every greenlet.

    uWSGI looks at an attribute of the running greenlet to know which request is meant.
    """

    def lend(function: Callable[..., Any], *args: Any) -> Any:
        borrower = current_runtime().task()
        own = getattr(borrower, "uwsgi_wsgi_req", None)
        borrower.uwsgi_wsgi_req = request
        try:
            return function(*args)
        finally:
            if own is None:
                del borrower.uwsgi_wsgi_req
            else:
                borrower.uwsgi_wsgi_req = own

    def start(*args: Any) -> Callable[[bytes], Any]:
        write = lend(start_response, *args)
        return lambda data: lend(write, data)

    return start


def _past_uwsgi(start_response: Any, fd: int) -> Callable[..., Any]:
    """Return a *start_response* whose ``write()`` works in every thread, once headers have gone out.

    uWSGI's own knows its request by the thread that it runs in.
    """

    def write(data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(fd, rest):]
            except BlockingIOError:
                room = select.poll()
                room.register(fd, select.POLLOUT)
                if not room.poll(_WRITE_TIMEOUT):
                    raise ConnectionResetError(errno.ECONNRESET, "the client does not read") from None

    def start(*args: Any) -> Callable[[bytes], Any]:
        start_response(*args)
        return write

    return start


#: The rows, in the order in which they are tried.
SERVERS: Tuple[Server, ...] = (
    Server(
        "gunicorn", _gunicorn,
        "The watcher sees a departed client on the socket itself, with the workers `gevent`, `gthread` and"
        " `sync`, over TLS and on unix sockets. The `sync` worker serves one stream at a time and is killed"
        " at `timeout`; take `gevent`. Over HTTP/2 (26.2 and newer; older ones hold a response back to its"
        " end) the streams of one connection are served one after the other, and only the end of the"
        " connection is seen, not the reset of one stream: end HTTP/2 in a proxy.",
    ),
    Server(
        "gunicorn gevent_pywsgi", _gunicorn_pywsgi,
        "As the `gevent` worker.",
    ),
    Server(
        "waitress", _waitress,
        "The watcher sees a departed client on the socket of the channel; `channel_request_lookahead` need"
        " not be set. One thread for each open stream: raise `threads`, which is 4.",
    ),
    Server(
        "uWSGI", _uwsgi,
        "The watcher sees a departed client on the connection, also through the router of `--http`, which"
        " however ends all streams at once when uWSGI is stopped: take `--http-socket`, or a proxy that"
        " speaks `uwsgi`. The watcher is a thread, so `enable-threads` must be set. With threads, uWSGI's"
        " own `write()` works in the request's thread only: heartbeats go to the connection directly, and"
        " only after uWSGI has sent the headers. So the stream opens at once, `status_hold` does not"
        " apply, and an upstream that fails before its first token is said in the stream, no longer by the"
        " status. There are no heartbeats with threads where `https-socket` encrypts, or where a"
        " middleware has replaced `start_response`; and no transformation (`chunked`, `gzip`) may be set"
        " for the route. With `gevent` none of this applies. `socket-timeout` (4 s) ends slow readers. Do"
        " not set `disable-write-exception`.",
    ),
    Server(
        "mod_wsgi", _mod_wsgi,
        "Apache keeps the connection to itself: a departure is seen when heartbeats fail, the second one in"
        " embedded mode and the third in daemon mode. Heartbeats are mandatory, and their interval is the"
        " unit of the delay. TCP_NODELAY is Apache's business.",
    ),
    Server(
        "werkzeug", _werkzeug,
        "The development server. The watcher sees a departed client on the socket.",
    ),
    Server(
        "gevent.pywsgi, wsgiref, werkzeug before 2.0", _behind_input,
        "The watcher sees a departed client on the socket, which is found behind the request's body."
        " wsgiref serves one client after the other.",
    ),
)


def find_peer(environ: Mapping[str, Any], start_response: Any) -> Peer:
    """Return what is known of the client of this request; called once, where it is served.

    Where no row matches, a departure is seen only when a write fails.
    """
    for server in SERVERS:
        peer = server.find(environ, start_response)
        if peer is not None:
            return peer
    return _UNKNOWN


def end_body(writer: Any) -> None:
    """End the body of an answer while the server still asks for more of it, if that can be done.

    :param writer: what ``start_response`` has returned.
    """
    response: Any = getattr(writer, "__self__", None)
    if type(response).__module__.startswith("gunicorn.http."):
        try:
            response.close()  # writes the last chunk, where the body has any
        except OSError:
            pass  # the client has left by itself


def leave_quietly(peer: Peer) -> BaseException:
    """Return what to raise from ``__next__`` when the client has left: nobody should report it.

    An error tracker on the way would report an exception; the server then has to find out itself.
    """
    return StopIteration() if tracker_above() else break_off(peer)


def break_off(peer: Peer) -> BaseException:
    """Return what to raise from ``__next__`` so that the server closes without a traceback."""
    if not peer.leaves_with_error:
        return StopIteration()
    if issubclass(peer.error, OSError):
        return peer.error(errno.ECONNRESET, "the client has left")
    return peer.error()
