"""What is measured of every server and every proxy: functions that ask, wait and return milliseconds.

Times are those of :func:`time.monotonic`, which all processes of a Linux machine share: the notes
of the app's generators, those of the scripted upstream and those of the client can be compared.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import os
import random
import socket
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple
from urllib.parse import urlencode

from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.testing import ScriptedUpstream, read_stream, send_request, wait_until
from flask_llmstream.testing.scripts import silence, tokens

APPS = Path(__file__).with_name("apps")
#: The app that every server here serves.
SERVED = APPS / "served.py"
#: Seconds between two tokens, and between two heartbeats, of that app.
INTERVAL = 0.1
HEARTBEAT = 0.5

#: How often a figure is measured again that is not as it should be.
_AGAIN = 3

_numbers = itertools.count(1)


class Site:
    """The served app as its clients reach it, and what is known of its inside.

    :param connect: returns a connected socket (TCP, unix or TLS).
    :param notes: the file that ``LLMSTREAM_TEST_NOTES`` names in the server's environment; made
        by :func:`make_notes`.
    :param upstream: made by :func:`make_upstream`.
    :param version: of HTTP that the client speaks: ``1.1`` or ``1.0``.
    :param log: returns what the server has logged, for the reports of failed waits.

    Another protocol is a subclass with another :meth:`ask`.
    """

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        notes: Path,
        upstream: ScriptedUpstream,
        version: str = "1.1",
        log: Callable[[], str] = lambda: "",
    ) -> None:
        self.connect = connect
        self.notes = notes
        self.upstream = upstream
        self.version = version
        self.log = log

    def ask(self, path: str, key: str = "", **query: Any) -> Any:
        """Send a request and return its answer once the head has arrived.

        It has ``asked_at`` and is otherwise a :class:`~flask_llmstream.testing.StreamReader`:
        ``status``, ``headers``, ``head_at``, iteration for (time, bytes), ``complete``,
        ``close()``, ``reset()``.
        """
        target = path + "?" + urlencode(dict(query, key=key, upstream=self.upstream.url + "/" + key))
        sock = self.connect()
        try:
            asked_at = time.monotonic()
            send_request(sock, target, version=self.version)
            reader: Any = read_stream(sock, 10.0)
        except BaseException:
            sock.close()
            raise
        reader.asked_at = asked_at
        return reader

    def noted(self, key: str, what: str, timeout: float = 10.0) -> Dict[str, Any]:
        """Return the first note *what* (``finally`` or ``end``) on *key*, once it is there.

        :raises AssertionError: if it is not after *timeout* seconds; shows the server's log.
        """
        wait_until(
            lambda: self.notes_on(key, what), timeout,
            lambda: f"the note {what!r} on {key}; there are {self.notes_on(key)}; log:\n{self.log()}",
        )
        return self.notes_on(key, what)[0]

    def notes_on(self, key: str, what: Optional[str] = None) -> List[Dict[str, Any]]:
        """Return the notes on *key* so far."""
        found = []
        for line in self.notes.read_text().splitlines():
            note: Dict[str, Any] = json.loads(line)
            if note["key"] == key and what in (None, note["what"]):
                found.append(note)
        return found

    def exchange(self, key: str, timeout: float = 10.0) -> Any:
        """Return what the upstream knows of the request that the generator *key* made."""
        found = self.upstream.wait_for(
            lambda upstream: [each for each in upstream.exchanges if each.path.endswith("/" + key)], timeout
        )
        return found[0]


def make_notes(folder: Path) -> Path:
    """Return a new file for the app's notes that a server of another user may write to."""
    path = folder / "notes"
    path.touch()
    os.chmod(str(path), 0o666)
    return path


def make_upstream() -> ScriptedUpstream:
    """Return an upstream that sends one token and is silent then; before it, for keys with ``-first``."""
    return ScriptedUpstream(
        lambda exchange: [silence()] if "-first" in exchange.path else [tokens("one"), silence()]
    )


def new_key(kind: str = "") -> str:
    """Return a key for the notes of one generator."""
    return f"k{next(_numbers)}{kind}"


class Departure(NamedTuple):
    """How long after its client a blocked generator was left, in ms."""

    #: When the generator's ``finally`` ran.
    seen: float
    #: When the upstream saw the end of its connection.
    upstream_closed: float
    #: The reason that ``on_end`` was told; ``None`` in routes that know nothing of it.
    reason: Optional[str]


class Spacing(NamedTuple):
    """How well the distance of tokens was kept on their way, in ms."""

    #: The largest deviation of a gap between two arrivals from the gap at the source.
    worst: float
    #: Tokens that arrived together with the one before.
    joined: int
    #: The gaps.
    gaps: List[float]


class Beats(NamedTuple):
    """Comments that came while the generator was blocked."""

    count: int
    #: Between two comments, in ms.
    gaps: List[float]


class End(NamedTuple):
    """What became of a stream whose server was told to stop."""

    #: ``done:<reason>``, ``failed:<code>``, or ``None`` where the stream was cut without a word.
    terminal: Optional[str]
    #: Whether the body ended as HTTP wants it; where that means "with the connection", always.
    complete: bool
    #: From the signal to the end of the connection, in ms.
    took: float
    #: Whether the generator's ``finally`` ran, and the reason that ``on_end`` was told.
    cleaned_up: bool
    reason: Optional[str]


def events(pairs: Any) -> Iterator[Tuple[float, Any]]:
    """Yield (arrival time, event) for (arrival time, bytes)."""
    decoder = SSEDecoder()
    for at, data in pairs:
        for event in decoder.feed(data):
            yield at, event


def _is_text(event: Any) -> bool:
    return event.event is None and event.data.startswith('{"text"')


def together(*calls: Callable[[], Any]) -> List[Any]:
    """Return what *calls* return, made at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        return [each.result() for each in [pool.submit(call) for call in calls]]


def measured(*wanted: Tuple[Callable[[], Any], Callable[[Any], Any]], at_once: bool = True) -> List[Any]:
    """Return what was measured, all of it at the same time at first.

    What is not as it should be is measured again, alone and up to three times: a machine that is busy for a
    moment makes figures worse, never better, and what is wrong with a server makes them so each time.

    :param wanted: what measures, and what tells whether the result is as it should be.
    :param at_once: false for a server that answers one request at a time.
    """
    calls = [measure for measure, _ in wanted]
    results = together(*calls) if at_once else [call() for call in calls]
    for number, (measure, is_good) in enumerate(wanted):
        for _ in range(_AGAIN):
            if is_good(results[number]):
                break
            results[number] = measure()
    return results


def free_port() -> int:
    """Return a port that nobody uses, nor gets by chance until a server listens there.

    That is, one below those that the system gives to whoever connects, or wants any.
    """
    while True:
        port = random.SystemRandom().randrange(10240, 32768)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def first_byte(site: Site, path: str = "/tokens") -> float:
    """Return how long the first byte of the body of a stream took, whose first token is ready at once.

    Ask once in vain: the first request of a process pays for what later ones find ready.

    With ``/silent-first`` the app's ``status_hold`` (300 ms) is part of it.
    """
    reader = site.ask(path, new_key("-first" if path.endswith("-first") else ""), n=2, interval=0)
    try:
        at, _ = next(iter(reader))
        return 1000 * (at - reader.asked_at)
    finally:
        reader.close()


def spacing(site: Site, path: str = "/tokens", count: int = 8) -> Spacing:
    """Return how well *count* tokens, 100 ms from one to the next, keep their distance."""
    reader = site.ask(path, new_key(), n=count, interval=INTERVAL)
    try:
        times = [at for at, event in events(reader) if _is_text(event)]
    finally:
        reader.close()
    assert len(times) == count, (len(times), site.log())
    gaps = [1000 * (later - earlier) for earlier, later in zip(times, times[1:])]
    worst = max(abs(gap - 1000 * INTERVAL) for gap in gaps)
    return Spacing(worst, sum(gap < 1.0 for gap in gaps), gaps)


def departure(
    site: Site, path: str = "/silent", reset: bool = False, timeout: float = 10.0
) -> Departure:
    """Close the connection of a client whose generator is blocked, and say who noticed when.

    :param path: ``/silent``: one token was sent before; ``/silent-first``: none.
    :param reset: leave with a RST, as a crashed client; otherwise with a FIN.
    :raises AssertionError: if nobody notices within *timeout* seconds.
    """
    key = new_key("-first" if path.endswith("-first") else "")
    reader = site.ask(path, key)
    exchange = site.exchange(key)
    if path.endswith("-first"):
        next(iter(reader))  # the opening comment: the stream has begun
    else:
        _until_text(reader)
    # Long enough for the generator to be blocked again, and in the middle between two heartbeats.
    time.sleep(HEARTBEAT / 2)
    left_at = time.monotonic()
    reader.reset() if reset else reader.close()
    seen = site.noted(key, "finally", timeout)["at"]
    site.upstream.wait_for(lambda _: exchange.closed_at is not None, timeout)
    reason = None if "legacy" in path else site.noted(key, "end", timeout)["reason"]
    return Departure(1000 * (seen - left_at), 1000 * (exchange.closed_at - left_at), reason)


def heartbeats(site: Site, path: str = "/silent", seconds: float = 1.8) -> Beats:
    """Return the comments that come within *seconds* while the generator is blocked."""
    key = new_key("-first" if path.endswith("-first") else "")
    reader = site.ask(path, key)
    times = []
    try:
        deadline = time.monotonic() + seconds
        reader.sock.settimeout(seconds)
        try:
            for at, data in reader:
                times += [at] * sum(line.startswith(b":") for line in data.split(b"\n"))
                if time.monotonic() >= deadline:
                    break
                reader.sock.settimeout(max(0.01, deadline - time.monotonic()))
        except socket.timeout:
            pass
    finally:
        reader.close()
    return Beats(len(times), [1000 * (later - earlier) for earlier, later in zip(times, times[1:])])


def graceful_end(
    site: Site, stop: Callable[[], Any], path: str = "/silent", timeout: float = 10.0, count: int = 600
) -> End:
    """Begin a stream, call *stop*, which asks the server to end, and say what became of the stream.

    :param path: ``/silent``, or ``/tokens`` for one that goes on for *count* tokens.
    :param timeout: seconds that the server may take.
    """
    key = new_key()
    reader = site.ask(path, key, n=count, interval=INTERVAL)
    try:
        _until_text(reader)
        stopped_at = time.monotonic()
        stop()
        terminal, cut = None, False
        decoder = SSEDecoder()
        try:
            # Heartbeats may go on for ever.
            for at, data in reader:
                for event in decoder.feed(data):
                    if event.event in ("done", "failed"):
                        facts = json.loads(event.data)
                        terminal = f"{event.event}:{facts.get('code', facts.get('reason'))}"
                if at > stopped_at + timeout:
                    break
                reader.sock.settimeout(max(0.01, stopped_at + timeout - time.monotonic()))
        except OSError:
            cut = True
        took = 1000 * (time.monotonic() - stopped_at)
        # Without a last word the process was killed, and a note will hardly come.
        with contextlib.suppress(() if terminal else AssertionError):
            site.noted(key, "finally", timeout if terminal else 0.5)
        ends = [note["reason"] for note in site.notes_on(key, "end")]
        return End(
            terminal, reader.complete and not cut, took, bool(site.notes_on(key, "finally")),
            ends[0] if ends else None,
        )
    finally:
        reader.close()


def _until_text(reader: Any) -> None:
    for _, event in events(reader):
        if _is_text(event):
            return
    raise AssertionError("the stream ended before its first token")
