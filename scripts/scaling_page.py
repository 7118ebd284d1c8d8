"""Write docs/scaling.md from docs/scaling.json; ``--check`` only compares.

The figures come from ``python -m benchmarks.measured --check --json docs/scaling.json``, the plans from
benchmarks/capacity.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import fill
from typing import Any, Dict, List, Sequence, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generated import write_or_check  # noqa: E402

from benchmarks.capacity import (  # noqa: E402
    WRITES,
    Figures,
    Load,
    Machine,
    Plan,
    carried,
    figures_in,
    plan,
)

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TARGET = ROOT / "docs" / "scaling.json", ROOT / "docs" / "scaling.md"
#: The text around the tables; a name in braces stands where each goes.
TEXT = Path(__file__).with_suffix(".md")

STREAMS = (1000, 10000, 100000, 1000000)
SHARES = (0.0, 0.2, 1.0)
RATES = (1.0, 5.0, 10.0, 30.0, 50.0, 100.0)
MACHINE = Machine()
#: A check outside of these says that the model is wrong.
GOOD = (0.6, 1.7)

#: What is measured, how it is called, and in which unit.
ROWS: Tuple[Tuple[str, str, str], ...] = (
    ("start_us", "to begin and end, with a call of a provider", "us CPU"),
    ("event_us", "an event that a view yields, {streams} streams at 50 a second", "us CPU"),
    ("read_us", "added where it is read from a provider", "us CPU"),
    ("idle_us", "a second of silence, heartbeats included", "us CPU"),
    ("log_start_us", "log in Redis: added to begin and end", "us CPU"),
    ("logged_us", "log in Redis: added to an event", "us CPU"),
    ("logged_second_us", "log in Redis: added to a second", "us CPU"),
    ("back_us", "somebody comes back for {rest} events", "us CPU"),
    ("return_us", "somebody comes back for 10 events", "us CPU"),
    ("followed_us", "then added to an event, with both workers", "us CPU"),
    ("worker_mib", "a worker without streams", "MiB"),
    ("stream_kib", "a relayed stream", "KiB"),
    ("kernel_kib", "the kernel's objects for its connections", "KiB"),
    ("stream_files", "open files of a relayed stream", ""),
    ("event_bytes", "an event on the wire, without TCP, IP and TLS", "bytes"),
    ("id_bytes", "added by its id, where the stream is resumable", "bytes"),
    ("redis_start_commands", "Redis, to begin and end", "commands"),
    ("redis_start_us", "the same", "us of its CPU"),
    ("redis_start_bytes", "the same", "bytes sent to it"),
    ("redis_start_memory", "the same, while it is kept", "bytes of its memory"),
    ("redis_second_commands", "Redis, a second in which something is sent", "commands"),
    ("redis_second_us", "the same", "us of its CPU"),
    ("redis_second_bytes", "the same", "bytes sent to it"),
    ("redis_event_us", "Redis, each event in addition", "us of its CPU"),
    ("redis_event_bytes", "the same", "bytes sent to it"),
    ("redis_event_memory", "the same, while it is kept", "bytes of its memory"),
    ("redis_back_commands", "Redis, somebody comes back for {rest} events", "commands"),
    ("redis_back_us", "the same", "us of its CPU"),
    ("redis_back_bytes", "the same", "bytes that it sends"),
    ("redis_followed_commands", "Redis, then added to an event", "commands"),
    ("redis_followed_us", "the same", "us of its CPU"),
    ("redis_bus_us", "Redis Cluster, a message for each other node", "us of CPU of both"),
)


def number(value: float) -> str:
    """Return *value* with three digits that count."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def costs(data: Dict[str, Any]) -> str:
    """Return what one stream costs."""
    rows, sizes = [], data["sizes"]
    for name, what, unit in ROWS:
        low, high = data["spread"][name]
        spread = f"{number(low)} – {number(high)}"
        said = what.format(rest=data["rest"], streams=sizes.get("busy_streams", sizes["streams"]))
        rows.append([said, number(data["figures"][name]), spread, unit])
    return table(["what", "median", "lowest – highest", "unit"], rows)


def notes(data: Dict[str, Any]) -> str:
    """Return how they were measured."""
    sizes = data["sizes"]
    said = [
        f"Medians of {sizes['rounds']} rounds, of {sizes['memory_rounds']} for memory and the cluster. CPU is"
        " that of the worker (gunicorn, gevent, on a core of its own), user and system; clients, the model"
        " and Redis share another core. Neither TLS nor a network card is among it: connections are loopback."
        " What is \"added\" is the difference of two measurements in one round; below the noise it is 0.",
        "Costs for each second and for each event were told apart by two paces. Silence was measured with a"
        " heartbeat every half second and with none, and reckoned at 15 s. Memory is PSS, the slope from"
        f" {sizes['few']:,} to {sizes['many']:,} streams.",
    ]
    if data["kernel_is_known"]:
        said.append(
            "The kernel's memory is that of the objects of two TCP connections, by their sizes in"
            " `/proc/slabinfo`, without what waits in buffers."
        )
    else:
        said.append("The kernel's memory could not be told: `/proc/slabinfo` is for root alone.")
    if data["kept"] < 0.95:
        said.append(
            f"**This machine was busy with something else**: only {data['kept']:.0%} of a pace was kept in"
            " one of the measurements. Take these figures as a draft."
        )
    return "\n\n".join(fill(each, 116) for each in said)


def compared(data: Dict[str, Any]) -> str:
    """Return what was predicted beside what was measured."""
    streams, memory = data["check"]["streams"], data["check"]["memory"]
    return table(["one worker", "predicted", "measured", "measured to predicted"], [
        [
            f"streams at {streams['rate']:g} events/s, from a view", f"{streams['predicted']:,}",
            f"{streams['measured']:,}", f"{streams['ratio']:.2f}",
        ],
        [
            f"memory with {memory['streams']:,} relayed streams that are silent",
            f"{memory['predicted_mib']:.0f} MiB", f"{memory['measured_mib']:.0f} MiB",
            f"{memory['ratio']:.2f}",
        ],
    ])


def verdict(data: Dict[str, Any]) -> str:
    """Return what follows from that."""
    streams = data["check"]["streams"]
    said: List[str] = []
    if streams["free"] < 0.95:
        said.append(
            f"The worker had only {streams['free']:.0%} of its core, because something else ran; the ratio is"
            " to that part of the prediction."
        )
    if not GOOD[0] <= streams["ratio"] <= GOOD[1]:
        said.append("**The model is wrong here**, or the machine was too busy for it.")
    elif streams["ratio"] > 1.05:
        said.append(
            "The worker carries more than the model says, because an event becomes cheaper the more of them"
            " there are: what is ready together is handled together. The model takes the cost of the first"
            " table for all loads; so its plans are on the safe side where workers are full."
        )
    elif streams["ratio"] < 0.95:
        said.append("The worker carries less than the model says; plan with that much more.")
    return fill(" ".join(said) or "The model is right within a twentieth.", 116)


def steps(data: Dict[str, Any]) -> str:
    """Return how the worker did, step by step."""
    streams = data["check"]["streams"]
    rows = []
    for step in streams["steps"]:
        events = step["streams"] * step["kept"] * streams["rate"]
        cost = number(step["cpu"] * 1e6 / events) if events else "–"
        rows.append([f"{step['streams']:,}", f"{step['kept']:.0%}", f"{step['cpu']:.0%}", cost])
    return table(["streams", "pace kept", "of a core", "us for each event"], rows)


def by_rate(figures: Figures) -> str:
    """Return what one worker carries."""
    rows = []
    for rate in RATES:
        cells = [f"{rate:g}"]
        for share in SHARES:
            most, why = carried(Load(1, rate=rate, resumable=share), figures, MACHINE)
            cells.append(f"{most:,} ({why})")
        rows.append(cells)
    return table(["events/s each", *(f"{share:.0%} resumable" for share in SHARES)], rows)


def plans(figures: Figures) -> str:
    """Return what many streams need."""
    rows = []
    for streams in STREAMS:
        for share in SHARES:
            found = plan(Load(streams, resumable=share), figures, MACHINE)
            redis = "none" if not share else f"{found.shards:,}"
            if found.clusters > 1:
                redis += f" in {found.clusters} clusters"
            rows.append([
                f"{streams:,}", f"{share:.0%}", f"{found.workers:,}", f"{found.machines:,}",
                f"{found.cores:,.1f}", f"{found.memory_gib:,.1f} GiB", redis, _redis(found),
            ])
    head = ["streams", "resumable", "workers", "machines", "cores busy", "memory", "Redis shards", "of Redis"]
    return table(head, rows)


def _redis(found: Plan) -> str:
    if not found.shards:
        return ""
    said = f"{found.redis_commands:,.0f} commands/s, {found.redis_cores:,.2f} cores"
    return f"{said}, {found.redis_gib:,.1f} GiB"


def network(figures: Figures) -> str:
    """Return what many streams are for the network and the kernel."""
    rows = []
    for streams in STREAMS:
        found = plan(Load(streams), figures, MACHINE)
        ports = streams / found.machines
        rows.append([
            f"{streams:,}", f"{found.bits / 1e9:,.2f} Gbit/s", f"{streams * Load(1).rate:,.0f}",
            f"{found.starts:,.0f}", f"{streams * figures.stream_files:,.0f}", f"{ports:,.0f}",
        ])
    return table([
        "streams", "to clients, with TCP and IP", "packets/s", "begin in a second", "open files of workers",
        "streams of a machine",
    ], rows)


def machine(data: Dict[str, Any]) -> str:
    """Return on what this was measured."""
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    said = ", ".join(f"{name}: {value}" for name, value in data["machine"].items())
    return fill(f"Measured with {versions}; {said}. All of it: [scaling.json](scaling.json).", 116)


def values(data: Dict[str, Any], figures: Figures) -> Dict[str, str]:
    """Return what stands in the text itself."""
    load, whole = Load(1), Machine().worker_streams
    million = plan(Load(STREAMS[-1]), figures, MACHINE)
    ten, hundred = (plan(Load(streams), figures, MACHINE) for streams in STREAMS[1:3])
    herd = whole * figures.return_us / 1e6
    kept = figures.redis_start_memory + load.rate * load.length * figures.redis_event_memory
    return {
        "workers_1000": f"{plan(Load(STREAMS[0]), figures, MACHINE).workers:,}",
        "machines_10000": f"{ten.machines:,}", "machines_100000": f"{hundred.machines:,}",
        "pace": f"{data['check']['streams']['rate']:g}",
        "kept": f"{data['check']['streams']['kept']:.0%}",
        "busy": f"{MACHINE.busy:.0%}", "length": f"{load.length:g}", "rate": f"{load.rate:g}",
        "cores": str(MACHINE.cores), "memory": f"{MACHINE.memory_gib:g}", "back": f"{load.comes_back:.0%}",
        "stream_kib": number(figures.stream_kib), "kernel_kib": number(figures.kernel_kib),
        "stream_files": f"{figures.stream_files:.1f}", "idle_us": number(figures.idle_us),
        "worker_2000": f"{figures.worker_mib + 2000 * (figures.stream_kib + figures.kernel_kib) / 1024:,.0f}",
        "starts": f"{million.starts:,.0f}", "million_cores": f"{million.cores:,.0f}",
        "ports_streams": f"{MACHINE.cores * whole:,}", "rest": str(data["rest"]),
        "back_ms": number(figures.back_us / 1e3), "return_ms": number(figures.return_us / 1e3),
        "back_commands": f"{figures.redis_back_commands:.0f}", "followed_us": number(figures.followed_us),
        "followed_times": number(figures.followed_us / figures.event_us), "herd_cpu": number(herd),
        "herd_machine": number(herd),  # each core brings as many back as it serves
        "redis_start": f"{figures.redis_start_commands:.0f}",
        "redis_second": number(figures.redis_second_commands),
        "redis_event_bytes": number(figures.redis_event_bytes),
        "redis_second_bytes": number(figures.redis_second_bytes), "redis_memory": number(kept / 1024),
        "stream_streams": f"{whole:,}", "bus_us": number(figures.redis_bus_us),
        "bus_streams": f"{MACHINE.busy / 2 * 1e6 / (WRITES * figures.redis_bus_us):,.0f}",
    }


def page(data: Dict[str, Any]) -> str:
    """Return the text of the page for the figures in *data*."""
    figures = figures_in(data)
    parts = {
        **values(data, figures), "figures": costs(data), "notes": notes(data), "check": compared(data),
        "verdict": verdict(data), "steps": steps(data), "by_rate": by_rate(figures), "plans": plans(figures),
        "network": network(figures), "machine": machine(data),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, value in parts.items():
        text = text.replace("{%s}" % name, value)
    return text


if __name__ == "__main__":
    sys.exit(write_or_check(TARGET, page(json.loads(SOURCE.read_text(encoding="utf-8")))))
