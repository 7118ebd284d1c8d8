"""What is measured: each work gives each server its turn, and takes several figures at once."""

from __future__ import annotations

import statistics
import time
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

from benchmarks.peers.loop import Client, Loop, Meter, Upstream
from benchmarks.peers.running import Running

__all__ = ["PERCENTILES", "WORKS", "Field", "Figure", "Taken", "Work", "Workload"]

#: Of the delays of events, in percent.
PERCENTILES = (50.0, 90.0, 99.0, 99.9)

#: What one turn gives, by the names of figures; ``None`` where there is none.
Taken = Dict[str, Optional[float]]


class Workload(NamedTuple):
    """How much work is done."""

    rounds: int = 5
    #: Rounds of what takes long.
    few_rounds: int = 3
    #: Whether each server has a turn first which does not count, at what it is given first.
    has_rehearsal: bool = True
    #: Streams that keep a pace: seconds that are measured, and those before it.
    seconds: float = 1.5
    warm_up: float = 0.3
    #: Streams whose delays are told, and their events a second.
    few: int = 50
    few_rate: float = 50.0
    some: int = 200
    some_rate: float = 50.0
    many: int = 1000
    many_rate: float = 5.0
    #: More than anybody can send: as many streams, so many events a second each.
    most_rate: float = 50.0
    #: Streams that never block, and the tokens of each.
    hot_streams: int = 10
    hot_tokens: int = 1000
    #: Requests whose first event is waited for, in a turn.
    first_events: int = 60
    #: Requests that leave after 20 tokens: in a turn, at once, tokens a second.
    churn: int = 200
    churn_at_once: int = 20
    churn_rate: float = 200.0
    #: Idle streams of each server, seconds of silence that are watched; in so many rounds.
    idle: int = 5000
    idle_seconds: float = 15.0
    idle_rounds: int = 1
    #: Relayed streams that keep a pace, and their tokens a second.
    relayed: int = 20
    relayed_rate: float = 25.0
    #: Relayed streams as fast as they are read: streams, tokens of each, tokens in one write.
    fast: int = 5
    fast_tokens: int = 800
    fast_burst: int = 16
    #: Requests whose first relayed token is waited for, in a turn.
    first_tokens: int = 20
    #: Relayed streams that are left: how many, tokens a second, seconds to wait for the upstream's end.
    left: int = 40
    left_rate: float = 10.0
    left_patience: float = 3.0


class Field(NamedTuple):
    """What the works share."""

    loop: Loop
    upstream: Upstream
    load: Workload


class Figure(NamedTuple):
    """One of the figures that a work takes."""

    name: str
    unit: str
    #: Whether more of it is better.
    more_is_better: bool = False


class Work(NamedTuple):
    """What servers are given to do."""

    name: str
    title: str
    figures: Tuple[Figure, ...]
    describe: Callable[[Workload], str]
    rounds: Callable[[Workload], int]
    #: Gives one server its turn.
    measure: Callable[[Running, Field], Taken]
    #: Whether it is for those that pass on what a model says, or for those that say something themselves.
    is_relay: bool = False
    #: How many servers are measured together.
    together: Optional[Callable[[List[Running], Field], Dict[str, Taken]]] = None


_CPU = Figure("CPU", "us per event")
_SHARE = Figure("share of the pace kept", "%", more_is_better=True)
_DELAYS = tuple(Figure(f"delay, p{percent:g}", "ms") for percent in PERCENTILES)


def _delays(meter: Meter) -> Taken:
    values = [meter.percentile(percent) for percent in PERCENTILES]
    return {
        figure.name: None if value is None else value * 1e3 for figure, value in zip(_DELAYS, values)
    }


def _leave(clients: List[Client], each: Running, field: Field) -> None:
    for client in clients:
        if not client.has_ended:
            client.leave()
    field.loop.run(0.05)
    field.upstream.hang_up()
    each.settle()


def _until(field: Field, done: Callable[[], bool], seconds: float, what: str) -> None:
    if not field.loop.run_until(done, seconds):
        raise RuntimeError(f"{what} took more than {seconds:g} s")


def _keep_pace(
    each: Running, field: Field, clients: List[Client], meter: Meter, pace: float
) -> Taken:
    """Measure *clients* that are due *pace* events a second together."""
    def arrived() -> int:
        return sum(client.events for client in clients)

    field.loop.run(field.load.warm_up)
    cpu, events, begun = each.cpu(), arrived(), time.monotonic()
    meter.is_on = True
    field.loop.run(field.load.seconds)
    _until(field, lambda: arrived() > events, 30, "the next event")
    cpu = each.cpu() - cpu
    seconds = time.monotonic() - begun
    meter.is_on = False
    events = arrived() - events
    return {
        "CPU": cpu * 1e6 / events,
        "share of the pace kept": 100 * min(1.0, events / (pace * seconds)),
        "events": events / seconds,
        **_delays(meter),
    }


def _steady(streams: str, rate: str) -> Callable[[Running, Field], Taken]:
    def measure(each: Running, field: Field) -> Taken:
        count, pace = int(getattr(field.load, streams)), float(getattr(field.load, rate))
        meter = Meter()
        # Nothing is due before all have asked.
        start = time.monotonic() + 0.05 + count * 0.002
        clients: List[Client] = []
        for number in range(count):
            clock = (start + number / count / pace, pace)
            request = each.get(f"/steady?clock={clock[0]:.6f},{clock[1]:g}")
            clients.append(Client(field.loop, each.address, request, clock, meter))
        field.loop.run_until(lambda: time.monotonic() >= start, 60)
        taken = _keep_pace(each, field, clients, meter, count * pace)
        ended = sum(client.has_ended for client in clients)
        _leave(clients, each, field)
        if ended:
            raise RuntimeError(f"{ended} of {count} streams were ended by the server")
        return taken

    return measure


def _hot(each: Running, field: Field) -> Taken:
    count, tokens = field.load.hot_streams, field.load.hot_tokens
    cpu = each.cpu()
    clients = [
        Client(field.loop, each.address, each.get(f"/hot?count={tokens}")) for _ in range(count)
    ]
    return _to_the_end(each, field, clients, tokens, cpu)


def _fast(each: Running, field: Field) -> Taken:
    load = field.load
    query = f"count={load.fast_tokens}&burst={load.fast_burst}&rate=0"
    cpu = each.cpu()
    clients = [Client(field.loop, each.address, each.ask_model(query)) for _ in range(load.fast)]
    return _to_the_end(each, field, clients, load.fast_tokens, cpu)


def _to_the_end(each: Running, field: Field, clients: List[Client], tokens: int, cpu: float) -> Taken:
    begun = time.monotonic()
    _until(field, lambda: all(client.has_ended for client in clients), 60, "reading all")
    seconds, cpu = time.monotonic() - begun, each.cpu() - cpu
    events = [client.events for client in clients]
    # One or two more begin or end an answer.
    if not tokens <= min(events) <= max(events) <= tokens + 3:
        raise RuntimeError(f"{min(events)} to {max(events)} events came, of {tokens}")
    total = tokens * len(clients)
    return {"CPU": cpu * 1e6 / total, "events": total / seconds}


def _first(each: Running, field: Field, request: bytes, times: int) -> Taken:
    waited: List[float] = []
    for _ in range(times):
        client = Client(field.loop, each.address, request)
        _until(field, lambda: client.first_event is not None, 20, "the first event")
        assert client.first_event is not None
        waited.append((client.first_event - client.asked) * 1e3)
        _until(field, lambda: client.has_ended, 20, "the end of the answer")
    waited.sort()
    return {"median": statistics.median(waited), "p90": waited[int(0.9 * (len(waited) - 1))]}


def _first_event(each: Running, field: Field) -> Taken:
    return _first(each, field, each.get("/hot?count=1"), field.load.first_events)


def _first_token(each: Running, field: Field) -> Taken:
    return _first(each, field, each.ask_model("count=1&rate=0"), field.load.first_tokens)


def _churn(each: Running, field: Field) -> Taken:
    load, done = field.load, 0
    clients: List[Client] = []

    def ask() -> None:
        clock = f"{time.monotonic():.6f},{load.churn_rate:g}"
        request = each.get(f"/steady?clock={clock}")
        clients.append(Client(field.loop, each.address, request, on_read=read))

    def read(client: Client) -> None:
        nonlocal done
        if client.events >= 20 and not client.has_ended:
            client.has_ended = True
            client.leave()
            done += 1
            if len(clients) < load.churn:
                ask()

    cpu = each.cpu()
    for _ in range(min(load.churn_at_once, load.churn)):
        ask()
    _until(field, lambda: done >= load.churn, 60, "reading 20 tokens each")
    each.settle()
    return {"CPU per request": (each.cpu() - cpu) * 1e3 / load.churn}


def _idle(each: Running, field: Field) -> Taken:
    return _idle_together([each], field)[each.name]


def _idle_together(found: List[Running], field: Field) -> Dict[str, Taken]:
    """Watch all of them at the same time: they do next to nothing."""
    count, heard = field.load.idle, {each.name: 0 for each in found}
    clients: Dict[str, List[Client]] = {each.name: [] for each in found}
    taken: Dict[str, Taken] = {each.name: {} for each in found}

    def ask(each: Running, number: int) -> None:
        def hear(client: Client) -> None:
            heard[each.name] += 1

        mine = clients[each.name]
        mine += [Client(field.loop, each.address, each.get("/idle"), on_read=hear) for _ in range(number)]
        _until(
            field, lambda: all(client.first_event for client in mine[-number:]), 60, f"{each.name}: opening"
        )

    for each in found:
        ask(each, 10)  # what is loaded or made but once is not the stream's
        each.settle(1)
        before, already = each.memory(), 10
        while already < count:
            step = min(100, count - already)
            ask(each, step)
            already += step
        taken[each.name]["memory"] = (each.memory() - before) / (count - 10) / 1024
    cpus = {each.name: each.cpu() for each in found}
    heard.update(dict.fromkeys(heard, 0))
    field.loop.run(field.load.idle_seconds)
    for each in found:
        used = each.cpu() - cpus[each.name]
        taken[each.name]["CPU while idle"] = used / field.load.idle_seconds * 100 * 1000 / count
        taken[each.name]["heartbeats"] = heard[each.name] / count
    for each in found:
        _leave(clients[each.name], each, field)
    return taken


def _relayed(each: Running, field: Field) -> Taken:
    load, meter = field.load, Meter()
    queries = [f"stream={number}&count=1000000&rate={load.relayed_rate:g}" for number in range(load.relayed)]
    clients = [
        Client(field.loop, each.address, each.ask_model(query), meter=meter) for query in queries
    ]
    _until(field, lambda: all(client.events for client in clients), 30, "the first tokens")
    taken = _keep_pace(each, field, clients, meter, load.relayed * load.relayed_rate)
    _leave(clients, each, field)
    return taken


def _left(query: str) -> Callable[[Running, Field], Taken]:
    def measure(each: Running, field: Field) -> Taken:
        load, known = field.load, field.upstream.left
        known.clear()
        clients = [
            Client(field.loop, each.address, each.ask_model(
                f"stream={number}&{query.format(rate=load.left_rate)}"
            ))
            for number in range(load.left)
        ]
        _until(field, lambda: all(client.events for client in clients), 30, "the first tokens")
        field.loop.run(0.2)
        if known:
            raise RuntimeError(f"{len(known)} upstream connections ended before anybody left")
        moments: List[float] = []
        for client in clients:
            moments.append(client.leave())
            field.loop.run(0.01)
        field.loop.run_until(lambda: len(known) == load.left, load.left_patience)
        waited = sorted((known[number] - moments[number]) * 1e3 for number in list(known))
        field.upstream.hang_up()
        each.settle()
        return {
            "closed": 100 * len(waited) / load.left,
            "median": statistics.median(waited) if waited else None,
            "p99": waited[int(0.99 * (len(waited) - 1))] if waited else None,
        }

    return measure


_PACED = (_CPU, _SHARE, *_DELAYS)
_WAITED = (Figure("median", "ms"), Figure("p90", "ms"))
_CLOSED = (
    Figure("median", "ms"), Figure("p99", "ms"),
    Figure("closed", "% of upstream connections", more_is_better=True),
)


def _rounds(load: Workload) -> int:
    return load.rounds


def _few_rounds(load: Workload) -> int:
    return load.few_rounds


WORKS: Tuple[Work, ...] = (
    Work(
        "peers/paced-50", "Paced, few streams", _PACED,
        lambda load: f"{load.few} streams, {load.few_rate:g} events/s each",
        _few_rounds, _steady("few", "few_rate"),
    ),
    Work(
        "peers/paced-200", "Paced", _PACED,
        lambda load: f"{load.some} streams, {load.some_rate:g} events/s each",
        _rounds, _steady("some", "some_rate"),
    ),
    Work(
        "peers/paced-1000", "Paced, many streams", _PACED,
        lambda load: f"{load.many} streams, {load.many_rate:g} events/s each",
        _few_rounds, _steady("many", "many_rate"),
    ),
    Work(
        "peers/saturated", "More than one core can send",
        (Figure("events", "per second", more_is_better=True), _CPU, _SHARE),
        lambda load: f"{load.many} streams, {load.most_rate:g} events/s each: what comes of"
        f" {load.many * load.most_rate:g} events/s",
        _few_rounds, _steady("many", "most_rate"),
    ),
    Work(
        "peers/bursts", "Bursts", (_CPU, Figure("events", "per second", more_is_better=True)),
        lambda load: f"{load.hot_streams} generators that never block, {load.hot_tokens} events each",
        _rounds, _hot,
    ),
    Work(
        "peers/first-event", "Time to the first event", _WAITED,
        lambda load: "request, on a new connection, to the first event of an answer; one at a time",
        _rounds, _first_event,
    ),
    Work(
        "peers/churn", "Coming and going", (Figure("CPU per request", "ms"),),
        lambda load: f"connect, read 20 events at {load.churn_rate:g} events/s, leave;"
        f" {load.churn_at_once} at once, {load.churn} in a turn",
        _rounds, _churn,
    ),
    Work(
        "peers/idle", "Idle streams",
        (
            Figure("memory", "KiB per stream"), Figure("CPU while idle", "% of a core per 1000 streams"),
            Figure("heartbeats", "per stream"),
        ),
        lambda load: f"{load.idle} streams that say nothing, watched for {load.idle_seconds:g} s",
        lambda load: load.idle_rounds, _idle, together=_idle_together,
    ),
    Work(
        "peers/relay-paced", "Relay, paced", _PACED,
        lambda load: f"an OpenAI-compatible upstream, {load.relayed} streams, {load.relayed_rate:g} tokens/s"
        " each; the delay is that since the upstream sent the token",
        _rounds, _relayed, is_relay=True,
    ),
    Work(
        "peers/relay-fast", "Relay, as fast as it goes",
        (_CPU, Figure("events", "per second", more_is_better=True)),
        lambda load: f"{load.fast} streams of {load.fast_tokens} tokens, {load.fast_burst} in a write of the"
        " upstream",
        _rounds, _fast, is_relay=True,
    ),
    Work(
        "peers/relay-first-token", "Relay, time to the first token", _WAITED,
        lambda load: "an upstream that answers at once; one request at a time, each on a new connection",
        _rounds, _first_token, is_relay=True,
    ),
    Work(
        "peers/relay-left", "Relay, the reader leaves while tokens flow", _CLOSED,
        lambda load: f"{load.left} streams of {load.left_rate:g} tokens/s are left one after another: from"
        f" then until the upstream connection is closed, within {load.left_patience:g} s",
        _few_rounds, _left("count=1000000&rate={rate:g}"), is_relay=True,
    ),
    Work(
        "peers/relay-left-thinking", "Relay, the reader leaves while the model is silent", _CLOSED,
        lambda load: "the same with an upstream that has said one token, and then nothing",
        _few_rounds, _left("count=1&rate=1000&hold=1"), is_relay=True,
    ),
)
