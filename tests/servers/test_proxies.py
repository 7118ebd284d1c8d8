"""Streams through real proxies: on time, alive, and given up when their client leaves."""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple
from urllib.parse import urlencode

import pytest
from core import (
    HEARTBEAT,
    INTERVAL,
    SERVED,
    Beats,
    Departure,
    Site,
    Spacing,
    departure,
    first_byte,
    heartbeats,
    measured,
    new_key,
    spacing,
    together,
)
from proxies import Proxy, proxy_server

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server

pytestmark = [pytest.mark.live, pytest.mark.servers, pytest.mark.checkout]

#: In ms: what a token may be late on a busy machine, where nothing holds it back.
LATE = 80.0
#: In ms: what "at once" may take there. A heartbeat could show a RST after 250 ms, a FIN after 750.
AT_ONCE, AT_ONCE_FIN = 240.0, 600.0
#: In ms: a heartbeat to learn of a RST, and one more to learn of a FIN; each is due when its
#: predecessor is HEARTBEAT old, and the departure is in the middle between two.
BEAT = 1000 * HEARTBEAT
ONE_BEAT, TWO_BEATS, THREE_BEATS = (BEAT / 2 + more * BEAT + 400.0 for more in (0, 1, 2))


class ProxySite(Site):
    """The served app behind a proxy."""

    def __init__(self, proxy: Proxy, app: LiveServer, notes: Path, upstream: ScriptedUpstream) -> None:
        super().__init__(proxy.connect, notes, upstream, log=lambda: proxy.log() + app.log())
        self.proxy = proxy
        self.app = app
        #: Sent along with each request; EventSource and browsers send these.
        self.headers = {"Accept": "text/event-stream", "Accept-Encoding": "gzip"}
        #: A RST_STREAM leaves its connection open.
        self.sockets: List[socket.socket] = []

    def ask(self, path: str, key: str = "", **query: Any) -> Any:
        target = path + "?" + urlencode(dict(query, key=key, upstream=self.upstream.url + "/" + key))
        asked_at = time.monotonic()
        if "-h2-" in self.proxy.name:
            from http2 import Http2Answer  # not everywhere where these tests are collected

            answer: Any = Http2Answer(self.proxy.connect(alpn="h2"), target, self.headers)
            self.sockets.append(answer.sock)
        else:
            answer = Unzipped(self.proxy.request(target, headers=self.headers))
        answer.asked_at = asked_at
        return answer


class Unzipped:
    """A reader's answer, decompressed where the proxy has compressed it, piece by piece."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._inflate = zlib.decompressobj(31)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def __enter__(self) -> Unzipped:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Tuple[float, bytes]]:
        zipped = self._reader.headers.get("content-encoding") == "gzip"
        for at, data in self._reader:
            data = self._inflate.decompress(data) if zipped else data
            if data:
                yield at, data


class Row(NamedTuple):
    """What is expected of one proxy, with a time limit in ms for each way to leave."""

    #: Its row in the documentation.
    title: str
    #: By FIN, and by RST; over HTTP/2 by the end of the connection, and by RST_STREAM.
    fin: float
    rst: float


ROWS: Dict[str, Row] = {
    "nginx": Row("nginx, defaults (HTTP/1.0 to the app, buffering on)", AT_ONCE_FIN, AT_ONCE),
    "nginx-http11": Row("nginx, HTTP/1.1 to the app", AT_ONCE_FIN, AT_ONCE),
    "nginx-gzip": Row("nginx, gzip on", AT_ONCE_FIN, AT_ONCE),
    "nginx-h2-tls": Row("nginx, HTTP/2 and TLS to the client", AT_ONCE_FIN, AT_ONCE),
    "nginx-shipped": Row("nginx, deploy/nginx.conf", AT_ONCE_FIN, AT_ONCE),
    "haproxy-shipped": Row("HAProxy, deploy/haproxy.cfg", TWO_BEATS, ONE_BEAT),
    "haproxy-compression": Row("HAProxy, deploy/haproxy.cfg, compression on", TWO_BEATS, ONE_BEAT),
    "haproxy-h2-tls": Row("HAProxy, deploy/haproxy.cfg, HTTP/2 and TLS to the client", TWO_BEATS, AT_ONCE),
    "apache": Row("Apache, mod_proxy alone", TWO_BEATS, ONE_BEAT),
    "apache-deflate": Row("Apache, DEFLATE on", TWO_BEATS, ONE_BEAT),
    "apache-shipped": Row("Apache, deploy/apache.conf, DEFLATE on", TWO_BEATS, ONE_BEAT),
    "apache-h2-tls": Row("Apache, deploy/apache.conf, HTTP/2 and TLS to the client", ONE_BEAT, ONE_BEAT),
    "varnish-h2-clear": Row("Varnish, deploy/varnish.vcl, HTTP/2 to the client", TWO_BEATS, TWO_BEATS),
    "varnish": Row("Varnish, its own VCL", THREE_BEATS, TWO_BEATS),
    "varnish-shipped": Row("Varnish, deploy/varnish.vcl, compression on", THREE_BEATS, TWO_BEATS),
}


@pytest.fixture(scope="module")
def app(notes: Path) -> Iterator[LiveServer]:
    """The served app on a gunicorn with a gevent worker."""
    with gunicorn_server(SERVED, env={"LLMSTREAM_TEST_NOTES": str(notes)}) as server:
        yield server


Behind = Callable[..., Any]


@pytest.fixture(scope="module")
def behind(
    app: LiveServer, notes: Path, upstream: ScriptedUpstream, certificate: Tuple[str, str]
) -> Iterator[Behind]:
    """Return a function that gives a context with the app behind the proxy of that name."""

    @contextlib.contextmanager
    def start(name: str, **options: Any) -> Iterator[ProxySite]:
        with proxy_server(name, app.address, certificate, **options) as proxy:
            site = ProxySite(proxy, app, notes, upstream)
            yield site
            for sock in site.sockets:
                sock.close()

    yield start


class Seen(NamedTuple):
    """What was measured behind one proxy, all at the same time."""

    row: Row
    first: float
    hello: Tuple[int, bytes]
    spacing: Spacing
    beats: Beats
    fin: Departure
    rst: Departure
    before_first: Departure
    #: In routes that know nothing of the library.
    legacy_spacing: Spacing
    legacy: Departure


@pytest.fixture(scope="module", params=list(ROWS))
def seen(request: pytest.FixtureRequest, behind: Behind, record: Any) -> Seen:
    """What clients of the app behind the proxy see, and what the app sees of them."""
    row = ROWS[request.param]
    with behind(request.param) as site:
        hello = answer_of(site, "/hello")
        first_byte(site)  # the first request of a process pays for what later ones find ready
        [first] = measured(
            (lambda: statistics.median(first_byte(site) for _ in range(3)), lambda ms: ms < LATE)
        )
        seen = Seen(row, first, hello, *measured(
            (lambda: spacing(site), keeps_its_beat),
            (lambda: heartbeats(site), are_enough),
            (lambda: departure(site), lambda left: is_within(left, row.fin)),
            (lambda: departure(site, reset=True), lambda left: is_within(left, row.rst)),
            (lambda: departure(site, "/silent-first"), lambda left: is_within(left, row.fin)),
            (lambda: spacing(site, "/legacy-tokens"), keeps_its_beat),
            (lambda: departure(site, "/legacy-silent"), lambda left: is_within(left, row.fin)),
        ))
    for column, figure in (
        ("first byte", first),
        ("token spacing", seen.spacing.worst),
        ("disconnect seen", seen.fin.seen),
        ("disconnect seen (RST)", seen.rst.seen),
        ("upstream closed", seen.fin.upstream_closed),
        ("heartbeat while blocked", max(seen.beats.gaps)),
    ):
        record("proxies", row.title, column, figure)
    return seen


def off_beat(found: Spacing) -> int:
    """Return how many of seven gaps are not what they were at the source.

    A machine that is busy for a moment spoils up to three; what holds tokens back spoils all.
    """
    return sum(abs(gap - 1000 * INTERVAL) > LATE for gap in found.gaps)


def keeps_its_beat(found: Spacing) -> bool:
    return off_beat(found) <= 3


def comes_in_lumps(found: Spacing) -> bool:
    return off_beat(found) >= 6


def are_enough(beats: Beats) -> bool:
    return beats.count >= 3 and max(beats.gaps) < BEAT + 200


def is_within(left: Departure, limit: float) -> bool:
    return left.seen < limit and left.upstream_closed < limit + 100


def answer_of(site: ProxySite, path: str) -> Tuple[int, bytes]:
    reader = site.ask(path)
    try:
        return reader.status, b"".join(data for _, data in reader)
    finally:
        reader.close()


def test_first_byte_and_tokens_are_on_time(seen: Seen) -> None:
    assert seen.first < LATE
    for found in (seen.spacing, seen.legacy_spacing):
        assert keeps_its_beat(found), found


@pytest.mark.parametrize("how", ["fin", "rst", "before_first", "legacy"])
def test_a_client_that_leaves_is_noticed(seen: Seen, how: str) -> None:
    """While the generator is blocked: nothing but a heartbeat is written meanwhile."""
    left: Departure = getattr(seen, how)
    limit = seen.row.rst if how == "rst" else seen.row.fin
    assert is_within(left, limit), left
    assert left.reason == ("disconnect" if how != "legacy" else None)


def test_heartbeats_pass_while_the_generator_is_blocked(seen: Seen) -> None:
    assert are_enough(seen.beats), seen.beats


def test_other_answers_pass_as_well(seen: Seen) -> None:
    assert seen.hello == (200, b"hello")


@pytest.mark.parametrize("name", ["nginx-deaf", "haproxy-without", "varnish-gzip"])
def test_without_what_helps_tokens_come_in_lumps(behind: Behind, name: str) -> None:
    """Otherwise the tests above would show nothing."""
    with behind(name) as site:
        [found] = measured((lambda: spacing(site), comes_in_lumps))
    assert comes_in_lumps(found), found


@pytest.mark.parametrize("inner, held", [("nginx", True), ("nginx-shipped", False)])
def test_nginx_in_front_of_nginx(behind: Behind, inner: str, held: bool) -> None:
    """The inner one takes the header that the outer one needs, unless it is told to pass it."""
    with behind(inner) as site, proxy_server("nginx", site.proxy.address) as outer:
        both = ProxySite(outer, site.app, site.notes, site.upstream)
        expected = comes_in_lumps if held else keeps_its_beat
        [found] = measured((lambda: spacing(both), expected))
    assert expected(found), found


@pytest.mark.parametrize(
    "name, encoding",
    [
        ("apache-deflate", "gzip"), ("apache-shipped", None),
        ("apache-brotli", "br"), ("apache-brotli-shipped", None),
    ],
)
def test_apache_compresses_streams_where_nobody_forbids_it(
    behind: Behind, name: str, encoding: Optional[str]
) -> None:
    with behind(name) as site:
        site.headers["Accept-Encoding"] = encoding or "gzip, br"
        with site.ask("/tokens", n=1) as reader:
            assert reader.headers.get("content-encoding") == encoding


@pytest.mark.parametrize("name, waits", [("varnish", True), ("varnish-shipped", False)])
def test_varnish_lets_equal_requests_wait_in_a_row(behind: Behind, name: str, waits: bool) -> None:
    """The answer to the first begins when its status_hold of 300 ms is over."""
    with behind(name) as site:
        first_byte(site)

        def last_head_after() -> float:
            began, key = time.monotonic(), new_key("-first")

            def head_at() -> float:
                with site.ask("/silent-first", key) as reader:
                    return float(reader.head_at)

            return max(together(head_at, head_at)) - began

        # A busy machine makes it more, not less.
        soonest = min(last_head_after() for _ in range(3))
    assert (soonest >= 0.6) is waits, soonest


SHIPPED = ["nginx-shipped", "haproxy-shipped", "apache-shipped", "varnish-shipped"]


@pytest.mark.parametrize("name", SHIPPED)
def test_heartbeats_outlast_the_patience_of_a_proxy(
    behind: Behind, upstream: ScriptedUpstream, name: str
) -> None:
    """Which is made a second here; the silent upstream itself, behind the same proxy, is cut off."""
    host, port = upstream.url.split("/")[2].split(":")
    with behind(name, patience=1) as site, proxy_server(name, (host, int(port)), patience=1) as bare:
        beats, silent = measured(
            (lambda: heartbeats(site, seconds=2.5), lambda beats: beats.count >= 4),
            (lambda: silence_until_cut(bare), lambda seconds: seconds < 2.5),
        )
    assert beats.count >= 4
    assert silent < 2.5, bare.log()


def silence_until_cut(proxy: Proxy) -> float:
    """Return after how many seconds the proxy ends a stream that has become silent."""
    with proxy.request("/v1/bare", headers={"Accept": "text/event-stream"}) as reader:
        reader.read_until(b"one")
        began = time.monotonic()
        reader.read()
        return time.monotonic() - began


@pytest.mark.parametrize("name", ["nginx-h2-tls", "haproxy-h2-tls", "apache-h2-tls", "varnish-h2-clear"])
def test_http2_connection_outlives_the_stream_that_is_given_up(behind: Behind, name: str) -> None:
    """So what the app notices is the RST_STREAM."""
    with behind(name) as site:
        key = new_key()
        reader = site.ask("/silent", key)
        next(iter(reader))
        reader.reset()
        assert site.noted(key, "end")["reason"] == "disconnect"
        assert reader.is_connected()
