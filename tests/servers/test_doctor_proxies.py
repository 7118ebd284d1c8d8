"""The doctor in front of real proxies: the right hop, the right cause, and no false alarm."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

import pytest
from hops import Hop as FaultyHop
from hops import (
    buffering,
    caching,
    cutting,
    deaf,
    delaying,
    idle_cut,
    silencing,
    speaking_http10,
    store_and_forward,
)
from proxies import proxy_server

from flask_llmstream.doctor.analysis import Look, findings_of
from flask_llmstream.doctor.doctor_command import hops_of
from flask_llmstream.doctor.drawing import plain_table
from flask_llmstream.doctor.examining import Plan, examine
from flask_llmstream.doctor.findings import Finding
from flask_llmstream.testing import gunicorn_server

pytestmark = [pytest.mark.live, pytest.mark.servers, pytest.mark.checkout]

PROBED = Path(__file__).resolve().parent.parent / "doctor" / "probed.py"
Address = Tuple[str, int]
Start = Callable[[Address], ContextManager[Any]]


def proxy(name: str, patience: int = 60) -> Start:
    """Return what starts a real proxy in front of an address."""
    return lambda app: proxy_server(name, app, patience=patience)


def written(handler: Any) -> Start:
    """Return what starts a hop of hops.py there."""
    return lambda app: FaultyHop(app, handler)


class Case(NamedTuple):
    """A hop with a fault."""

    #: The name that the hop is given.
    name: str
    start: Start
    #: What must be found, and nothing else but notes.
    codes: FrozenSet[str]
    #: What the remedy must say.
    change: str
    #: What is read; the probe where nothing is said.
    path: str = ""
    idle: float = 0.0
    long: float = 0.0
    #: What is in front of it, as third hop.
    third: str = "haproxy-shipped"


def case(name: str, start: Start, codes: str, change: str, **more: Any) -> Case:
    return Case(name, start, frozenset(codes.split()), change, **more)


FAULTS: List[Case] = [
    case("nginx buffers", proxy("nginx-deaf"), "response-buffering http-1.0", "proxy_buffering off;"),
    case("nginx gzip buffers", proxy("nginx-deaf-gzip"), "compression", "gzip off;"),
    case("nginx gzip", proxy("nginx-gzip"), "compression", "gzip off;"),
    case("nginx, no probe", proxy("nginx"), "response-buffering", "proxy_buffering off;", path="/plain"),
    case("nginx impatient", proxy("nginx-shipped", 2), "idle-timeout", "proxy_read_timeout", idle=4),
    case("haproxy", proxy("haproxy-without"), "packet-delay", "option http-no-delay", third="nginx-shipped"),
    case("haproxy impatient", proxy("haproxy-shipped", 2), "idle-timeout", "timeout server", idle=4,
         third="nginx-shipped"),
    case("apache HTTP/1.0", proxy("apache-http10"), "http-1.0", "downgrade-1.0"),
    case("apache deflate", proxy("apache-deflate"), "compression", "no-gzip"),
    case("varnish gzip", proxy("varnish-gzip"), "compression", "do_gzip = false"),
    case("scanner", written(store_and_forward), "store-and-forward", "scan"),
    case("scanner, no probe", written(store_and_forward), "store-and-forward", "scan", path="/plain"),
    case("buffer of 256", written(buffering(256)), "response-buffering", "buffering"),
    case("buffer of 4096", written(buffering(4096)), "response-buffering", "buffering"),
    case("buffer of 65536", written(buffering(65536)), "response-buffering", "buffering"),
    case("old proxy", written(speaking_http10), "http-1.0", "HTTP/1.1"),
    case("idle cut", written(idle_cut(3.0)), "idle-timeout", "limit on silence", idle=5),
    case("total cut", written(cutting(5.0)), "total-timeout", "LLMSTREAM_MAX_DURATION", long=7),
    case("deaf to departures", written(deaf), "departure-unseen", "close its connection"),
    case("eats comments", written(silencing), "heartbeats-lost", "colon"),
]

HEALTHY: Dict[str, List[Start]] = {
    "gunicorn gevent": [],
    "nginx": [proxy("nginx")],
    "nginx, HTTP/1.1": [proxy("nginx-http11")],
    "nginx, shipped": [proxy("nginx-shipped")],
    "haproxy, shipped": [proxy("haproxy-shipped")],
    "apache": [proxy("apache")],
    "apache, shipped": [proxy("apache-shipped")],
    "varnish": [proxy("varnish")],
    "varnish, shipped": [proxy("varnish-shipped")],
    "nginx in front of nginx": [proxy("nginx-shipped"), proxy("nginx")],
    "a link of 200 ms with jitter": [written(delaying(0.2, 0.08))],
    "the same in front of nginx": [proxy("nginx-shipped"), written(delaying(0.2, 0.08, seed=2))],
}


#: Where only the outermost of two proxies is given.
SEARCHED = ("nginx buffers", "haproxy", "nginx impatient")


class Seen(NamedTuple):
    """What was seen and found."""

    looks: List[Look]
    findings: List[Finding]


def diagnose(named: List[Tuple[str, str]], case: Optional[Case] = None, find: bool = False) -> Seen:
    path = case.path if case else ""
    hops = hops_of([], [f"{name}={url}{path}" for name, url in named], "/llmstream", "")
    idle, long = (case.idle, case.long) if case else (0.0, 0.0)
    looks = examine(Plan(hops, idle=idle, long=long, find=find))
    return Seen(looks, findings_of(looks))


class Diagnosis(NamedTuple):
    """A look that somebody is about to take, and whether it shows what it should."""

    look: Callable[[], Seen]
    is_right: Callable[[Seen], bool]
    first: concurrent.futures.Future[Seen]

    def result(self) -> Seen:
        """Return what was seen; at a second look, alone, where the first was wrong.

        While all look at the same time, one of them may get too little of the machine.
        """
        seen = self.first.result()
        return seen if self.is_right(seen) else self.look()


class Found(NamedTuple):
    """What was found of every set-up."""

    alone: Dict[str, Seen]
    second: Dict[str, Seen]
    healthy: Dict[str, Seen]
    #: The outermost address alone was given, and the app behind it looked for.
    searched: Dict[str, Seen]
    #: Both looks through a cache.
    cached: List[Seen]


@pytest.fixture(scope="module")
def found() -> Iterator[Found]:
    """Everything at the same time: most of it is waiting."""
    with contextlib.ExitStack() as stack:
        app = stack.enter_context(gunicorn_server(PROBED))
        threads = stack.enter_context(gunicorn_server(PROBED, "gthread", threads=8))
        pool = concurrent.futures.ThreadPoolExecutor(36)
        stack.callback(pool.shutdown)
        alone, second, healthy, searched = {}, {}, {}, {}

        def begin(is_right: Callable[[Seen], bool], *args: Any, **options: Any) -> Diagnosis:
            look = functools.partial(diagnose, *args, **options)
            return Diagnosis(look, is_right, pool.submit(look))

        for each in FAULTS:
            hop = stack.enter_context(each.start(app.address))
            third = stack.enter_context(proxy_server(each.third, hop.address))
            named = [("app", app.url), (each.name, hop.url), (f"third {each.third}", third.url)]
            blames = functools.partial(blames_alone, each.codes, each.name)
            alone[each.name] = begin(blames, named[1:2], each)
            second[each.name] = begin(blames, named, each)
            if each.name in SEARCHED:
                blames = functools.partial(blames_alone, each.codes, "site")
                searched[each.name] = begin(blames, [("site", third.url)], each, find=True)
        for name, starts in HEALTHY.items():
            named, address = [("app", app.url)], app.address
            for number, start in enumerate(starts):
                hop = stack.enter_context(start(address))
                named.append((f"hop {number}", hop.url))
                address = hop.address
            healthy[name] = begin(is_healthy, named)
        healthy["gunicorn gthread"] = begin(is_healthy, [("app", threads.url)])
        cache = stack.enter_context(FaultyHop(app.address, caching()))
        cached = pool.submit(lambda: [diagnose([("cache", cache.url)]) for _ in range(2)])
        runs = (alone, second, healthy, searched)
        kinds = ({name: each.result() for name, each in all.items()} for all in runs)
        yield Found(*kinds, cached.result())


def blamed(findings: List[Finding]) -> Dict[str, str]:
    """Return who is blamed for what, notes left out."""
    named = [finding for finding in findings if finding.severity != "note"]
    return {finding.code: finding.subject.partition(" (")[0] for finding in named}


def blames_alone(codes: FrozenSet[str], name: str, seen: Seen) -> bool:
    return blamed(seen.findings) == dict.fromkeys(codes, name)


def is_healthy(seen: Seen) -> bool:
    return not blamed(seen.findings) and all(look.rhythm.kind == "on time" for look in seen.looks)


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.name)
def test_fault_is_found_alone_and_as_the_second_of_three(found: Found, case: Case) -> None:
    for seen in (found.alone[case.name], found.second[case.name]):
        said = blamed(seen.findings)
        print(case.name, said)
        assert said == dict.fromkeys(case.codes, case.name), plain_table(seen.looks)
        worst = next(each for each in seen.findings if each.code in case.codes)
        assert any(case.change in each.change for each in seen.findings), worst


@pytest.mark.parametrize("name", SEARCHED)
def test_app_is_found_behind_two_proxies_and_cleared(found: Found, name: str) -> None:
    """A single address says whether the app or what stands before it holds the stream."""
    seen = found.searched[name]
    expected = next(each for each in FAULTS if each.name == name)
    app, site = seen.looks
    assert app.seen.hop.found and app.rhythm.kind == "on time" and "is served at 127.0.0.1:" in site.search
    assert app.departure is not None and app.departure.after is not None
    assert blamed(seen.findings) == dict.fromkeys(expected.codes, "site"), plain_table(seen.looks)
    assert any(expected.change in each.change for each in seen.findings), seen.findings


@pytest.mark.parametrize("name", [*HEALTHY, "gunicorn gthread"])
def test_healthy_set_up_raises_no_alarm(found: Found, name: str) -> None:
    seen = found.healthy[name]
    assert not blamed(seen.findings), (seen.findings, plain_table(seen.looks))
    assert all(look.rhythm.kind == "on time" for look in seen.looks)


def test_cache_is_found_when_it_is_asked_again(found: Found) -> None:
    first, second = found.cached
    assert not blamed(first.findings)
    assert blamed(second.findings)["cache"] == "cache"


def test_table(found: Found, capsys: Any) -> None:
    """Show it all."""
    lines = [f"{'hop':<22} {'alone':<34} second of three"]
    for each in FAULTS:
        alone, second = (blamed(all[each.name].findings) for all in (found.alone, found.second))
        said = ", ".join(f"{code} at {hop}" for code, hop in second.items())
        lines.append(f"{each.name:<22} {', '.join(alone):<34} {said}")
    for name, seen in found.healthy.items():
        worst = max(look.rhythm.late or 0.0 for look in seen.looks)
        notes = ", ".join(finding.code for finding in seen.findings) or "-"
        lines.append(f"{name:<30} healthy; latest token {1000 * worst:.0f} ms; notes: {notes}")
    with capsys.disabled():
        print("", *lines, sep="\n")
    assert len(lines) == 1 + len(FAULTS) + len(found.healthy)
