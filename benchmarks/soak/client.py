"""The process that lives the lives: ``python -m benchmarks.soak.client`` reads its task as JSON.

``servers`` has for each letter the address and how many streams it gets; ``seconds`` is how long new lives
begin, after that those under way get ``drain`` seconds, and leave. ``first`` is the number before that of
each slot's first life; with ``each_kind`` a slot has one life, of a kind that follows from its number.
``lives`` names the only ones to live, each as often as there is time. What has become of each is a line of
JSON in ``results``.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from typing import Any, Dict, List, Optional, Set

import gevent

from benchmarks.soak.asking import Cut, Unexpected
from benchmarks.soak.lives import KINDS, Life

__all__ = ["main"]


class Client:
    """All lives of one phase."""

    def __init__(self, task: Dict[str, Any]) -> None:
        self._task = task
        self._servers = {letter: tuple(each["address"]) for letter, each in task["servers"].items()}
        self._results = open(task["results"], "a")
        self._ends_at = time.monotonic() + task["seconds"]
        self._living: Set[Any] = set()

    def run(self) -> None:
        """Live them all."""
        task = self._task
        slots: List[Any] = []
        if task.get("lives"):
            slots = [gevent.spawn(self._slot, id[0], id, [id]) for id in task["lives"]]
        else:
            for letter, each in sorted(task["servers"].items()):
                for number in range(each["streams"]):
                    kinds = list(KINDS) if task.get("each_kind") else None
                    kind = kinds[number % len(kinds)] if kinds else None
                    slots.append(gevent.spawn(self._slot, letter, f"{letter}{number}", None, kind))
        gevent.joinall(slots, timeout=max(0.0, self._ends_at - time.monotonic()) + task["drain"])
        gevent.killall(slots)
        self._results.close()

    def _slot(self, letter: str, name: str, only: Optional[List[str]], kind: Optional[str] = None) -> None:
        task, number = self._task, int(self._task.get("first", 0))
        # Not all in one moment.
        gevent.sleep(hash_of(name) * min(3.0, task["seconds"] / 4))
        while time.monotonic() < self._ends_at:
            number += 1
            id = only[0] if only else f"{name}.{number}" + (f"~{kind}" if kind else "")
            self._live(Life(task["seed"], id, self._servers, task["pace"], task["shares"], task["grace"]))
            if kind is not None:
                return

    def _live(self, life: Life) -> None:
        begun = time.monotonic()
        verdict, outcome = "sent home", "sent home"
        try:
            outcome = life.live()
            verdict = "ok"
        except Cut as error:
            verdict, outcome = "cut", str(error)
        except Unexpected as error:
            verdict, outcome = "unexpected", str(error)
        except OSError as error:
            verdict, outcome = "cut", repr(error)
        except Exception:
            verdict, outcome = "unexpected", traceback.format_exc()
        finally:
            self._results.write(json.dumps({
                "id": life.id, "kind": life.kind, "asked": sorted(life.asked), "verdict": verdict,
                "outcome": outcome, "begun": begun, "ended": time.monotonic(),
            }) + "\n")


def hash_of(name: str) -> float:
    """Return a number from 0 to 1 that is always the same for *name*."""
    return sum(ord(char) * 31 ** at for at, char in enumerate(name)) % 997 / 997


def main() -> None:
    """Live what standard input asks for."""
    Client(json.loads(sys.stdin.readline())).run()


if __name__ == "__main__":
    main()
