"""The command line of the benchmarks: ``python -m benchmarks --help``."""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
from typing import List, Optional

from benchmarks.cases import CASES, Sizes
from benchmarks.contenders import contenders, pin_clients, upstream
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


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmarks and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="case", help="only these cases; see --list")
    parser.add_argument("--list", action="store_true", help="name the cases and exit")
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny sizes, no meaning")
    parser.add_argument("--rounds", type=int, help="rounds of each case (default: as many as each needs)")
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    parser.add_argument("--check", action="store_true", help="fail where a ratio misses its target")
    options = parser.parse_args(argv)
    if options.list:
        for case in CASES:
            print(f"{case.name}: {case.describe(Sizes())}")
        return 0
    names = [case.name for case in CASES]
    for name in options.cases:
        if name not in names:
            parser.error(f"there is no case {name!r}; there are: {', '.join(names)}")

    sizes = _QUICK if options.quick else Sizes()
    if options.rounds:
        sizes = sizes._replace(
            rounds=options.rounds, paced_rounds=options.rounds, pausing_rounds=options.rounds,
            idle_rounds=options.rounds,
        )
    _allow_sockets()
    pin_clients()
    report = Report(sizes)
    with upstream() as url, contenders(url) as found:
        for case in CASES:
            if options.cases and case.name not in options.cases:
                continue
            print(f"... {case.name}: {case.describe(sizes)}", file=sys.stderr, flush=True)
            report.add(case, case.measure(found, sizes, url), os.getloadavg()[0])
    print(report.text())
    if options.quick:
        print("\nThis was --quick: it shows that everything works, and no more.")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report.data(), file, indent=1)
    missed = report.missed()
    if missed and options.check:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
