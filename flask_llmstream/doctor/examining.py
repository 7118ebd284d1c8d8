"""Looks at a stream through each hop: what is asked of whom, and in which order.

Decisions
    1. One stream after the other: a worker that serves one request at a time would make the second wait,
       and that would look like a fault of the way. Only long silences are waited for together.
    2. Whether a client's leaving has reached the app is asked through the first hop, which is the surest.
    3. The app is looked for behind the first hop. Where it is found it is read before the rest, as a hop that
       was given; where it cannot be read there after all, only that is said.
"""

from __future__ import annotations

import concurrent.futures
import json
import secrets
import socket
import time
from typing import Any, Callable, List, NamedTuple, Optional, Sequence
from urllib.parse import urlsplit, urlunsplit

from flask_llmstream.doctor.analysis import Departure, Look
from flask_llmstream.doctor.client import answer_of, observe
from flask_llmstream.doctor.connecting import Request, open_socket, with_query
from flask_llmstream.doctor.observations import Hop
from flask_llmstream.doctor.searching import search

__all__ = ["Plan", "examine", "probe_url"]

#: Seconds for which the app is asked whether it has noticed a departure.
_PATIENCE = 10.0
#: Seconds between two questions: a tenth of what has passed, within these bounds.
_SOONEST, _LATEST = 0.02, 0.5
#: The same where heartbeats are held up on the way: it will hardly be.
_LITTLE_PATIENCE = 2.0


class Plan(NamedTuple):
    """What to look at."""

    hops: Sequence[Hop]
    request: Request = Request()
    #: Seconds of a silence, and of a stream, that each hop should survive; 0 leaves that out.
    idle: float = 0.0
    long: float = 0.0
    #: Whether to see if a client's leaving reaches the app.
    leave: bool = True
    #: Whether to look for the app behind the first hop.
    find: bool = True


def examine(plan: Plan, say: Callable[[str], Any] = lambda text: None) -> List[Look]:
    """Return what was seen through each hop.

    :param say: is told what is being done.
    """
    looks: List[Look] = []
    for hop in plan.hops:
        looks.append(_read(hop, plan, say))
        if plan.find and len(looks) == 1:
            looks = _with_app(looks[0], plan, say)
    probes = [number for number, look in enumerate(looks) if look.seen.is_probe]
    if plan.leave:
        for number in probes:
            say(f"leaving through {looks[number].seen.hop.name}")
            held = looks[number].rhythm.kind in ("buffered", "stored")
            patience = _LITTLE_PATIENCE if held else _PATIENCE
            left = _leave(looks[number].seen.hop, looks[probes[0]].seen.hop, plan.request, patience)
            looks[number] = looks[number]._replace(departure=left)
    for kind in ("idle", "long"):
        seconds = getattr(plan, kind)
        if not (seconds and probes):
            continue
        say(f"waiting {seconds:g} s")
        request = plan.request._replace(timeout=seconds + 10.0, limit=seconds + 20.0)
        hops = [looks[number].seen.hop for number in probes]
        asked = [hop._replace(url=with_query(hop.url, **{kind: f"{seconds:g}"})) for hop in hops]
        with concurrent.futures.ThreadPoolExecutor(len(asked)) as pool:
            for number, found in zip(probes, pool.map(lambda hop: observe(hop, request.to(hop)), asked)):
                looks[number] = looks[number]._replace(**{kind: found, f"{kind}_seconds": seconds})
    return looks


def probe_url(url: str, prefix: str, token: str) -> str:
    """Return the URL to read: that of the probe where *url* names a site alone.

    :param prefix: ``LLMSTREAM_URL_PREFIX`` of the app.
    :param token: opens the probe; it is sent to probes only.
    """
    parts = urlsplit(url)
    if parts.path in ("", "/"):
        parts = parts._replace(path=prefix.rstrip("/") + "/probe")
    whole = urlunsplit(parts._replace(fragment=""))
    return with_query(whole, token=token) if token and parts.path.endswith("/probe") else whole


def _read(hop: Hop, plan: Plan, say: Callable[[str], Any]) -> Look:
    """Return what is seen of one stream through *hop*."""
    say(f"reading through {hop.name}")
    nonce = secrets.token_hex(8)
    is_probe = urlsplit(hop.url).path.endswith("/probe")
    url = with_query(hop.url, nonce=nonce) if is_probe else hop.url
    seen = observe(hop._replace(url=url), plan.request.to(hop))
    seen.hop = hop
    return Look(seen, nonce=nonce)


def _with_app(first: Look, plan: Plan, say: Callable[[str], Any]) -> List[Look]:
    """Return *first*, behind the app itself where that is found; it says what came of the search."""
    if not first.seen.is_probe or not first.is_fresh:
        return [first]
    say(f"looking for the app behind {first.seen.hop.name}")
    found = search(first.seen, plan.request, [hop.name for hop in plan.hops])
    if found.hop is None:
        return [first._replace(search=found.said)]
    app = _read(found.hop, plan, say)
    if app.seen.error is None and app.seen.is_probe and app.is_fresh:
        return [app, first._replace(search=found.said)]
    why = app.seen.error or "answers with something else"
    said = f"comes from an app at {urlsplit(found.hop.url).netloc}, which {why} when it is asked there"
    return [first._replace(search=said)]


def _leave(hop: Hop, first: Hop, request: Request, patience: float) -> Optional[Departure]:
    """Begin a stream, close the connection, and return when the app knew; ``None`` where it does not say."""
    id = secrets.token_hex(8)
    try:
        sock = open_socket(with_query(hop.url, leave=id), request.to(hop))
        try:
            _until_event(sock, request.timeout)
        finally:
            sock.close()
        left_at = time.monotonic()
        while True:
            status, body = answer_of(with_query(first.url, left=id), request.to(first))
            took = time.monotonic() - left_at
            state = json.loads(body.decode("ascii", "replace"))["left"] if status == 200 else None
            if state is None:
                return None
            if state != "open":
                return Departure(took, took)
            if took > patience:
                return Departure(None, took)
            time.sleep(min(_LATEST, max(_SOONEST, took / 10)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _until_event(sock: Any, timeout: float) -> None:
    """Read up to the first event; behind a hop that holds it back, for a while."""
    data, deadline = b"", time.monotonic() + min(timeout, 1.5)
    while b"event: probe" not in data:
        left = deadline - time.monotonic()
        if left <= 0:
            return
        sock.settimeout(left)
        try:
            more = sock.recv(65536)
        except socket.timeout:
            return
        if not more:
            raise OSError("the stream has ended")
        data += more
