"""What the doctor reads off real sockets, also where the other side misbehaves."""

from __future__ import annotations

import concurrent.futures
import gzip
import json
import socket
import ssl
import threading
import time
from typing import Any, Callable, Iterator, List, Tuple

import pytest

from flask_llmstream.doctor import client
from flask_llmstream.doctor.client import answer_of, observe
from flask_llmstream.doctor.connecting import Request
from flask_llmstream.doctor.examining import Plan, examine
from flask_llmstream.doctor.observations import Hop, Observation

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
EVENT = b"data: one\n\n"
Say = Callable[[Any], None]


@pytest.fixture
def saying() -> Iterator[Callable[..., str]]:
    """Return a function that starts a server which answers each request by a function of its socket."""
    listeners: List[socket.socket] = []
    threads: List[threading.Thread] = []
    requests: List[bytes] = []

    def serve(listener: socket.socket, say: Say, context: Any) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            try:
                with sock if context is None else context.wrap_socket(sock, server_side=True) as peer:
                    peer.settimeout(10)
                    requests.append(peer.recv(65536))
                    if requests[-1]:
                        say(peer)
            except OSError:
                pass  # it has left

    def start(say: Any, certificate: Any = None) -> str:
        answer: Say = say if callable(say) else lambda sock: sock.sendall(say)
        context = None
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            context.set_alpn_protocols(["h2", "http/1.1"])
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(8)
        listeners.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, answer, context), daemon=True))
        threads[-1].start()
        return f"{'https' if certificate else 'http'}://127.0.0.1:{listener.getsockname()[1]}/s"

    start.requests = requests  # type: ignore[attr-defined]
    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)


def look(url: str, **request: Any) -> Observation:
    return observe(Hop("hop", url), Request(**dict({"timeout": 5.0, "limit": 10.0}, **request)))


def test_each_read_and_event_has_its_time(saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = threading.Event()
    receive = client._Reading._receive

    def noted(reading: Any) -> bytes:
        waits.set()
        return receive(reading)

    monkeypatch.setattr(client._Reading, "_receive", noted)

    def once_it_waits() -> None:
        """For a reader that is late would find two pieces at once."""
        assert waits.wait(10)
        waits.clear()

    def say(sock: socket.socket) -> None:
        once_it_waits()
        sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for data in (b": hb\n", EVENT, b": hb\n", EVENT):
            once_it_waits()
            time.sleep(0.1)
            sock.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        sock.sendall(b"0\r\n\r\n")

    seen = look(saying(say), headers=(("X-Own", "1"), ("Accept", "text/plain")))
    assert (seen.error, seen.status, seen.version, seen.end) == (None, 200, "1.1", "complete")
    assert [size for _, size in seen.reads] == [5, 11, 5, 11]
    assert len(seen.events) == 2 and len(seen.comments) == 1  # one before the first event counts for nothing
    assert 0.15 < seen.events[1].at - seen.events[0].at < 5.0
    sent = saying.requests[0].decode()
    assert "X-Own: 1\r\n" in sent and "Accept: text/plain\r\n" in sent and sent.count("Accept:") == 1


ENDS = [
    pytest.param(HEAD + b"\r\n" + EVENT, "complete", 1, id="closed"),
    pytest.param(HEAD + b"Content-Length: 11\r\n\r\n" + EVENT + b"more", "complete", 1, id="sized"),
    pytest.param(HEAD + b"Content-Length: 99\r\n\r\n" + EVENT, "cut", 1, id="cut"),
    pytest.param(HEAD + b"Content-Length: -5\r\n\r\n" + EVENT, "complete", 1, id="impossible length"),
    pytest.param(HEAD + b"Content-Length: \xb2\r\n\r\n" + EVENT, "complete", 1, id="no length"),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nb\r\n" + EVENT, "cut", 1, id="cut chunks"),
    pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "unreadable", 0, id="no chunks"),
    pytest.param(HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(EVENT), "complete", 1, id="gzip"),
    pytest.param(HEAD + b"Content-Encoding: br\r\n\r\n\x8b\x05", "complete", 0, id="br"),
    pytest.param(HEAD + b"Content-Encoding: gzip\r\n\r\nno", "unreadable", 0, id="no gzip"),
    pytest.param(b"HTTP/1.0 200 OK\r\nContent-Type: x/ndjson\r\n\r\n{}\n{}\n", "complete", 2, id="lines"),
]


@pytest.mark.parametrize("said, end, events", ENDS)
def test_every_end_is_known(saying: Any, said: bytes, end: str, events: int) -> None:
    seen = look(saying(said))
    assert (seen.end, len(seen.events)) == (end, events), seen.error


def typed(kind: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode()


REFUSALS = [
    pytest.param(b"HTTP/1.1 302 X\r\nLocation: http://x/\r\n\r\n", "leads to http://x/", "give", id="away"),
    pytest.param(b"HTTP/1.1 302 X\r\nLocation: /in?token=geheim\r\n\r\n", "/in?token=...", "give", id="in"),
    pytest.param(b"HTTP/1.1 401 No\r\nContent-Length: 3\r\n\r\nwho", "answers 401: who", "-H", id="refused"),
    pytest.param(b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n", "answers 405", "--body", id="method"),
    pytest.param(b"HTTP/1.1 502 Bad\r\n\r\n<html>", "answers 502", "behind", id="page"),
    pytest.param(b"HTTP/1.1 507 Bad\r\n\r\n", "answers 507", "log of the app", id="5xx"),
    pytest.param(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\nz\n", "answers 500", "log", id="bad"),
    pytest.param(b"HTTP/1.1 500 X\r\n\r\n" + b"boom " * 99999, "answers 500: boom", "log", id="large 500"),
    pytest.param(b"HTTP/1.1 101 Switching\r\n\r\n", "answers 101", "200", id="switching"),
    pytest.param(typed("text/html") + b"<p>", "text/html, which", "login", id="html"),
    pytest.param(typed("image/png") + b"\n" * 9, "image/png, which", "stream", id="image"),
    pytest.param(typed("text/plain") + b"\n \n", "sends no event, but 3 bytes of text/p", "log", id="blank"),
    pytest.param(HEAD + b"Content-Length: 0\r\n\r\n", "sends no event, but 0 bytes", "log", id="empty"),
    pytest.param(b"SSH-2.0-x\r\n", "but begins with 'SSH-2.0-x", "port", id="ssh"),
    pytest.param(b"HTTP/1.1 9999 X\r\n\r\n", "does not speak HTTP/1.1", "port", id="status"),
    pytest.param(b"HTTP/2\r\n\r\n", "does not speak HTTP/1.1", "port", id="version"),
    pytest.param(b"HTTP/1.1 200 OK\r\nA: b", "before the headers are complete", "port", id="half"),
    pytest.param(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 30000, "without an end", "port", id="long"),
]


@pytest.mark.parametrize("said, error, step", REFUSALS)
def test_what_is_no_stream_is_said_with_the_next_step(
    saying: Any, said: bytes, error: str, step: str
) -> None:
    seen = look(saying(said) + "?token=geheim")
    assert error in (seen.error or "") and step in seen.step, (seen.error, seen.step)
    assert "geheim" not in (seen.error or "")


def test_probe_that_says_odd_things_of_itself_is_no_danger(saying: Any) -> None:
    """Whoever stands at that URL may say anything; what is left of it has the type that it should have."""
    hello = b'{"protocol": 7, "here": 3, "request": [], "nonce": 1, "heartbeat_interval": NaN}'
    event = b'event: probe\ndata: {"t": %b, "hello": %b}\n\n'
    times = (b"NaN", b"1e999", b"-1", b"true", b"2")
    seen = look(saying(HEAD + b"\r\n" + b"".join(event % (t, hello) for t in times)))
    assert seen.hello == {"heartbeat_interval": None}
    assert [event.sent for event in seen.events] == [None, None, None, None, 2.0]


def test_event_without_an_end_is_no_stream(saying: Any) -> None:
    seen = look(saying(HEAD + b"\r\ndata: " + b"x" * (17 << 20)))
    assert "more than 16 MB" in (seen.error or "") and "max_buffer" not in (seen.error or "")


def test_nothing_waits_for_ever(saying: Any) -> None:
    waiting = threading.Event()

    def say(sock: socket.socket) -> None:
        sock.sendall(HEAD + b"\r\n" + EVENT)
        waiting.wait(10)

    # At the same time, so that who says something has long enough for it on a busy machine.
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asked = [
            pool.submit(look, saying(lambda sock: waiting.wait(10)), timeout=0.2),
            pool.submit(look, saying(say), timeout=1.8),
            pool.submit(look, saying(say), limit=1.8),
        ]
        mute, silent, enough = (each.result() for each in asked)
        waiting.set()
    assert "no answer within 0.2 s" in (mute.error or "") and "--timeout" in mute.step
    assert (silent.end, enough.end) == ("silent", "enough")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed = look(f"http://127.0.0.1:{unused.getsockname()[1]}/")
        assert "cannot be read" in (closed.error or "") and "nobody listens" in closed.step
    nowhere = look("http://a..b/")
    assert "cannot be read" in (nowhere.error or "") and "name of the host" in nowhere.step


def test_tls_is_checked_and_what_it_offers_is_noted(saying: Any, certificate: Tuple[str, str]) -> None:
    url = saying(HEAD + b"\r\n" + EVENT, certificate)
    unchecked = look(url)
    assert "certificate" in (unchecked.error or "").lower() and "-k" in unchecked.step
    assert look(url.replace("https", "http")).error  # the server does not like it
    seen = look(url, insecure=True)
    assert (seen.error, len(seen.events), seen.alpn) == (None, 1, "h2")


def test_body_is_posted_and_short_answers_are_read(saying: Any) -> None:
    url = saying(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert answer_of(url, Request(body=json.dumps({"a": 1}).encode())) == (200, b"{}")
    sent = saying.requests[0]
    assert sent.startswith(b"POST /s HTTP/1.1\r\n") and sent.endswith(b'\r\n\r\n{"a": 1}')


def test_departure_that_nobody_answers_for_is_not_known(saying: Any) -> None:
    """Another app than the one that was probed, or one on another machine."""
    probe = b'event: probe\ndata: {"t": 0, "n": 0, "hello": {"nonce": "x"}}\n\n'
    unknown = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"left": null}'

    def say(sock: socket.socket) -> None:
        sock.sendall(unknown if b"left=" in saying.requests[-1] else HEAD + b"\r\n" + probe)

    url = saying(say) + "/probe"
    (found,) = examine(Plan([Hop("hop", url)], Request(timeout=5.0)))
    assert found.seen.is_probe and found.departure is None and not found.seen.last


def test_headers_cannot_be_smuggled() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        assert "line break" in (look(url, headers=(("X", "a\r\nY: b"),)).error or "")
        assert "Latin-1 was expected" in (look(url, headers=(("X", "\u20ac"),)).error or "")
