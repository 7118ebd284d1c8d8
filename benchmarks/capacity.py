"""How many workers, machines and Redis shards so many streams need.

``python -m benchmarks.capacity --streams 1000000 --rate 30 --resumable 0.2``

The figures behind it come from one machine, by ``python -m benchmarks.measured``; the arithmetic is all
here. Whatever has a limit is asked for what it would need, and the largest answer counts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

__all__ = [
    "FIGURES", "PACKET", "WRITES", "Figures", "Load", "Machine", "Plan", "carried", "figures_in",
    "load_figures", "plan", "worker_us",
]

#: Where the figures are that the documentation speaks of.
FIGURES = Path(__file__).resolve().parent.parent / "docs" / "scaling.json"

#: Bytes of Ethernet, IPv4 and TCP around an event, each of which leaves in a packet of its own.
PACKET = 66
#: How often in a second a stream that nobody follows is written to the log, at most.
WRITES = 2


class Figures(NamedTuple):
    """What one stream costs; see :mod:`benchmarks.measured` for how each is measured."""

    #: Microseconds of a worker's CPU: to start and end a stream with its call of a provider; for an event
    #: that its view yields; what is added where the event is read from a provider.
    start_us: float
    event_us: float
    read_us: float
    #: What is added by a log in Redis: when a stream begins and ends, for each event, and for each second in
    #: which something is written.
    log_start_us: float
    logged_us: float
    logged_second_us: float
    #: A second of a stream that is silent, heartbeats included.
    idle_us: float
    #: To send 300 events to somebody who comes back, or 10; and what is added to each event, on both workers
    #: together, from then on, because it goes by way of the log.
    back_us: float
    return_us: float
    followed_us: float
    #: Memory of a worker without streams, in MiB; of a stream that is relayed, in KiB; of the kernel for its
    #: connections, in KiB.
    worker_mib: float
    stream_kib: float
    kernel_kib: float
    #: Open files of a stream: its client's connection and its provider's.
    stream_files: float
    #: Bytes of an event on the wire, without TCP and IP; what an id adds, where a stream is resumable.
    event_bytes: float
    id_bytes: float
    #: Redis, when a resumable stream begins and ends: commands, microseconds of its CPU, bytes that it is
    #: sent, bytes of memory.
    redis_start_commands: float
    redis_start_us: float
    redis_start_bytes: float
    redis_start_memory: float
    #: Redis, for each second in which such a stream sends something.
    redis_second_commands: float
    redis_second_us: float
    redis_second_bytes: float
    #: Redis, for each of its events in addition.
    redis_event_us: float
    redis_event_bytes: float
    redis_event_memory: float
    #: Redis, for somebody who comes back for 300 events, and for each event that goes by way of the log then;
    #: bytes are those that it sends.
    redis_back_commands: float
    redis_back_us: float
    redis_back_bytes: float
    redis_followed_commands: float
    redis_followed_us: float
    #: A message in a Redis Cluster, for each node but the one that it was sent to: microseconds of both.
    redis_bus_us: float


class Load(NamedTuple):
    """What is asked for."""

    #: Streams that are open at once, and the events that each sends in a second.
    streams: int
    rate: float = 30.0
    #: Seconds that a stream lasts.
    length: float = 20.0
    #: Which part of them reads a provider, which part is resumable, and which part of those who read a
    #: resumable one comes back, in the middle of it.
    relayed: float = 1.0
    resumable: float = 0.0
    comes_back: float = 0.02
    #: Seconds that a stream is kept after its end (``LLMSTREAM_KEEP``), and its events at most.
    keep: float = 600.0
    keep_events: int = 5000


class Machine(NamedTuple):
    """What there is to run it on."""

    cores: int = 16
    memory_gib: float = 64.0
    #: Which part of a core, of memory and of a Redis may be in use: the rest is for the peak, the reload and
    #: the zone that fails.
    busy: float = 0.6
    #: Streams that one worker takes (``worker_connections``, ``LLMSTREAM_MAX_STREAMS``).
    worker_streams: int = 1800
    #: Open files that a worker may have.
    worker_files: int = 65536
    #: Memory of one Redis shard.
    shard_gib: float = 16.0


class Plan(NamedTuple):
    """What is needed."""

    workers: int
    machines: int
    #: Redis servers with keys of their own, without their replicas; and how many clusters they have to make
    #: up, because the nodes of one pass each message on to all others.
    shards: int
    clusters: int
    #: Streams of one worker, and which part of its core they take.
    streams_per_worker: float
    worker_cpu: float
    #: What decides the number of workers, of machines and of shards.
    because: Tuple[str, str, str]
    #: All machines together: cores that are busy, memory in GiB, bits a second to clients, streams that
    #: begin in a second.
    cores: float
    memory_gib: float
    bits: float
    starts: float
    #: All shards together: cores that are busy, commands a second, bytes a second that they are sent, memory
    #: in GiB.
    redis_cores: float
    redis_commands: float
    redis_bytes: float
    redis_gib: float


def figures_in(data: Any) -> Figures:
    """Return the figures in what was measured.

    :raises ValueError: if there are none.
    """
    try:
        return Figures(**{name: float(data["figures"][name]) for name in Figures._fields})
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"there is no figure {error}; expected what python -m benchmarks.measured --json writes"
        ) from None


def load_figures(path: Path = FIGURES) -> Figures:
    """Read the figures that were measured.

    :raises OSError: if there is no such file.
    :raises ValueError: if it has no figures.
    """
    return figures_in(json.loads(path.read_text(encoding="utf-8")))


def _writing(load: Load) -> float:
    """Return the part of a stream's seconds in which it is written to the log as often as can be."""
    return min(1.0, load.rate / WRITES)


def worker_us(load: Load, figures: Figures) -> float:
    """Return the microseconds of CPU that one stream of *load* takes in a second, on average."""
    kept = load.resumable
    begun = figures.start_us + kept * (figures.log_start_us + load.comes_back * figures.back_us)
    event = figures.event_us + load.relayed * figures.read_us
    # Who comes back does so in the middle, so half of the events go by way of the log.
    event += kept * (figures.logged_us + load.comes_back / 2 * figures.followed_us)
    # Heartbeats are for who says nothing.
    sending = max(load.rate * event, figures.idle_us)
    return begun / load.length + sending + kept * _writing(load) * figures.logged_second_us


def carried(load: Load, figures: Figures, machine: Machine = Machine()) -> Tuple[int, str]:
    """Return how many streams like those of *load* one worker carries, and what decides that.

    :raises ValueError: for a load or a machine that cannot be.
    """
    _check(load, machine)
    most = {
        "CPU": machine.busy * 1e6 / worker_us(load, figures),
        "streams per worker": float(machine.worker_streams),
        "open files": machine.worker_files * machine.busy / figures.stream_files,
    }
    name = min(most, key=lambda each: most[each])
    return int(most[name] + 1e-9), name


def _most(needs: Dict[str, float]) -> Tuple[int, str]:
    """Return the largest of *needs*, rounded up, and its name."""
    name = max(needs, key=lambda each: needs[each])
    return max(1, math.ceil(needs[name] - 1e-9)), name


def plan(load: Load, figures: Figures, machine: Machine = Machine()) -> Plan:
    """Return what *load* needs.

    :raises ValueError: for a load or a machine that cannot be.
    """
    _check(load, machine)
    starts = load.streams / load.length
    events = load.streams * load.rate
    cores = load.streams * worker_us(load, figures) / 1e6
    workers, why_workers = _most({
        "CPU": cores / machine.busy,
        "streams per worker": load.streams / machine.worker_streams,
        "open files": load.streams * figures.stream_files / (machine.worker_files * machine.busy),
    })
    stream_kib = figures.stream_kib + figures.kernel_kib
    memory = (load.streams * stream_kib / 1024 + workers * figures.worker_mib) / 1024
    machines, why_machines = _most({
        "one worker a core": workers / machine.cores,
        "memory": memory / (machine.memory_gib * machine.busy),
    })
    redis = _redis(load, figures)
    shards, clusters, why_shards = _shards(redis, figures, machine)
    if not load.resumable:
        shards, clusters, why_shards = 0, 0, "nothing is kept"
    event_bytes = figures.event_bytes + load.resumable * figures.id_bytes + PACKET
    return Plan(
        workers=workers, machines=machines, shards=shards, clusters=clusters,
        streams_per_worker=load.streams / workers,
        worker_cpu=cores / workers, because=(why_workers, why_machines, why_shards), cores=cores,
        memory_gib=memory, bits=events * event_bytes * 8, starts=starts, redis_cores=redis["us"] / 1e6,
        redis_commands=redis["commands"], redis_bytes=redis["bytes"], redis_gib=redis["memory"] / 2**30,
    )


def _shards(redis: Dict[str, float], figures: Figures, machine: Machine) -> Tuple[int, int, str]:
    """Return how many shards, in how many clusters, and why as many."""
    memory = redis["memory"] / 2**30 / (machine.shard_gib * machine.busy)
    shards, why = _most({"CPU": redis["us"] / 1e6 / machine.busy, "memory": memory})
    if shards == 1:
        return 1, 1, why
    # Of what a shard may use, half at most for messages that are passed on to it.
    passed_on = redis["messages"] * figures.redis_bus_us / 1e6
    clusters = max(1, math.ceil(passed_on / (machine.busy / 2)))
    # A cluster of n works on an n-th of its own, and on all messages of the other n - 1.
    own, foreign = redis["us"] / 1e6 / clusters, passed_on / clusters
    each, why = _most({
        "CPU": (own - foreign) / (machine.busy - foreign), "memory": memory / clusters
    })
    return each * clusters, clusters, why


def _redis(load: Load, figures: Figures) -> Dict[str, float]:
    """Return what all shards together are asked for in a second, and what they keep."""
    starts = load.streams / load.length * load.resumable
    seconds = load.streams * load.resumable * _writing(load)
    events = load.streams * load.rate * load.resumable
    backs, followed = starts * load.comes_back, events * load.comes_back / 2
    # What is kept: the streams that run, at half of their length on average, and those that have ended.
    running, ended = load.streams * load.resumable, starts * load.keep
    events_each = min(load.rate * load.length, load.keep_events)
    return {
        "commands": starts * figures.redis_start_commands + seconds * figures.redis_second_commands
        + backs * figures.redis_back_commands + followed * figures.redis_followed_commands,
        "us": starts * figures.redis_start_us + seconds * figures.redis_second_us
        + events * figures.redis_event_us + backs * figures.redis_back_us
        + followed * figures.redis_followed_us,
        "bytes": starts * figures.redis_start_bytes + seconds * figures.redis_second_bytes
        + events * figures.redis_event_bytes,
        "messages": seconds * WRITES + starts + followed,
        "memory": (running + ended) * figures.redis_start_memory
        + (running / 2 + ended) * events_each * figures.redis_event_memory,
    }


def _check(load: Load, machine: Machine) -> None:
    for what, value, least, most in (
        ("streams", load.streams, 1, math.inf), ("rate", load.rate, 0, math.inf),
        ("length", load.length, 0.001, math.inf), ("relayed", load.relayed, 0, 1),
        ("resumable", load.resumable, 0, 1), ("comes_back", load.comes_back, 0, 1000),
        ("keep", load.keep, 0, math.inf), ("keep_events", load.keep_events, 1, math.inf),
        ("cores", machine.cores, 1, math.inf), ("memory_gib", machine.memory_gib, 0.1, math.inf),
        ("busy", machine.busy, 0.01, 1), ("worker_streams", machine.worker_streams, 1, math.inf),
        ("worker_files", machine.worker_files, 16, math.inf),
        ("shard_gib", machine.shard_gib, 0.1, math.inf),
    ):
        if not (least <= value <= most and math.isfinite(value)):
            upper = "" if most == math.inf else f" and {most:g} at most"
            raise ValueError(f"{what} is {value:g}, expected {least:g} at least{upper}")


def describe(found: Plan, load: Load, machine: Machine) -> str:
    """Return *found* for people."""
    workers, machines, shards = found.because
    lines = [
        f"{load.streams:,} streams, {load.rate:g} events/s each, {load.length:g} s long,"
        f" {load.resumable:.0%} resumable:",
        f"  workers   {found.workers:>9,}  ({workers}; {found.streams_per_worker:,.0f} streams and"
        f" {found.worker_cpu:.0%} of a core each)",
        f"  machines  {found.machines:>9,}  ({machines}; {machine.cores} cores and"
        f" {machine.memory_gib:g} GiB each, {machine.busy:.0%} of it used)",
        f"  shards    {found.shards:>9,}  ({shards}; in {found.clusters} clusters;"
        f" {found.redis_commands:,.0f} commands/s, {found.redis_bytes / 2**20:,.1f} MiB/s,"
        f" {found.redis_gib:,.1f} GiB kept)",
        f"  in all    {found.cores:,.1f} cores busy, {found.memory_gib:,.1f} GiB,"
        f" {found.bits / 1e9:,.2f} Gbit/s to clients, {found.starts:,.0f} streams begin a second",
    ]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong."""

    def error(self, message: str) -> Any:
        self.exit(2, f"error: {message}\n")


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command line and return the exit status."""
    parser = _Parser(prog="python -m benchmarks.capacity", description=__doc__)
    parser.add_argument("--figures", type=Path, default=FIGURES, help="a file of benchmarks.measured")
    parser.add_argument("--json", action="store_true", help="for programs")
    for kind in (Load, Machine):
        for name in kind._fields:
            default = kind._field_defaults.get(name)
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=int if isinstance(default, int) or name == "streams"
                else float, default=default, required=default is None,
                help=None if default is None else f"default: {default:g}",
            )
    options = vars(parser.parse_args(argv))
    load = Load(**{name: options[name] for name in Load._fields})
    machine = Machine(**{name: options[name] for name in Machine._fields})
    try:
        found = plan(load, load_figures(options["figures"]), machine)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(found._asdict(), indent=1) if options["json"] else describe(found, load, machine))
    return 0


if __name__ == "__main__":
    sys.exit(main())
