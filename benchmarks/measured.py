"""Measures what one stream costs, for :mod:`benchmarks.capacity`.

``python -m benchmarks.measured --check --json docs/scaling.json``

One worker of gunicorn with gevent runs on a core of its own, with everything at its default and a real
Redis; clients and model have the other core. Each figure is the median of several rounds, and is given with
the lowest and the highest. CPU is that of the worker, user and system; what the kernel does for a loopback
connection is among it, TLS is not, nor what a real network card would ask for.

Decisions
    1. What is added by something is the difference of two measurements in the same round.
    2. Some costs are for each event, others for each second in which there is any: two paces, 10 and 50
       events a second, tell them apart.
    3. Silence is measured with a heartbeat every half second, and with none; what one costs is then reckoned
       at the interval that is the default.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, TypeVar

import flask_llmstream
from benchmarks.capacity import Figures, Load, Machine, carried
from benchmarks.cluster_bus import bus
from benchmarks.one_worker import Redis, Site, Used, kernel_bytes, redis_server, site
from benchmarks.peers.loop import Client
from benchmarks.processes import CORES, machine
from flask_llmstream.settings import SETTINGS

__all__ = ["Sizes", "main", "measure"]

#: Paces that are compared, in events a second.
_SLOW, _FAST = 10.0, 50.0
#: Pace of a model, at which the check is done.
_PACE = 30.0
#: Events that somebody gets who comes back.
_REST = 300
#: The same of somebody who was away for a moment.
_FEW = 10
#: Which part of the pace a worker must keep to carry its streams.
_KEPT = 0.97
#: More streams than were predicted by this factor are not tried.
_FAR = 2.5
#: How often a step is tried at most; twice where a worker could have so much of its core.
_ATTEMPTS = 6
_FREE = 0.9

_Row = Dict[str, float]
_Found = TypeVar("_Found")


class Sizes(NamedTuple):
    """How much work is done."""

    rounds: int = 4
    #: Streams at a pace, and the seconds for which they are measured.
    streams: int = 200
    #: The same for what an event costs a worker that is about as busy as it should be: it costs an idle one
    #: half as much again.
    busy_streams: int = 400
    seconds: float = 1.5
    #: Streams that begin and end, so many at once.
    starts: int = 200
    at_once: int = 20
    #: Silent streams, and the seconds for which they are watched.
    silent: int = 500
    silent_seconds: float = 2.0
    #: Readers who come back for a rest, and those who follow what goes on.
    backs: int = 30
    followers: int = 50
    #: Messages on the bus of a Redis Cluster.
    messages: int = 20000
    #: Relayed streams at which memory is looked at; in so many rounds.
    few: int = 500
    many: int = 1500
    memory_rounds: int = 3
    #: The check: seconds of each step, by which part of the prediction it rises, streams for the memory.
    step_seconds: float = 1.5
    step: float = 0.05
    held: int = 2000


_QUICK = Sizes(
    rounds=1, seconds=0.4, starts=40, silent=150, silent_seconds=0.6, backs=10, followers=15, messages=5000,
    few=100, many=300, memory_rounds=1, step_seconds=0.6, step=0.2, held=400,
)


def _line(slow: float, fast: float) -> Tuple[float, float]:
    """Return the cost of a second and of an event, from those of a second at two paces."""
    event = max(0.0, (fast - slow) / (_FAST - _SLOW))
    second = slow - _SLOW * event
    return (second, event) if second >= 0 else (0.0, fast / _FAST)


def _streaming(at: Site, sizes: Sizes) -> _Row:
    """What events cost: of a view, of a provider, in the log."""
    count, kept = sizes.streams, "&resumable=1"
    busy = at.paced(sizes.busy_streams, _FAST, sizes.seconds)
    fast, slow = (at.paced(count, rate, sizes.seconds) for rate in (_FAST, _SLOW))
    alone, relayed = (at.paced(count // 2, _FAST, sizes.seconds, relayed=each) for each in (False, True))
    logged_fast, logged_slow = (at.paced(count, rate, sizes.seconds, kept) for rate in (_FAST, _SLOW))

    def added(logged: Used, plain: Used, rate: float) -> float:
        return max(0.0, logged.us / logged.events - plain.us / plain.events) * rate

    def each_second(name: str, used: Used, rate: float) -> float:
        # By events, not by the clock: what has not been sent in time has not been written either.
        return float(getattr(used, name)) / used.events * rate

    row = {
        "event_us": busy.us / busy.events,
        "read_us": max(0.0, relayed.us / relayed.events - alone.us / alone.events),
        "event_bytes": _event_bytes(at, ""),
        "id_bytes": _event_bytes(at, kept) - _event_bytes(at, ""),
        "redis_second_commands": statistics.mean(
            each.redis_commands / each.seconds / count for each in (logged_slow, logged_fast)
        ),
    }
    row["logged_second_us"], row["logged_us"] = _line(
        added(logged_slow, slow, _SLOW), added(logged_fast, fast, _FAST)
    )
    for unit in ("us", "bytes"):
        row[f"redis_second_{unit}"], row[f"redis_event_{unit}"] = _line(
            each_second(f"redis_{unit}", logged_slow, _SLOW), each_second(f"redis_{unit}", logged_fast, _FAST)
        )
    return row


def _event_bytes(at: Site, options: str) -> float:
    short, long = (
        at.length(f"/steady?clock={time.monotonic():.6f},500&count={count}{options}") for count in (5, 65)
    )
    return (long - short) / 60


def _starting(at: Site, sizes: Sizes) -> _Row:
    """What a stream costs that says next to nothing, calls a provider for it, and ends."""
    found: List[Used] = []
    memory = 0.0
    for options in ("", "&resumable=1"):
        memory = at.redis.memory()
        clients: List[Client] = []
        before = at.used([])
        while len(clients) < sizes.starts:
            some = [at.client(f"/relay?count=1&rate=0{options}") for _ in range(sizes.at_once)]
            at.all_ended(some)
            clients += some
        at.settle()
        found.append(at.used(clients).since(before))
        memory = (at.redis.memory() - memory) / len(clients)
    plain, logged = found
    count = len(clients)
    return {
        "start_us": plain.us / count,
        "log_start_us": max(0.0, logged.us - plain.us) / count,
        "redis_start_commands": logged.redis_commands / count,
        "redis_start_us": logged.redis_us / count,
        "redis_start_bytes": logged.redis_bytes / count,
        "redis_start_memory": memory,
    }


def _silent(at: Site, sizes: Sizes) -> _Row:
    """What a stream costs that says nothing."""
    heard, found = 0, []

    def hear(client: Client) -> None:
        nonlocal heard
        heard += 1

    for interval in (0.5, 3600.0):
        clients = [at.client(f"/idle?heartbeat={interval}", on_read=hear) for _ in range(sizes.silent)]
        at.until(lambda: all(each.events for each in clients), 60, "the first events")
        at.loop.run(0.5)
        before = heard
        used = at.measure(clients, sizes.silent_seconds)
        found.append((used.us / used.seconds / sizes.silent, (heard - before) / used.seconds / sizes.silent))
        at.leave()
    (with_all, beats), (without, _) = found
    if beats < 0.5:
        raise RuntimeError(f"this machine is too busy: {beats:.1f} heartbeats/s came, expected 2")
    (default,) = (setting.default for setting in SETTINGS if setting.name == "heartbeat_interval")
    return {"idle_us": without + max(0.0, with_all - without) / beats / float(default)}


def _coming_back(at: Site, sizes: Sizes) -> _Row:
    """What it costs to send the rest of a stream: all of it, and the last events."""
    kept = [at.keep(f"/hot?count={_REST}&resumable=1") for _ in range(sizes.backs)]
    longer, _ = at.keep(f"/hot?count={5 * _REST}&resumable=1")
    at.settle()
    sent = at.redis.sent()
    back = _readers(at, [place for place, _ in kept], _REST)
    sent = at.redis.sent() - sent
    few = _readers(at, [f"{place}?after={ids[-1 - _FEW]}" for place, ids in kept], _FEW)
    return {
        "back_us": back.us / sizes.backs,
        "return_us": few.us / sizes.backs,
        "redis_back_commands": back.redis_commands / sizes.backs,
        "redis_back_us": back.redis_us / sizes.backs,
        "redis_back_bytes": sent / sizes.backs,
        "redis_event_memory": (at.redis.size(longer) - at.redis.size(kept[0][0])) / (4 * _REST),
    }


def _readers(at: Site, places: List[str], least: int) -> Used:
    """Return what it takes to send what is behind *places*, one after the other."""
    clients: List[Client] = []
    before = at.used([])
    for place in places:
        clients.append(at.client(place))
        at.all_ended(clients[-1:])
    at.settle()
    used = at.used(clients).since(before)
    if not least <= used.events / len(places) <= least + 3:
        raise RuntimeError(f"who came back got {used.events / len(places):g} events, expected {least}")
    return used


def _following(at: Site, sizes: Sizes, row: _Row) -> _Row:
    """What an event costs in addition when its reader has come back and gets it by way of the log."""
    count = int(_PACE * (0.02 * sizes.followers + 2 * sizes.seconds + 1.5))
    clients: List[Client] = []
    for number in range(sizes.followers):
        clock = f"{time.monotonic() + number / sizes.followers / _PACE:.6f},{_PACE:g}"
        clients.append(at.client(at.begin(f"/steady?clock={clock}&count={count}&resumable=1")))
    at.until(lambda: all(each.events for each in clients), 60, "the first events")
    at.loop.run(0.5)
    used = at.measure(clients, 2 * sizes.seconds)
    at.all_ended(clients)
    at.settle()
    plain = row["event_us"] + row["logged_us"] + row["logged_second_us"] / _PACE
    commands = used.redis_commands / used.events - row["redis_second_commands"] / _PACE
    redis = used.redis_us / used.events - row["redis_second_us"] / _PACE - row["redis_event_us"]
    return {
        "followed_us": max(0.0, used.us / used.events - plain),
        "redis_followed_commands": max(0.0, commands),
        "redis_followed_us": max(0.0, redis),
    }


def _hold(at: Site, count: int) -> None:
    """Open so many streams of a model that has said one token and thinks."""
    clients: List[Client] = []
    while len(clients) < count:
        some = [
            at.client(f"/relay?stream={len(clients) + number}&count=1&rate=1000&hold=1")
            for number in range(min(100, count - len(clients)))
        ]
        at.until(lambda: all(each.events for each in some), 60, "the first tokens")
        clients += some
    at.settle()


def _occupied(redis: Redis, sizes: Sizes) -> _Row:
    """What a worker occupies, and a stream in it, when it is new: memory that was used once is not given
    back. And what a message costs in a cluster.
    """
    with site(redis) as at:
        _hold(at, 10)  # what is loaded or made but once is not the stream's
        at.leave()
        empty, files = at.memory(), at.files()
        _hold(at, sizes.few)
        few = at.memory()
        _hold(at, sizes.many - sizes.few)
        each = (at.memory() - few) / (sizes.many - sizes.few) / 1024
        opened = (at.files() - files) / sizes.many
    passed_on = bus(sizes.messages)
    return {
        "redis_bus_us": passed_on.sent_us + passed_on.received_us,
        "worker_mib": empty / 2**20, "stream_kib": each, "stream_files": opened,
        "kernel_kib": (kernel_bytes() or 0) / 1024 * opened,
    }


def _raised(at: Site, sizes: Sizes, predicted: float) -> Dict[str, Any]:
    """Open more and more streams until the worker does not keep their pace."""
    clients: List[Client] = []
    steps: List[Dict[str, float]] = []
    carries, free, part = 0, 1.0, 0.2
    while part < _FAR:
        while len(clients) < part * predicted:
            clock = f"{time.monotonic():.6f},{_PACE:g}"
            clients.append(at.client(f"/steady?clock={clock}&count=100000000"))
        if not _carries(at, clients, sizes, steps):
            break
        carries, free = len(clients), steps[-1]["free"]
        part += sizes.step if part >= 0.7 else 2 * sizes.step
    at.leave()
    if not carries:
        raise RuntimeError(
            f"this machine is too busy: the worker could have {steps[-1]['free']:.0%} of its core; end what"
            " else runs"
        )
    return {"measured": carries, "steps": steps, "free": free}


def _carries(at: Site, clients: List[Client], sizes: Sizes, steps: List[Dict[str, float]]) -> bool:
    """Return whether the worker keeps the pace in one of some attempts, more where others were in the way."""
    for attempt in range(_ATTEMPTS):
        if _keeps(at, clients, sizes, steps):
            return True
        if attempt and steps[-1]["free"] > _FREE:
            break
    return False


def _keeps(at: Site, clients: List[Client], sizes: Sizes, steps: List[Dict[str, float]]) -> bool:
    """Return whether the worker keeps the pace of *clients*; note how well."""
    at.until(lambda: all(each.events for each in clients), 60, "the first events")
    at.loop.run(0.3)
    waited = at.waited()
    used = at.measure(clients, sizes.step_seconds)
    kept = used.events / used.seconds / len(clients) / _PACE
    steps.append({
        "streams": len(clients), "kept": round(kept, 3), "cpu": round(used.us / used.seconds / 1e6, 3),
        # Which part of its core the worker could have had.
        "free": round(1 - (at.waited() - waited) / used.seconds, 3),
    })
    return kept >= _KEPT


def check(redis: Redis, sizes: Sizes, figures: Figures) -> Dict[str, Any]:
    """Compare what the model says of one worker to what one does."""
    load = Load(streams=1, rate=_PACE, length=1e9, relayed=0)
    whole = Machine(busy=1.0, worker_streams=10**9, worker_files=10**9)
    predicted, _ = carried(load, figures, whole)
    with site(redis) as at:
        at.paced(sizes.streams, _FAST, sizes.seconds)  # what is loaded or compiled but once
        found = _raised(at, sizes, predicted)
    with site(redis) as at:
        _hold(at, sizes.held)
        memory = at.memory() / 2**20
    said = figures.worker_mib + sizes.held * figures.stream_kib / 1024
    return {
        "streams": {
            "rate": _PACE, "kept": _KEPT, "predicted": predicted, **found,
            # Of what it could have had of its core: all of it, where nothing else runs.
            "ratio": found["measured"] / (predicted * found["free"]),
        },
        "memory": {
            "streams": sizes.held, "predicted_mib": said, "measured_mib": memory, "ratio": memory / said,
        },
    }


def measure(sizes: Sizes, with_check: bool) -> Dict[str, Any]:
    """Measure everything; return it, ready for JSON."""
    rounds: List[_Row] = []
    with redis_server() as redis:
        with site(redis) as at:
            at.paced(sizes.streams, _FAST, sizes.seconds)
            for _ in range(sizes.rounds):
                rounds.append(_one_round(at, sizes))
            kept = at.kept
        memory = [
            _told("memory, cluster", lambda: _occupied(redis, sizes)) for _ in range(sizes.memory_rounds)
        ]
        values = {
            name: [row[name] for row in (rounds if name in rounds[0] else memory)] for name in Figures._fields
        }
        medians = {name: statistics.median(each) for name, each in values.items()}
        found: Dict[str, Any] = {
            "figures": {name: round(value, 4) for name, value in medians.items()},
            "spread": {name: [round(min(each), 4), round(max(each), 4)] for name, each in values.items()},
            "kept": round(kept, 3),
            "kernel_is_known": kernel_bytes() is not None,
        }
        if with_check:
            found["check"] = _told("check", lambda: check(redis, sizes, Figures(**medians)))
        versions = _versions(redis)
    return {**found, "sizes": sizes._asdict(), "rest": _REST, "machine": machine(), "versions": versions}


def _one_round(at: Site, sizes: Sizes) -> _Row:
    row = _told("events", lambda: _streaming(at, sizes))
    row.update(_told("beginnings and ends", lambda: _starting(at, sizes)))
    # One token, the event that names the address of a resumable one, and the last are among it.
    row["start_us"] = max(0.0, row["start_us"] - 2 * row["event_us"] - row["read_us"])
    row.update(_told("silence", lambda: _silent(at, sizes)))
    row.update(_told("coming back", lambda: _coming_back(at, sizes)))
    row.update(_told("following", lambda: _following(at, sizes, row)))
    return row


def _told(what: str, done: Callable[[], _Found]) -> _Found:
    begun = time.monotonic()
    found = done()
    print(f"... {what}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return found


def _versions(redis: Redis) -> Dict[str, str]:
    from importlib.metadata import version

    return {
        "flask-llmstream": flask_llmstream.__version__, "Python": platform.python_version(),
        **{name: version(name) for name in ("Flask", "gunicorn", "gevent", "requests", "redis")},
        "redis-server": redis.version,
    }


def text(found: Dict[str, Any]) -> str:
    """Return what was measured, for people."""
    lines = [f"{'figure':28}{'median':>12}{'lowest':>12}{'highest':>12}"]
    for name, value in found["figures"].items():
        low, high = found["spread"][name]
        lines.append(f"{name:28}{value:12.2f}{low:12.2f}{high:12.2f}")
    if "check" in found:
        streams, memory = found["check"]["streams"], found["check"]["memory"]
        lines += [
            f"one worker, {streams['rate']:g} events/s: {streams['predicted']:,} streams predicted,"
            f" {streams['measured']:,} measured: ratio {streams['ratio']:.2f}, with {streams['free']:.0%} of"
            " its core",
            f"{memory['streams']:,} relayed streams: {memory['predicted_mib']:.0f} MiB predicted,"
            f" {memory['measured_mib']:.0f} measured: ratio {memory['ratio']:.2f}",
        ]
    return "\n".join(lines)


def main(argv: Optional[List[str]] = None) -> int:
    """Measure and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measured", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--check", action="store_true", help="compare a prediction to what one worker does")
    parser.add_argument("--quick", action="store_true", help="a fifth of the time; the figures mean little")
    options = parser.parse_args(argv)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    os.sched_setaffinity(0, {CORES[-1]})
    try:
        found = measure(_QUICK if options.quick else Sizes(), options.check)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(text(found))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
