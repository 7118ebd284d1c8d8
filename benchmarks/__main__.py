"""The command line of the benchmarks: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from typing import Any, Dict, List, Optional, Set

from benchmarks.cases import CASES, Sizes
from benchmarks.contenders import contenders, pin_clients, upstream
from benchmarks.peers import table
from benchmarks.peers.compare import compare
from benchmarks.peers.servers import PEERS, Peer
from benchmarks.peers.works import WORKS, Workload
from benchmarks.report import Report

#: Enough to see that everything works, and too little to mean anything.
_QUICK = Sizes(
    rounds=1, paced_streams=10, paced_rounds=1, hot_streams=2, hot_tokens=200, relay_streams=2,
    relay_tokens=64, burst_tokens=64, single_tokens=10, pausing_rounds=1, idle_streams=50,
    idle_rounds=1, first_bytes=5,
    passing_requests=100, json_characters=4000, json_large=20000, json_rounds=1,
    bytes_tokens=40, encode_turns=20,
)


def _allow_sockets() -> None:
    """Allow as many open sockets as the system lets us; the servers inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


#: The same for the comparison with other servers.
_QUICK_LOAD = Workload(
    rounds=1, has_rehearsal=False, seconds=0.2, warm_up=0.05, few=5, some=10, many=20, few_rounds=1,
    hot_streams=2, hot_tokens=50, first_events=3, churn=4, churn_at_once=2, idle=20, idle_seconds=0.2,
    relayed=3, fast=2, fast_tokens=32, first_tokens=2, left=3, left_patience=1.0,
)


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmarks and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "cases", nargs="*", metavar="case",
        help="only these; see --list. 'bars' are all that compare to a bare generator, 'peers' all others",
    )
    parser.add_argument("--list", action="store_true", help="name the cases and the peers, and exit")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny sizes, no meaning")
    parser.add_argument("--rounds", type=int, help="rounds of each case (default: as many as each needs)")
    parser.add_argument("--peers", metavar="NAME,...", help="only these beside bare and ours (default: all)")
    parser.add_argument("--without", metavar="NAME,...", default="", help="not these, such as litellm")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--check", action="store_true", help="fail where a ratio misses its target")
    options = parser.parse_args(argv)
    if options.list:
        for case in CASES:
            print(f"{case.name}: {case.describe(Sizes())}")
        for work in WORKS:
            print(f"{work.name}: {work.describe(Workload())}")
        for peer in PEERS:
            print(f"--peers {peer.name!r}: {peer.title}; {peer.configuration}")
        return 0
    groups = {"bars": [case.name for case in CASES], "peers": [work.name for work in WORKS]}
    names = _chosen(parser, "case", options.cases or list(groups), groups["bars"] + groups["peers"], groups)
    peers = _chosen_peers(parser, options.peers, options.without)

    sizes, load = (_QUICK, _QUICK_LOAD) if options.quick else (Sizes(), Workload())
    if options.rounds:
        sizes = sizes._replace(
            rounds=options.rounds, paced_rounds=options.rounds, pausing_rounds=options.rounds,
            idle_rounds=options.rounds,
        )
        load = load._replace(rounds=options.rounds, few_rounds=options.rounds)
    _allow_sockets()
    pin_clients()
    report = Report(sizes)
    data: Dict[str, Any] = {}
    cases = [case for case in CASES if case.name in names]
    works = [work for work in WORKS if work.name in names]
    if cases:
        with upstream() as url, contenders(url) as found:
            for case in cases:
                print(f"... {case.name}: {case.describe(sizes)}", file=sys.stderr, flush=True)
                report.add(case, case.measure(found, sizes, url), os.getloadavg()[0])
        print(report.text())
    if works:
        data["peers"] = compare(peers, works, load)
        print(table.text(data["peers"]))
    if options.quick:
        print("\nThis was --quick: it shows that everything works, and no more.")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({**report.data(), **data}, file, indent=1)
            file.write("\n")
    missed = report.missed()
    if missed and options.check:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


def _chosen_peers(parser: argparse.ArgumentParser, wanted: Optional[str], unwanted: str) -> List[Peer]:
    known = [peer.name for peer in PEERS]
    names = _chosen(parser, "peer", known if wanted is None else wanted.split(","), known, {})
    without = _chosen(parser, "peer", unwanted.split(",") if unwanted else [], known, {})
    always = ("bare", "bare again", "ours")
    return [
        peer for peer in PEERS if peer.name in always or peer.name in names and peer.name not in without
    ]


def _chosen(
    parser: argparse.ArgumentParser, what: str, wanted: List[str], known: List[str],
    groups: Dict[str, List[str]],
) -> Set[str]:
    for name in wanted:
        if name not in known and name not in groups:
            parser.error(f"there is no {what} {name!r}; there are: {', '.join([*groups, *known])}")
    return {each for name in wanted for each in groups.get(name, [name])}


if __name__ == "__main__":
    sys.exit(main())
