"""Runs the works and keeps what they give, round by round."""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from typing import Any, Callable, Dict, List, Optional, Sequence

from benchmarks.peers.loop import Loop, Upstream
from benchmarks.peers.running import Running, running
from benchmarks.peers.servers import PEERS, Peer
from benchmarks.peers.works import Field, Figure, Taken, Work, Workload

__all__ = ["compare"]

_Rounds = Dict[str, List[Optional[float]]]


def compare(peers: Sequence[Peer], works: Sequence[Work], load: Workload) -> Dict[str, Any]:
    """Let *peers* do *works*, and return all of it, ready for JSON."""
    left_out = {peer.name: "not asked for" for peer in PEERS if peer not in peers}
    with Loop() as loop:
        upstream = Upstream(loop)
        with running(peers, upstream.url) as (found, missing):
            field = Field(loop, upstream, load)
            rows: List[Dict[str, Any]] = []
            for work in works:
                # What is loaded or compiled but once is not the work's: a server has one turn before all.
                is_first = work.is_relay not in {each["is_relay"] for each in rows}
                rows.append(_row(work, found, field, load.has_rehearsal and is_first))
    names = [each.name for each in found]
    return {
        "servers": [
            {
                "name": peer.name, "title": peer.title, "configuration": peer.configuration,
                "versions": peer.versions(),
            }
            for peer in peers if peer.name in names
        ],
        "left_out": {**left_out, **missing},
        "load": load._asdict(),
        "works": rows,
    }


def _row(work: Work, running_peers: List[Running], field: Field, rehearses: bool) -> Dict[str, Any]:
    rounds = work.rounds(field.load)
    found = [
        each for each in running_peers
        if (each.peer.relay is not None if work.is_relay else each.peer.serves)
    ]
    print(f"... {work.name}: {work.describe(field.load)}", file=sys.stderr, flush=True)
    begun = time.monotonic()
    figures: Dict[str, _Rounds] = {
        figure.name: {each.name: [] for each in found} for figure in work.figures
    }
    failed: Dict[str, str] = {}
    for number in range(0 if rehearses else 1, rounds + 1):
        turn = number % max(1, len(found))
        for group in _groups(work, found[turn:] + found[:turn], field.load):
            group = [each for each in group if each.name not in failed]
            for name, taken in _turn(work, group, field, failed).items():
                for figure in work.figures if number else ():
                    figures[figure.name][name].append(taken.get(figure.name))
    print(f"    {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return {
        "work": work.name,
        "title": work.title,
        "description": work.describe(field.load),
        "is_relay": work.is_relay,
        "load_average": os.getloadavg()[0],
        "failed": failed,
        "figures": [_summary(figure, figures[figure.name]) for figure in work.figures],
    }


def _groups(work: Work, found: List[Running], load: Workload) -> List[List[Running]]:
    """Return who is measured together: as many as this process may have sockets for."""
    size = 1
    if work.together is not None:
        size = max(1, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1000) // load.idle)
    return [found[start:start + size] for start in range(0, len(found), size)]


def _turn(work: Work, group: List[Running], field: Field, failed: Dict[str, str]) -> Dict[str, Taken]:
    if work.together is not None and len(group) > 1:
        try:
            return work.together(group, field)
        except (RuntimeError, OSError) as error:
            print(f"    one by one, because {error}", file=sys.stderr, flush=True)
            field.loop.leave_all()
    taken: Dict[str, Taken] = {}
    for each in group:
        try:
            taken[each.name] = work.measure(each, field)
        except (RuntimeError, OSError) as error:
            # The others go on: a run is long.
            failed[each.name] = f"{type(error).__name__}: {error}"[:300]
            print(f"    {each.name} failed: {failed[each.name]}", file=sys.stderr, flush=True)
            field.loop.leave_all()
            field.upstream.hang_up()
            each.settle()
    return taken


def _summary(figure: Figure, rounds: _Rounds) -> Dict[str, Any]:
    def to_bare(values: List[Optional[float]]) -> Optional[float]:
        return _ratio(values, _mean(rounds.get("bare", []), rounds.get("bare again", [])))

    noise = [
        abs(one / two - 1) for one, two in zip(rounds.get("bare", []), rounds.get("bare again", []))
        if one and two
    ]
    return {
        "figure": figure.name,
        "unit": figure.unit,
        "more_is_better": figure.more_is_better,
        "noise": statistics.median(noise) if noise else None,
        "servers": {
            name: {
                "median": _of(statistics.median, values),
                "lowest": _of(min, values),
                "highest": _of(max, values),
                "to bare": to_bare(values),
                "ours to it": _ratio(rounds.get("ours", []), values),
                "rounds": [None if value is None else float(f"{value:.5g}") for value in values],
            }
            for name, values in rounds.items() if values
        },
    }


def _of(
    function: Callable[[List[float]], float], values: Sequence[Optional[float]]
) -> Optional[float]:
    known = [value for value in values if value is not None]
    return function(known) if known else None


def _mean(ones: List[Optional[float]], others: List[Optional[float]]) -> List[Optional[float]]:
    return [
        None if one is None or other is None else (one + other) / 2 for one, other in zip(ones, others)
    ]


def _ratio(ones: Sequence[Optional[float]], others: Sequence[Optional[float]]) -> Optional[float]:
    """Return the median of the ratios round by round: what disturbs a round disturbs all of it."""
    pairs = [(one, other) for one, other in zip(ones, others) if one is not None and other]
    return _of(statistics.median, [one / other for one, other in pairs])
