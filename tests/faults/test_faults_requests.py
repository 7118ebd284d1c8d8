"""Clients that send garbage: each gets a clear answer or none, and begins nothing that it should not."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections import defaultdict
from typing import Any, DefaultDict, Dict, Iterator, List, NamedTuple, Set

import pytest
from seeing import new_key, notes, path_of, serving, unharmed

from flask_llmstream.testing import LiveServer

pytestmark = [pytest.mark.faults, pytest.mark.live]

#: Seconds in which each must be over.
SOON = 5.0
#: What nobody may ever see begun, because it is only inside the body of another request.
SMUGGLED = "smuggled"
_INNER = f"GET {path_of('words', SMUGGLED, count=3)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


class Request(NamedTuple):
    """What a client sends, and the statuses that answer it; 0 is a connection that is closed."""

    name: str
    data: bytes
    statuses: Set[int]
    #: Whether a stream may begin.
    streams: bool = False


def cases(target: bytes) -> List[Request]:
    get = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    post = b"POST /chat/any HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    json = post + b"Content-Type: application/json\r\n"

    def sized(body: bytes) -> bytes:
        return json + b"Content-Length: %d\r\n\r\n" % len(body) + body

    def header(name: str, value: bytes, statuses: Set[int], text: str = "") -> Request:
        data = get + name.encode() + b": " + value + b"\r\n\r\n"
        return Request(text or f"{name} of garbage", data, statuses, streams=True)

    return [
        header("Last-Event-ID", b"\xff\xfe\x01", {200, 400}),
        header("Last-Event-ID", b"a" * 6000, {404}, "a Last-Event-ID of 6,000 letters"),
        header("Last-Event-ID", b"1:2:3; DROP TABLE streams", {404}, "a Last-Event-ID of another's"),
        header("Accept", b";;q=,,*/;;\xff", {200}),
        header("Accept", b"text/event-stream;q=" + b"9" * 4000, {200}, "an Accept with a q of 4,000 digits"),
        header("Accept-Encoding", b"\x80gzip;q=nan", {200}),
        header("X-Nul", b"a\0b", {400}, "a NUL in a header"),
        header("X-Long", b"a" * 20000, {400, 431}, "a header of 20,000 letters"),
        Request("1,000 headers", get + b"".join(b"X-%d: y\r\n" % n for n in range(1000)) + b"\r\n",
                {400, 431}),
        Request("a path of 100,000 letters", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n", {400, 414}),
        Request("random bytes", bytes(range(256)) * 16 + b"\r\n\r\n", {400, 0}),
        Request("a TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500) + b"\r\n\r\n",
                {400, 0}),
        Request("HTTP/0.9", b"GET " + target + b"\r\n\r\n", {400}),
        Request("HTTP/9.9", b"GET " + target + b" HTTP/9.9\r\n\r\n", {400, 505}),
        Request("an absolute target", b"GET http://other.example" + target
                + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {200, 404, 400}, streams=True),
        Request("CONNECT", b"CONNECT other.example:443 HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404, 405}),
        Request("a body that is no JSON", sized(b"{nonsense"), {400}),
        Request("a body of NULs", sized(bytes(100)), {400}),
        Request("JSON nested 100,000 deep", sized(b"[" * 100000), {400, 500}),
        Request("two lengths and a request in a body", post
                + b"Content-Length: 3\r\nContent-Length: %d\r\n\r\n" % len(_INNER) + _INNER, {400}),
        Request("a length and chunks", json
                + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _INNER, {400}),
        Request("chunks, said twice", json
                + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n" + _INNER,
                {400, 501}),
        Request("chunks of a wrong size", json + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + _INNER,
                {400, 500}),
        Request("a space before the colon", get + b"Content-Length : 5\r\n\r\nhello", {400}),
        Request("a folded header", get + b"X-A: b\r\n c: d\r\n\r\n", {400}),
        # What follows is not read while the stream runs, and never answered: the connection closes behind it.
        Request("garbage behind a request", get + b"\r\n" + b"\x00\xff" * 500, {200}, streams=True),
        Request("a ticket of garbage", b"GET /llmstream/streams/%ff%00../../etc/passwd HTTP/1.1\r\n"
                b"Host: x\r\nConnection: close\r\n\r\n", {404, 400, 410}),
        Request("DELETE of a ticket of garbage", b"DELETE /llmstream/streams/" + b"A" * 3000
                + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", {404, 400, 410}),
    ]


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: Any, tmp_path_factory: Any) -> Iterator[LiveServer]:
    log = f"sqlite:///{tmp_path_factory.mktemp('log')}/streams.db"
    with serving(request.param, event_log=log) as running:
        yield running


def test_garbage_from_clients(server: LiveServer, record: Any) -> None:
    key = new_key()
    target = path_of("words", key, {"resumable": True}, count=3).encode()
    outcomes: DefaultDict[str, List[str]] = defaultdict(list)
    faults: Dict[str, str] = {}
    slowest = 0.0
    # The first resumable stream opens the log, and each thread has a connection of its own to it. The
    # tracebacks are of Flask (JSON nested too deep) and gunicorn (a chunk of size -1), and in the log alone.
    with unharmed(server, tracebacks=2, warm=target.decode(), spare=24):
        for case in cases(target):
            began, before = time.monotonic(), notes(server, key)["begun"]
            received = exchange(server, case.data)
            took = time.monotonic() - began
            slowest = max(slowest, took)
            statuses = [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)] or [0]
            print(f"{case.name}: {statuses} after {took:.2f} s {received[-60:]!r}")
            begun = notes(server, key)["begun"] - before
            if not (
                len(statuses) == 1 and statuses[0] in case.statuses and took < SOON
                and begun <= case.streams and b"Traceback" not in received
                and (not begun or received.count(b"event: done\n") == 1)
            ):
                faults[case.name] = f"{statuses} after {took:.1f} s, {begun} begun: {received[:300]!r}"
            outcomes[str(statuses[0]) if statuses[0] else "closed"].append(case.name)
    assert not faults, faults
    assert notes(server, SMUGGLED)["begun"] == 0
    said = "; ".join(f"{status}: {', '.join(names)}" for status, names in sorted(outcomes.items()))
    record(
        "garbage-clients",
        client=f"an answer within {slowest:.1f} s, and one only. {said}",
        model="none is asked for what is refused",
        log="gunicorn's `Invalid request`; a traceback where Flask's JSON or gunicorn's chunks fail (500)",
    )


def exchange(server: LiveServer, data: bytes) -> bytes:
    """Send *data* and return what comes until the server closes."""
    pieces = [b"?"]
    with server.connect(timeout=SOON + 1) as sock:
        with contextlib.suppress(ConnectionError):  # answered, and closed before all of it has left
            sock.sendall(data)
        try:
            while pieces[-1]:
                pieces.append(sock.recv(65536))
        except ConnectionError:
            pass  # closed with some of it unread
        except socket.timeout:
            pass
    return b"".join(pieces[1:])
