"""One app on every WSGI server that the table knows: what its clients see, and what it sees of them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, Iterator, NamedTuple, Optional, Tuple
from urllib.parse import urlencode

import others
import pytest
from core import (
    HEARTBEAT,
    SERVED,
    Beats,
    Departure,
    End,
    Site,
    Spacing,
    departure,
    events,
    first_byte,
    graceful_end,
    heartbeats,
    measured,
    new_key,
    spacing,
)
from gunicorn import __version__ as gunicorn_version

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, read_stream, send_request

pytestmark = [pytest.mark.live, pytest.mark.servers]

#: What a figure may be on a busy machine, in ms; those that are on the page come from an idle one.
LATE = 200.0
#: One heartbeat, in ms.
BEAT = 1000 * HEARTBEAT


class Running(NamedTuple):
    """A server that is up."""

    connect: Callable[[], socket.socket]
    log: Callable[[], str]
    ask_to_end: Callable[[], None]


class Around(NamedTuple):
    """What a server may need to be started."""

    notes: Path
    folder: Path
    certificate: Tuple[str, str]


class Row(NamedTuple):
    """One server, and what can be asked of it."""

    start: Callable[[Around], ContextManager[Running]]
    #: Name of its row in the table of servers.
    peer: str = "gunicorn"
    #: Within how many ms a departed client must be seen: with a FIN, and with a RST.
    fin: float = LATE
    rst: float = LATE
    #: Whether a connection is kept for the next request.
    keeps: bool = True
    #: Whether it serves one request at a time.
    serial: bool = False
    #: Whether it may send chunks to clients of HTTP/1.0, too, which is a fault of its own.
    chunks_always: bool = False
    #: Whether the stream opens at once, without ``status_hold``.
    opens_at_once: bool = False
    #: What a stream ends with whose server is asked to stop: ``failed:shutdown``; ``done:stop``: it
    #: may finish; ``None``: it is cut.
    end: Optional[str] = "failed:shutdown"


def gunicorn(worker: str, tls: bool = False, unix: bool = False, **options: Any) -> Any:
    """Return what starts gunicorn for a :class:`Row`."""

    @contextlib.contextmanager
    def start(around: Around) -> Iterator[Running]:
        lines, path = str(options.pop("config_lines", "")), str(around.folder / "socket")
        if unix:
            lines += f"\nbind = ['127.0.0.1:0', {'unix:' + path!r}]"
        if tls:
            options.update(certfile=around.certificate[0], keyfile=around.certificate[1])
        env = {"LLMSTREAM_TEST_NOTES": str(around.notes)}
        with gunicorn_server(SERVED, worker, env=env, config_lines=lines, **options) as server:

            def connect() -> socket.socket:
                if not unix:
                    return server.connect()
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(path)
                return sock

            yield Running(connect, server.log, lambda: os.kill(server.pid, signal.SIGTERM))

    return start


def other(write: others.Write) -> Any:
    """Return what starts another server for a :class:`Row`."""

    @contextlib.contextmanager
    def start(around: Around) -> Iterator[Running]:
        with others.other_server(write, around.notes) as server:
            yield Running(server.connect, server.log, server.ask_to_end)

    return start


ROWS: Dict[str, Row] = {
    "gunicorn gevent": Row(gunicorn("gevent")),
    "gunicorn gevent, TLS": Row(gunicorn("gevent", tls=True)),
    "gunicorn gevent, unix socket": Row(gunicorn("gevent", unix=True)),
    "gunicorn gevent_pywsgi": Row(gunicorn("gevent_pywsgi"), "gunicorn gevent_pywsgi"),
    "gunicorn gthread": Row(gunicorn("gthread", threads=16)),
    "gunicorn sync": Row(gunicorn("sync"), keeps=False, serial=True),
    "gevent.pywsgi": Row(other(others.pywsgi), "gevent.pywsgi"),
    "waitress": Row(other(others.waitress), "waitress", keeps=False),
    "uWSGI threads": Row(
        other(others.uwsgi_threads), "uWSGI", keeps=False, opens_at_once=True, end="done:stop"
    ),
    "uWSGI threads, --http": Row(
        other(others.uwsgi_router), "uWSGI", keeps=False, opens_at_once=True, end=None
    ),
    "uWSGI gevent": Row(other(others.uwsgi_gevent), "uWSGI", keeps=False, end="done:stop"),
    "mod_wsgi embedded": Row(
        other(others.mod_wsgi(False)), "mod_wsgi", 2 * BEAT, BEAT, end="done:stop"
    ),
    "mod_wsgi daemon": Row(
        other(others.mod_wsgi(True)), "mod_wsgi", 3 * BEAT, 2 * BEAT, end="done:stop"
    ),
    "Flask development server": Row(
        other(others.flask_run), "werkzeug", keeps=False, chunks_always=True, end=None
    ),
    "wsgiref": Row(other(others.wsgiref), "wsgiref", keeps=False, end=None),
}
#: Has tests of its own.
HTTP2 = "gunicorn gevent, HTTP/2"


class Served(NamedTuple):
    """A row whose server is up."""

    name: str
    row: Row
    site: Site
    ask_to_end: Callable[[], None]


@pytest.fixture(scope="module", params=list(ROWS))
def served(
    request: pytest.FixtureRequest, notes: Path, upstream: ScriptedUpstream, tmp_path_factory: Any,
    certificate: Tuple[str, str],
) -> Iterator[Served]:
    """The app on each server, one after the other."""
    row = ROWS[request.param]
    with row.start(Around(notes, tmp_path_factory.mktemp("server"), certificate)) as running:
        site = Site(running.connect, notes, upstream, log=running.log)
        first_byte(site)  # the first request of a process pays for what later ones find ready
        yield Served(request.param, row, site, running.ask_to_end)


class Seen(NamedTuple):
    """What was measured on one server, most of it at the same time."""

    first: float
    held: float
    spacing: Spacing
    beats: Beats
    fin: Departure
    rst: Departure
    before_first: Departure
    legacy: Departure


@pytest.fixture(scope="module")
def seen(served: Served, record: Any) -> Seen:
    site, row = served.site, served.row
    results = measured(
        (lambda: spacing(site), keeps_its_beat),
        (lambda: heartbeats(site, seconds=1.3), are_enough),
        (lambda: departure(site), lambda left: is_within(left, row.fin)),
        (lambda: departure(site, reset=True), lambda left: is_within(left, row.rst)),
        (lambda: departure(site, "/silent-first"), lambda left: is_within(left, row.fin)),
        (lambda: departure(site, "/legacy-silent"), lambda left: is_within(left, row.fin)),
        at_once=not row.serial,
    )
    alone = measured(
        (lambda: first_byte(site), lambda ms: ms < LATE),
        (lambda: first_byte(site, "/silent-first"), lambda ms: opens_in_time(row, ms)),
        at_once=False,
    )
    seen = Seen(*alone, *results)
    for column, figure in (
        ("first byte", seen.first),
        ("token spacing", seen.spacing.worst),
        ("disconnect seen", seen.fin.seen),
        ("disconnect seen (RST)", seen.rst.seen),
        ("upstream closed", seen.fin.upstream_closed),
        ("heartbeat while blocked", max(seen.beats.gaps) if seen.beats.gaps else None),
    ):
        record("servers", served.name, column, figure)
    return seen


def keeps_its_beat(found: Spacing) -> bool:
    return found.worst < 95 and not found.joined


def are_enough(beats: Beats) -> bool:
    return beats.count >= 2 and all(abs(gap - BEAT) < LATE for gap in beats.gaps)


def is_within(left: Departure, limit: float) -> bool:
    return left.seen < limit and left.upstream_closed < limit


def opens_in_time(row: Row, held: float) -> bool:
    return held < LATE if row.opens_at_once else 290 < held < 300 + LATE


def test_first_byte_and_tokens_are_on_time(seen: Seen) -> None:
    assert seen.first < LATE
    assert keeps_its_beat(seen.spacing), seen.spacing


def test_stream_opens_when_the_hold_is_over(served: Served, seen: Seen) -> None:
    """Though its upstream says nothing."""
    assert opens_in_time(served.row, seen.held), seen.held


@pytest.mark.parametrize("how", ["fin", "rst", "before_first", "legacy"])
def test_client_that_leaves_is_noticed_while_the_generator_is_blocked(
    served: Served, seen: Seen, how: str
) -> None:
    left: Departure = getattr(seen, how)
    limit = served.row.rst if how == "rst" else served.row.fin
    assert is_within(left, limit), left
    assert left.reason == ("disconnect" if how != "legacy" else None)


def test_heartbeats_come_while_the_generator_is_blocked(seen: Seen) -> None:
    assert are_enough(seen.beats), seen.beats


def test_departures_leave_no_traceback_in_the_log(served: Served, seen: Seen) -> None:
    assert "Traceback" not in served.site.log()
    assert "takes its items" not in served.site.log(), "the server is taken for a middleware"


def test_table_knows_the_server_and_lets_small_packets_leave_at_once(served: Served) -> None:
    reader = served.site.ask("/peer")
    found = reader.json()
    reader.close()
    assert found["server"] == served.row.peer
    hidden = served.row.peer == "mod_wsgi" or "unix" in served.name
    assert found["at_once"] is (None if hidden else True)


@contextlib.contextmanager
def connected(site: Site) -> Iterator[socket.socket]:
    sock = site.connect()
    try:
        yield sock
    finally:
        sock.close()


def test_pipelined_request_is_answered_after_the_stream(served: Served) -> None:
    """On the same connection, and nothing of the stream gets into that answer."""
    with connected(served.site) as sock:
        send_request(sock, "/tokens?n=3&interval=0.05")
        send_request(sock, "/hello", body=b"more")
        stream = read_stream(sock)
        body = b"".join(data for _, data in stream.read_until(b"event: done"))
        with contextlib.suppress(OSError):  # such as a RST, for what the server has not read
            body += stream.read()
        assert body.count(b'{"text"') == 3 and b"hello" not in body
        if served.row.keeps:
            assert stream.complete
            answer = read_stream(sock, buffered=stream.rest)
            assert (answer.status, answer.read()) == (200, b"hello")
        else:  # the connection is closed, as HTTP allows
            assert not stream.rest


def test_departure_is_seen_behind_a_pipelined_request(served: Served) -> None:
    """What lies unread in the socket must not hide the FIN behind it."""
    site, limit = served.site, served.row.fin + BEAT / 2

    def seen_after() -> float:
        key = new_key()
        with connected(site) as sock:
            send_request(sock, f"/silent?key={key}&upstream={site.upstream.url}/{key}")
            send_request(sock, "/hello")
            read_stream(sock).read_until(b'{"text"')
            left_at = time.monotonic()
        return float(1000 * (site.noted(key, "finally")["at"] - left_at))

    [after] = measured((seen_after, lambda ms: ms < limit))
    assert after < limit


def test_heartbeats_and_items_never_mix(served: Served) -> None:
    """Though the ticker writes every 10 ms, and the client reads late."""
    reader = served.site.ask("/crowded")
    time.sleep(0.3)
    arrived = [data for _, data in reader]
    reader.close()
    assert reader.complete
    texts = [json.loads(event.data)["text"] for _, event in events([(0.0, data) for data in arrived])
             if event.event is None]
    assert texts == [crowded_text(number) for number in range(60)]
    assert b"".join(arrived).count(b"\n: hb\n") >= 5


def test_client_of_http_1_0_gets_the_bare_stream(served: Served) -> None:
    key = new_key()
    with connected(served.site) as sock:
        send_request(sock, f"/tokens?n=3&interval=0.01&key={key}", version="1.0")
        stream = read_stream(sock)
        assert served.row.chunks_always or "transfer-encoding" not in stream.headers
        body = b"".join(data for _, data in stream.read_until(b"event: done"))
    assert body.count(b'{"text"') == 3 and body.startswith((b":", b"data: "))
    assert served.site.noted(key, "end")["reason"] == "finish"


def test_head_starts_nothing(served: Served) -> None:
    key = new_key()
    with connected(served.site) as sock:
        send_request(sock, f"/tokens?key={key}", method="HEAD")
        answer = read_stream(sock, head=True)
        assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
        assert answer.read() == b""
        if served.row.keeps and answer.headers.get("connection", "").lower() != "close":
            send_request(sock, "/hello")
            following = read_stream(sock, buffered=answer.rest)
            assert (following.status, following.read()) == (200, b"hello")
    assert served.site.notes_on(key, "finally") == []


def test_server_that_is_asked_to_stop_ends_its_streams(served: Served, record: Any) -> None:
    """The last test of each server."""
    if served.row.end == "done:stop":
        end = graceful_end(served.site, served.ask_to_end, "/tokens", count=12)
    else:
        end = graceful_end(served.site, served.ask_to_end, timeout=5.0)
    record("servers", served.name, "graceful end", in_words(end))
    assert end.terminal == served.row.end, (end, served.site.log())
    if end.terminal is not None:
        assert end.complete and end.cleaned_up
        assert end.reason == ("shutdown" if end.terminal == "failed:shutdown" else "finish")


def crowded_text(number: int) -> str:
    """Return what the app's ``/crowded`` yields."""
    return f"<{number}" + "x" * (200000 if number % 20 == 19 else number * 37 % 3000) + ">"


def in_words(end: End) -> str:
    """Return what the page says of *end*."""
    if end.terminal == "failed:shutdown":
        return f"`failed` after {end.took / 1000:.1f} s, `finally` runs"
    if end.terminal == "done:stop":
        return "may finish"
    return "cut, `finally` runs" if end.cleaned_up else "cut, no `finally`"


# -- HTTP/2 --------------------------------------------------------------------------------


class Http2Site(Site):
    """The app as clients reach it that speak HTTP/2."""

    def ask(self, path: str, key: str = "", **query: Any) -> Any:
        from http2 import Http2Answer  # needs a package that not every stack has

        target = path + "?" + urlencode(dict(query, key=key, upstream=self.upstream.url + "/" + key))
        sock = self.connect()
        asked_at = time.monotonic()
        answer: Any = Http2Answer(sock, target, {})
        answer.asked_at = asked_at
        return answer


#: Older ones hold a response back to its end.
GUNICORN_STREAMS_HTTP2 = tuple(int(each) for each in gunicorn_version.split(".")[:2]) >= (26, 2)
needs_http2 = pytest.mark.skipif(
    not GUNICORN_STREAMS_HTTP2, reason=f"gunicorn {gunicorn_version} streams no HTTP/2, 26.2 does"
)


@pytest.fixture(scope="module")
def http2(
    notes: Path, upstream: ScriptedUpstream, certificate: Tuple[str, str]
) -> Iterator[Tuple[Site, LiveServer]]:
    """gunicorn with HTTP/2, the app on it as its clients reach it."""
    context = ssl.create_default_context(cafile=certificate[0])
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with gunicorn_server(
        SERVED, config_lines="http_protocols = 'h2,h1'", env={"LLMSTREAM_TEST_NOTES": str(notes)},
        certfile=certificate[0], keyfile=certificate[1],
    ) as server:

        def connect() -> socket.socket:
            return context.wrap_socket(socket.create_connection(server.address, 10.0))

        site = Http2Site(connect, notes, upstream, log=server.log)
        first_byte(site)
        yield site, server


@needs_http2
def test_http2_streams(http2: Tuple[Site, LiveServer], record: Any) -> None:
    site, _ = http2
    kept, beats, left = measured(
        (lambda: spacing(site), keeps_its_beat),
        (lambda: heartbeats(site, seconds=1.3), lambda beats: beats.count >= 2),
        (lambda: departure(site), lambda left: is_within(left, LATE)),
    )
    [first] = measured((lambda: first_byte(site), lambda ms: ms < LATE))
    for column, figure in (
        ("first byte", first),
        ("token spacing", kept.worst),
        ("disconnect seen", left.seen),
        ("upstream closed", left.upstream_closed),
        ("heartbeat while blocked", max(beats.gaps)),
    ):
        record("servers", HTTP2, column, figure)
    assert first < LATE and keeps_its_beat(kept), (first, kept)
    assert beats.count >= 2
    assert is_within(left, LATE) and left.reason == "disconnect", left


@needs_http2
def test_http2_streams_of_one_connection_are_served_one_after_the_other(
    http2: Tuple[Site, LiveServer], certificate: Tuple[str, str]
) -> None:
    """gunicorn's doing, and a reason to end HTTP/2 in a proxy; where this fails, docs can say so."""
    _, server = http2
    command = ["curl", "-s", "--http2", "--cacert", certificate[0], "--parallel", "--parallel-max", "2"]
    command += ["-o", "/dev/null", "-w", "%{url} %{http_version} %{num_connects} %{time_starttransfer}\n"]
    urls = [f"{server.url}/tokens?n=10&interval=0.1", f"{server.url}/tokens?n=1"]
    lines = subprocess.run(
        [*command, urls[0], "-o", "/dev/null", urls[1]], check=True, stdout=subprocess.PIPE
    ).stdout.decode().splitlines()
    answers = {line.split()[0]: line.split()[1:] for line in lines}
    assert [answers[url][:2] for url in urls] == [["2", "1"], ["2", "0"]], lines
    assert float(answers[urls[1]][2]) > 0.5, lines  # of the second that the first one takes


@needs_http2
def test_http2_reset_of_a_stream_is_not_seen_and_the_end_of_its_connection_is(
    http2: Tuple[Site, LiveServer]
) -> None:
    """gunicorn's doing as well: it reads nothing while the generator is blocked."""
    site, _ = http2

    def seen_after() -> float:
        key = new_key()
        answer = site.ask("/silent", key)
        next(iter(answer))
        answer.reset()
        time.sleep(2.2 * HEARTBEAT)  # two heartbeats, which is what shows a departure elsewhere
        assert not site.notes_on(key, "finally")
        left_at = time.monotonic()
        answer.close()
        return float(1000 * (site.noted(key, "finally")["at"] - left_at))

    [after] = measured((seen_after, lambda ms: ms < LATE))
    assert after < LATE


@needs_http2
def test_http2_server_that_is_asked_to_stop_ends_its_streams(
    http2: Tuple[Site, LiveServer], record: Any
) -> None:
    """The last test of this server."""
    site, server = http2
    end = graceful_end(site, lambda: os.kill(server.pid, signal.SIGTERM), timeout=5.0)
    record("servers", HTTP2, "graceful end", in_words(end))
    assert end.terminal == "failed:shutdown" and end.reason == "shutdown", end
