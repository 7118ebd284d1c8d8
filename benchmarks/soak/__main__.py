"""The command line of the soak: ``python -m benchmarks.soak --help``."""

from __future__ import annotations

import argparse
import json
import resource
import sys
from pathlib import Path
from typing import List, Optional

from benchmarks.soak import broken
from benchmarks.soak.report import text
from benchmarks.soak.running import Plan, run
from benchmarks.soak.verdict import growths, judge


def _allow_sockets() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(argv: Optional[List[str]] = None) -> int:
    """Run a soak; return 1 if anything is left, or has ended as it should not."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="A thousand streams with random lives; nothing may be left.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of load (default: 10)")
    parser.add_argument("--streams", type=int, default=1000, help="at once (default: 1000)")
    parser.add_argument("--seed", type=int, default=1, help="of all chance (default: 1)")
    parser.add_argument("--worker", choices=["gevent", "gthread"], default="gevent",
                        help="of the large servers; a small one has the other (default: gevent)")
    parser.add_argument("--log", choices=["sqlite", "redis", "memory"], default="sqlite",
                        help="event log of resumable streams (default: sqlite)")
    parser.add_argument("--phases", type=int, default=0,
                        help="moments at which all is counted (default: one every 90 s, at least 2)")
    parser.add_argument("--pace", type=float, default=1.0, help="factor of all durations (default: 1)")
    parser.add_argument("--alone", action="store_true", help="only the server that is not disturbed")
    parser.add_argument("--workers", type=int, default=2, help="of the large servers (default: 2)")
    parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS",
                        help="in which all must be quiet after a phase (default: as the app's settings ask)")
    parser.add_argument("--lives", default="", metavar="ID,...", help="only these lives, again and again")
    parser.add_argument("--broken", default="", metavar="WAY,...",
                        help=f"break the app, to see it found: {', '.join(broken.NAMES)}")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all that was counted to this file")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="keep logs and notes in this new folder")
    options = parser.parse_args(argv)
    ways = tuple(filter(None, options.broken.split(",")))
    for way in ways:
        if way not in broken.NAMES:
            parser.error(f"there is no way {way!r}; there are: {', '.join(broken.NAMES)}")
    _allow_sockets()
    plan = Plan(
        seconds=60 * options.minutes, streams=options.streams, seed=options.seed, worker=options.worker,
        log=options.log, pace=options.pace, phases=options.phases, broken=ways, alone=options.alone,
        workers=options.workers, patience=options.patience,
        lives=tuple(filter(None, options.lives.split(","))),
    )
    found = run(plan, lambda said: print(f"... {said}", file=sys.stderr, flush=True), options.keep)
    findings = judge(found)
    print(text(found, findings))
    if options.json:
        found.update(findings=[each._asdict() for each in findings], growth=list(growths(found)))
        options.json.write_text(json.dumps(found, indent=1))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
