"""What is measured: each case gives one figure per contender and round; less is better."""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import subprocess
import tempfile
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Set

from benchmarks import jsondelta
from benchmarks.apps.work import TOKENS, TURN
from benchmarks.contenders import Contender, contenders
from benchmarks.load import Load, ask_again_and_again, first_byte
from flask_llmstream.sansio.events import TextDelta
from flask_llmstream.sansio.formats import make_format

__all__ = ["CASES", "Case", "Sizes"]

Figures = Dict[str, List[float]]

#: How often each contender has its turn in one round of the paced case.
_TURNS = 5


class Sizes(NamedTuple):
    """How much work is done."""

    rounds: int = 15
    #: Streams at a steady rate, their events per second; in so many rounds.
    paced_streams: int = 200
    paced_rate: float = 50.0
    paced_rounds: int = 30
    #: Streams that never block, and the tokens of each.
    hot_streams: int = 20
    hot_tokens: int = 3000
    #: Streams that relay an upstream which is always faster: tokens of each, tokens in one write.
    relay_streams: int = 10
    relay_tokens: int = 3000
    relay_burst: int = 16
    #: The same with pauses: tokens of each, seconds between bursts; in so many rounds.
    burst_tokens: int = 800
    burst_pause: float = 0.01
    #: One token at a time: tokens of each, seconds between them.
    single_tokens: int = 50
    single_pause: float = 0.02
    pausing_rounds: int = 7
    #: One token at a time, relayed byte for byte: tokens of each, seconds between them.
    bytes_tokens: int = 400
    bytes_pause: float = 0.005
    #: Idle streams, for memory and for leaving; in so many rounds.
    idle_streams: int = 1000
    idle_rounds: int = 3
    #: Requests whose first byte is waited for, per round.
    first_bytes: int = 100
    #: Requests that do not stream, per round.
    passing_requests: int = 2000
    #: JSON that is read while it is written: characters of a document, of a large one; in so many rounds.
    json_characters: int = 100000
    json_large: int = 1000000
    json_rounds: int = 5
    #: How often the encoder is given the same few tokens, per round.
    encode_turns: int = 2000


class Case(NamedTuple):
    """One row of the report."""

    name: str
    unit: str
    #: Highest ratio of ours to bare that is good enough now; ``None``: for information.
    target: Optional[float]
    #: The ratio that is aimed at.
    bar: Optional[float]
    measure: Callable[[List[Contender], Sizes, str], Figures]
    describe: Callable[[Sizes], str]


def _in_turns(
    found: List[Contender], rounds: int, measure: Callable[[Contender], float]
) -> Figures:
    """Return *rounds* figures of each, taken in turns after a first round that does not count."""
    figures: Figures = {each.name: [] for each in found}
    for number in range(rounds + 1):
        turn = number % len(found)
        for each in found[turn:] + found[:turn]:
            figure = measure(each)
            if number:
                figures[each.name].append(figure)
    return figures


def _complete(load: Load, seconds: float, what: str) -> None:
    if not load.run_until(lambda: False, seconds):
        raise RuntimeError(f"{what}: {len(load)} streams did not end within {seconds} s")


def _paced(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
    count, rate = sizes.paced_streams, sizes.paced_rate
    figures: Figures = {each.name: [] for each in found}
    with Load(awake=True) as load:
        for turn, each in enumerate(found):
            clocks = [f"{rate},{number / count},{turn},{len(found)}" for number in range(count)]
            targets = [each.target(f"/paced?clock={clock}") for clock in clocks]
            load.open(each.server.address, targets, each.name)
        seconds = _TURNS * TURN * len(found)
        load.run(seconds)
        for _ in range(3 * sizes.paced_rounds):
            before = [(each.cpu(), load.events[each.name]) for each in found]
            load.run(seconds)
            used = [each.cpu() - cpu for each, (cpu, _) in zip(found, before)]
            sent = [load.events[each.name] - events for each, (_, events) in zip(found, before)]
            # A worker that others have kept from its core has not kept the pace that is asked for.
            if min(sent) > count * rate * _TURNS * TURN * 0.8:
                for each, cpu, events in zip(found, used, sent):
                    figures[each.name].append(cpu * 1e6 / events)
            if len(figures[found[0].name]) == sizes.paced_rounds:
                break
        else:
            raise RuntimeError("this machine is too busy to keep the pace")
        if len(load) != count * len(found):
            raise RuntimeError(f"of {count * len(found)} streams {len(load)} are left")
    for each in found:
        _settle(each)
    return figures


def _logged(kind: str) -> Callable[..., Figures]:
    """Compare streams that are written to an event log to the same streams that are not."""

    def measure_all(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
        names = ["ours, plain", "ours, plain again", "ours, logged"]
        with _event_log(kind) as url, contenders(upstream, names, url) as own:
            figures = _paced(own, sizes, upstream)
        return dict(zip(("bare", "bare again", "ours"), (figures[name] for name in names)))

    return measure_all


@contextlib.contextmanager
def _event_log(kind: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        if kind == "sqlite":
            yield f"sqlite:///{folder}/streams.db"
            return
        path = f"{folder}/redis.sock"
        command = ["redis-server", "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 10
            while not os.path.exists(path):
                if time.monotonic() > deadline:
                    raise RuntimeError("redis-server does not start")
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def _settle(each: Contender) -> None:
    """Wait until the worker has noticed that everybody has left."""
    deadline = time.monotonic() + 10
    cpu = each.cpu()
    while time.monotonic() < deadline:
        time.sleep(0.1)
        last, cpu = cpu, each.cpu()
        if cpu - last < 0.002:
            return


def _to_the_end(
    path: Callable[[Sizes], str], streams: str, tokens: str, rounds: str = "rounds"
) -> Callable[..., Figures]:
    def measure_all(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
        count: int = getattr(sizes, streams)
        length: int = getattr(sizes, tokens)

        def measure(each: Contender) -> float:
            cpu = each.cpu()
            with Load() as load:
                load.open(each.server.address, [each.target(path(sizes))] * count)
                _complete(load, 120, each.name)
            cpu, events = each.cpu() - cpu, load.events[""]
            if not count * length <= events <= count * (length + 2):
                raise RuntimeError(f"{each.name} sent {events} events, expected {count * length}")
            return cpu * 1e6 / (count * length)

        return _in_turns(found, getattr(sizes, rounds), measure)

    return measure_all


def _bytes(path: Callable[[Sizes], str], tokens: str, rounds: str = "rounds") -> Callable[..., Figures]:
    """Compare a relay to a server in the bare worker that only copies bytes between two sockets."""

    def measure_all(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
        count, length = sizes.relay_streams, getattr(sizes, tokens)
        chosen = [each for each in found if each.name in ("bare", "bare again", "ours")]
        copies = {each.name: ("127.0.0.1", each.ask("/copy")) for each in chosen if each.name != "ours"}

        def measure(each: Contender) -> float:
            cpu = each.cpu()
            with Load() as load:
                address = copies.get(each.name, each.server.address)
                load.open(address, ["/bytes?" + path(sizes)] * count)
                _complete(load, 120, each.name)
            cpu = each.cpu() - cpu
            # One more says why it ended, one [DONE].
            if load.events[""] != count * (length + 2):
                raise RuntimeError(f"{each.name} sent {load.events['']} events, expected {length + 2} each")
            return cpu * 1e6 / (count * length)

        return _in_turns(chosen, getattr(sizes, rounds), measure)

    return measure_all


def _encode(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
    """Compare the encoder to a function that is one f-string with the same JSON in it."""
    deltas = [TextDelta(token) for token in TOKENS]
    quote = json.encoder.encode_basestring

    def event(delta: TextDelta) -> bytes:
        return f'data: {{"text":{quote(delta.text)}}}\n\n'.encode()

    def measure(encode: Callable[[TextDelta], bytes]) -> float:
        begun = time.process_time()
        for _ in range(sizes.encode_turns):
            for delta in deltas:
                encode(delta)
        return (time.process_time() - begun) * 1e9 / (sizes.encode_turns * len(deltas))

    figures: Figures = {"bare": [], "ours": [], "bare again": []}
    encode = make_format("sse").encode
    for _ in range(sizes.rounds):
        figures["bare"].append(measure(event))
        figures["ours"].append(measure(encode))
        figures["bare again"].append(measure(event))
    return figures


def _memory(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
    figures: Figures = {each.name: [] for each in found}
    for number in range(sizes.idle_rounds):
        turn = number % len(found)
        for name in [each.name for each in found[turn:] + found[:turn]]:
            # A new server each time: memory that was used once does not go back to the system.
            with contenders(upstream, [name]) as (each,), Load() as load:
                load.open(each.server.address, [each.target("/idle")] * 10)
                load.run_until(lambda: load.events[""] >= 10, 30)
                load.close()
                _settle(each)
                before, seen = each.memory(), 10
                for _ in range(0, sizes.idle_streams, 100):
                    load.open(each.server.address, [each.target("/idle")] * 100)
                    seen += 100
                    if not load.run_until(lambda: load.events[""] >= seen, 30):
                        raise RuntimeError(f"{name}: {load.events['']} of {seen} idle streams began")
                figures[name].append((each.memory() - before) / len(load) / 1024)
    return figures


def _first_byte(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
    def measure(each: Contender) -> float:
        target = each.target("/hot?count=1")
        times = [first_byte(each.server.address, target) for _ in range(sizes.first_bytes)]
        return statistics.median(times) * 1e3

    return _in_turns(found, sizes.rounds, measure)


def _passing(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
    def measure(each: Contender) -> float:
        target = each.target("/hello")
        cpu = each.cpu()
        ask_again_and_again(each.server.address, target, sizes.passing_requests)
        return (each.cpu() - cpu) * 1e6 / sizes.passing_requests

    return _in_turns(found, sizes.rounds, measure)


def _leaving(all_at_once: bool) -> Callable[..., Figures]:
    def measure_all(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
        never: Set[str] = set()

        def measure(each: Contender) -> float:
            latency = math.inf if each.name in never else _left(each, sizes, all_at_once)
            if latency == math.inf:
                never.add(each.name)  # its generators are still there
            return latency

        return _in_turns(found, sizes.idle_rounds, measure)

    return measure_all


def _left(each: Contender, sizes: Sizes, all_at_once: bool) -> float:
    """Return the milliseconds from a departure to the end of the generator, p99; or infinity."""
    known = len(each.ask("/closings"))
    with Load() as load:
        load.open(each.server.address, [each.target("/idle")] * sizes.idle_streams)
        load.run_until(lambda: load.events[""] >= sizes.idle_streams, 30)
        if all_at_once:
            left = [time.monotonic()] * sizes.idle_streams
            load.close()
        else:
            left = load.leave(sizes.idle_streams // 5, 0.005)
        for _ in range(20):
            closed: List[float] = sorted(each.ask("/closings")[known:])
            if len(closed) >= len(left):
                break
            time.sleep(0.05)
        else:
            return math.inf
    _settle(each)
    latencies = sorted(end - begin for begin, end in zip(left, closed))
    return latencies[int(0.99 * (len(latencies) - 1))] * 1e3


def _json(document: str) -> Callable[..., Figures]:
    """Compare reading changes to parsing the text so far with jiter at every token."""

    def measure_all(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
        tokens = jsondelta.tokens_of(jsondelta.DOCUMENTS[document](sizes.json_characters))
        figures: Figures = {"bare": [], "ours": [], "bare again": []}
        for _ in range(sizes.json_rounds):
            figures["bare"].append(jsondelta.with_jiter(tokens) * 1e6)
            figures["ours"].append(jsondelta.per_token(jsondelta.read_deltas, tokens, 3) * 1e6)
            figures["bare again"].append(jsondelta.with_jiter(tokens) * 1e6)
        return figures

    return measure_all


def _json_growth(found: List[Contender], sizes: Sizes, upstream: str) -> Figures:
    """Compare a token at the end of a long document to one at its beginning."""
    figures: Figures = {"bare": [], "ours": [], "bare again": []}
    for _ in range(sizes.json_rounds):
        first, last = jsondelta.flatness(jsondelta.form, size=sizes.json_large)
        again, _ = jsondelta.flatness(jsondelta.form, size=sizes.json_large)
        for name, seconds in (("bare", first), ("ours", last), ("bare again", again)):
            figures[name].append(seconds * 1e6)
    return figures


CASES = [
    Case(
        "paced", "us CPU per event", 1.15, 1.10, _paced,
        lambda sizes: f"{sizes.paced_streams} streams, {sizes.paced_rate:g} events/s each",
    ),
    Case(
        "hot", "us CPU per event", 0.4, 0.3,
        _to_the_end(lambda sizes: f"/hot?count={sizes.hot_tokens}", "hot_streams", "hot_tokens"),
        lambda sizes: f"a generator that never blocks, {sizes.hot_streams} streams",
    ),
    Case(
        "relay", "us CPU per event", 0.4, 0.3,
        _to_the_end(
            lambda sizes: f"/relay?count={sizes.relay_tokens}&burst={sizes.relay_burst}&pause=0",
            "relay_streams", "relay_tokens",
        ),
        lambda sizes: f"an upstream as fast as it is read, {sizes.relay_burst} tokens in a write,"
        f" {sizes.relay_streams} streams",
    ),
    Case(
        "relay, bursts", "us CPU per event", None, None,
        _to_the_end(
            lambda sizes: f"/relay?count={sizes.burst_tokens}&burst={sizes.relay_burst}"
            f"&pause={sizes.burst_pause}",
            "relay_streams", "burst_tokens", "pausing_rounds",
        ),
        lambda sizes: f"the same with pauses of {sizes.burst_pause * 1e3:g} ms",
    ),
    Case(
        "relay, single", "us CPU per event", None, None,
        _to_the_end(
            lambda sizes: f"/relay?count={sizes.single_tokens}&burst=1&pause={sizes.single_pause}",
            "relay_streams", "single_tokens", "pausing_rounds",
        ),
        lambda sizes: f"one token at a time, every {sizes.single_pause * 1e3:g} ms",
    ),
    Case(
        "memory", "KiB per idle stream", 1.3, 1.2, _memory,
        lambda sizes: f"{sizes.idle_streams} idle streams",
    ),
    Case(
        "passing", "us CPU per request", 1.05, 1.03, _passing,
        lambda sizes: f"a hello world that does not stream, {sizes.passing_requests} requests on one"
        " connection",
    ),
    Case(
        "first byte", "ms", None, None, _first_byte,
        lambda sizes: "request to the first byte of an event, one at a time, median",
    ),
    Case(
        "leaving", "ms", None, None, _leaving(all_at_once=False),
        lambda sizes: f"client leaves to generator closed, of {sizes.idle_streams} idle streams one after"
        " another, p99",
    ),
    Case(
        "leaving, all", "ms", None, None, _leaving(all_at_once=True),
        lambda sizes: f"{sizes.idle_streams} clients leave at once, to the last generator closed but 1 %",
    ),
    Case(
        "json, text", "us per token", 0.1, 0.085, _json("letter"),
        lambda sizes: f"json_deltas() of one long text, {sizes.json_characters} characters, to parsing"
        " all of it so far with jiter at every token (as bare)",
    ),
    Case(
        "json, form", "us per token", 0.1, 0.02, _json("form"),
        lambda sizes: f"the same of many fields, {sizes.json_characters} characters",
    ),
    Case(
        "json, growth", "us per token", 1.5, 1.2, _json_growth,
        lambda sizes: f"json_deltas() at the end of {sizes.json_large} characters, to their beginning"
        " (as bare)",
    ),
    Case(
        "bytes", "us CPU per event", None, None,
        _bytes(
            lambda sizes: f"count={sizes.relay_tokens}&burst={sizes.relay_burst}&pause=0", "relay_tokens"
        ),
        lambda sizes: "relay() to copying between two sockets (as bare),"
        f" {sizes.relay_burst} tokens in a write",
    ),
    Case(
        "bytes, single", "us CPU per event", 2.0, 2.0,
        _bytes(
            lambda sizes: f"count={sizes.bytes_tokens}&burst=1&pause={sizes.bytes_pause}",
            "bytes_tokens", "pausing_rounds",
        ),
        lambda sizes: f"relay() to such copying, one token at a time, every {sizes.bytes_pause * 1e3:g} ms",
    ),
    Case(
        "encode", "ns per event", 1.4, 1.3, _encode,
        lambda sizes: "the encoder of sse for text, to a function that is one f-string (as bare)",
    ),
    Case(
        "log, sqlite", "us CPU per event", 1.3, 1.3, _logged("sqlite"),
        lambda sizes: f"{sizes.paced_streams} resumable streams in SQLite, {sizes.paced_rate:g} events/s"
        " each, to the same without a log (as bare)",
    ),
    Case(
        "log, redis", "us CPU per event", 1.5, 1.5, _logged("redis"),
        lambda sizes: "the same in Redis",
    ),
]
