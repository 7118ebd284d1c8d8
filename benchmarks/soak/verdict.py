"""What was counted, judged: pure functions from figures to findings; no finding is a pass.

What must be so at each quiet moment, when no client is left:

* each connection that the upstream has seen opened it has seen closed, and no life has asked it twice;
* in each worker: no stream, no call of the upstream, nobody watched, nothing to be written to the log; of
  greenlets, threads, file descriptors and the ticker's entries no more than after the warm-up, by name;
* every stream that was made or begun has ended, once, by its id: ``on_end`` and the signals, in notes that
  outlive their worker; and for a reason that its life gives;
* every life has ended as planned; it may have been cut only on a server that was just being disturbed;
* memory and objects of a worker do not grow with the number of streams (:func:`growth`);
* nothing is left in the event log beyond its time, and the logs of the servers have no traceback but those
  that were provoked.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

from benchmarks.soak.lives import KINDS

__all__ = ["BOUNDS", "Finding", "growth", "judge", "stirs"]

#: So many seconds around a disturbance a server may cut what it serves: gunicorn's graceful_timeout and more.
AFTER = 20.0
#: Ids in a finding.
_EXAMPLES = 5

#: What may be used more at the end than after the first phase: for each 1,000 streams, and in all. The first
#: is a quarter of a KiB, or a fifth of an object, for each stream; no leak of ours could be as small. The
#: second is noise: what malloc keeps back, and tables that grow in steps.
BOUNDS = {"memory": (256.0, 8192.0), "blocks": (200.0, 8000.0)}
#: Threads of a pool that are not there yet at the first moment cost more: so many times the noise.
_WITH_THREADS = 3
_UNITS = {"memory": "KiB", "blocks": "blocks of Python's allocator"}


class Finding(NamedTuple):
    """Something that should not be."""

    what: str
    where: str
    count: int
    #: Ids of lives, of streams, or names.
    examples: List[str]

    def __str__(self) -> str:
        more = f": {'; '.join(self.examples)}" if self.examples else ""
        return f"{self.what}, {self.where}: {self.count}{more}"


def _finding(what: str, where: str, examples: Sequence[Any]) -> Finding:
    return Finding(what, where, len(examples), [str(each) for each in examples[:_EXAMPLES]])


def judge(found: Dict[str, Any]) -> List[Finding]:
    """Return everything in *found* (see :mod:`benchmarks.soak.running`) that should not be."""
    return [
        *_judge_lives(found), *_judge_notes(found), *_judge_upstream(found), *_judge_workers(found),
        *_judge_growth(found), *_judge_log(found), *_judge_server_logs(found),
    ]


# -- lives ----------------------------------------------------------------------------------


def was_disturbed(life: Dict[str, Any], found: Dict[str, Any]) -> bool:
    """Whether a server that *life* has asked was just losing workers."""
    events = [each for each in found["disturbances"] + found["gone"] if each["letter"] in life["asked"]]
    return any(life["begun"] - AFTER <= each["at"] <= life["ended"] + AFTER for each in events)


def _judge_lives(found: Dict[str, Any]) -> Iterator[Finding]:
    surprising: Dict[Tuple[str, str], List[str]] = {}
    for life in found["results"]:
        verdict = life["verdict"]
        if verdict == "unexpected" or verdict == "cut" and not was_disturbed(life, found):
            what = "cut for no reason" if verdict == "cut" else "did not end as planned"
            key = (f"life {what}", f"{life['kind']} on {'+'.join(life['asked'])}")
            outcome = " ".join(life["outcome"].split())[-160:]
            surprising.setdefault(key, []).append(f"{life['id']} ({outcome})")
    for (what, where), examples in sorted(surprising.items()):
        yield _finding(what, where, examples)
    if not found["results"]:
        yield Finding("no life was lived", "clients", 0, [])


def _judge_notes(found: Dict[str, Any]) -> Iterator[Finding]:
    counted: Dict[str, Counter[str]] = {
        name: Counter() for name in ("made", "end", "started", "finished")
    }
    reasons: Dict[str, str] = {}
    lives: Dict[str, List[str]] = {}
    where: Dict[str, str] = {}
    for line in found["notes"]:
        what, id, pid, more = (line.split(" ", 3) + [""])[:4]
        counted[what][id] += 1
        where[id] = pid
        if what == "made":
            lives.setdefault(more, []).append(id)
        elif what == "end":
            reasons[id] = more

    def named(ids: Iterable[str]) -> List[str]:
        owners = {id: life for life, made in lives.items() for id in made}
        return [f"stream {id} of life {owners.get(id, '?')} in worker {where[id]}" for id in sorted(ids)]

    made, end, started, finished = (counted[each] for each in ("made", "end", "started", "finished"))
    for what, ids in (
        ("stream without on_end", set(made) - set(end)),
        ("on_end called more than once", {id for id in end if end[id] > 1}),
        ("stream begun without stream_finished", set(started) - set(finished)),
        ("stream_finished sent more than once", {id for id in finished if finished[id] > 1}),
        ("stream_started sent more than once", {id for id in started if started[id] > 1}),
    ):
        if ids:
            yield _finding(what, "notes of the app", named(ids))
    wrong = []
    for life in found["results"]:
        allowed = KINDS[life["kind"]].reasons
        if life["verdict"] == "ok" and allowed and not was_disturbed(life, found):
            for id in lives.get(life["id"], ()):
                # HEAD and such are "finish".
                if id in reasons and reasons[id] not in allowed and reasons[id] != "finish":
                    wrong.append(f"life {life['id']} ({life['kind']}): {reasons[id]}, stream {id}")
    if wrong:
        yield _finding("stream ended for a reason that its life does not give", "notes of the app", wrong)


def _judge_upstream(found: Dict[str, Any]) -> Iterator[Finding]:
    for moment in found["quiet"]:
        counts = moment["upstream"]
        if counts["opened"] != counts["closed"]:
            yield Finding(
                "connection of the upstream not closed", moment["name"], counts["opened"] - counts["closed"],
                [f"life {each['life']}, {each['seconds']} s" for each in counts["open"][:_EXAMPLES]],
            )
    lives = {f"{found['plan']['seed']}.{life['id']}": life for life in found["results"]}
    twice = []
    for key, times in found["quiet"][-1]["upstream"]["repeated"].items() if found["quiet"] else ():
        life = lives.get(key)
        # Replaying one life again and again asks again and again.
        if life is not None and not found["plan"]["lives"] and not was_disturbed(life, found):
            twice.append(f"{life['id']} ({life['kind']}): {times} times")
    if twice:
        yield _finding("prompt was asked more than once", "upstream", twice)


# -- workers --------------------------------------------------------------------------------

#: Pools that grow with what is asked at the same time: which, and by how much they may.
_POOLS = (
    ("threads", re.compile("ThreadPoolExecutor"), 1 << 20),  # gunicorn's own, which has its bound
    # gevent's native threads come and go.
    ("greenlets", re.compile(r"^threadpool\.py|^_WorkerGreenlet"), 12),
    ("native threads", re.compile(""), 12),
    ("threads", re.compile("^Dummy"), 12),
    ("file descriptors", re.compile("^TCP to Redis"), 24),
    # A worker that gunicorn forks while it starts another has the file of that one, too.
    ("file descriptors", re.compile("/wgunicorn-"), 4),
)


def _judge_workers(found: Dict[str, Any]) -> Iterator[Finding]:
    base: Dict[str, Dict[str, int]] = {}
    for moment in found["quiet"]:
        warm = moment["name"] == "warm-up"
        for name, worker in moment["workers"].items():
            where = f"worker {name} ({worker['worker']}), {moment['name']}"
            for what, count in worker["alive"].items():
                if count and what != "ticker's entries":
                    yield Finding(f"alive: {what}", where, count, worker["streams"])
            for what in ("TCP to the upstream", "TCP from clients"):
                if worker["fds"].get(what):
                    yield Finding(f"file descriptors: {what}", where, worker["fds"][what], [])
            for what, counts in _named_counts(worker):
                known = base.setdefault(f"{worker['server']} {what}", {})
                for kind, count in counts.items():
                    if warm:
                        known[kind] = max(count, known.get(kind, 0))
                    elif known and count > known.get(kind, 0) + _slack(what, kind):
                        yield Finding(f"more {what} than after the warm-up: {kind}", where,
                                      count - known.get(kind, 0), [])


def stirs(found: Dict[str, Any], moment: Dict[str, Any]) -> bool:
    """Whether there would be findings about workers if all were counted in this *moment* that comes next."""
    before = list(_judge_workers(found))
    return len(list(_judge_workers(dict(found, quiet=[*found["quiet"], moment])))) > len(before)


def _named_counts(worker: Dict[str, Any]) -> Iterator[Tuple[str, Dict[str, int]]]:
    yield "file descriptors", {
        kind: count for kind, count in worker["fds"].items()
        if kind not in ("TCP to the upstream", "TCP from clients")
    }
    yield "greenlets", worker["greenlets"]
    yield "threads", worker["threads"]
    pooled = sum(count for kind, count in worker["threads"].items() if _slack("threads", kind) > 12)
    yield "native threads", {"in /proc": worker["tasks"] - pooled}
    yield "entries", {"of the ticker": worker["alive"]["ticker's entries"]}


def _slack(what: str, kind: str) -> int:
    return next((most for pool, name, most in _POOLS if pool == what and name.search(kind)), 0)


def growth(points: Sequence[Tuple[float, float]]) -> float:
    """Return the slope of a line through *points*: the median of all slopes between two (Theil-Sen)."""
    slopes = sorted(
        (right[1] - left[1]) / (right[0] - left[0])
        for number, left in enumerate(points) for right in points[number + 1:] if right[0] > left[0]
    )
    if not slopes:
        return 0.0
    middle = len(slopes) // 2
    return slopes[middle] if len(slopes) % 2 else (slopes[middle - 1] + slopes[middle]) / 2


def growths(found: Dict[str, Any]) -> Iterator[Dict[str, Any]]:
    """Return, for each worker that was there all the time, how its memory has grown with its streams."""
    moments = [moment for moment in found["quiet"] if moment["name"] != "warm-up"]
    if len(moments) < 2:
        return
    for name, last in moments[-1]["workers"].items():
        # After the first phase all tables have the size that so many streams at once need.
        present = [moment for moment in moments if name in moment["workers"]]
        if len(present) < len(moments):
            continue
        pid = str(last["pid"])
        streams = [moment["ended"].get(pid, 0) for moment in present]
        for what in BOUNDS:
            values = [float(moment["workers"][name][what]) for moment in present]
            per_stream = growth(list(zip(streams, values)))
            slope, noise = BOUNDS[what]
            if last["worker"] == "gthread":
                noise *= _WITH_THREADS
            grown = streams[-1] - streams[0]
            kinds = Counter(last["kinds"])
            kinds.subtract(present[0]["workers"][name]["kinds"])
            yield {
                "worker": name, "what": what, "streams": grown, "first": values[0],
                "last": values[-1], "grown": per_stream * grown,
                "per 1,000 streams": per_stream * 1000, "bound": noise + slope * grown / 1000,
                "kinds": {kind: count for kind, count in kinds.most_common(_EXAMPLES) if count > 50},
            }


def _judge_growth(found: Dict[str, Any]) -> Iterator[Finding]:
    for row in growths(found):
        if row["grown"] > row["bound"]:
            pace = f"{row['per 1,000 streams']:.0f} {_UNITS[row['what']]}"
            kinds = [f"{count:+d} {kind}" for kind, count in row["kinds"].items()]
            where = f"worker {row['worker']}"
            what = f"{row['what']} grows, by {pace} per 1,000 streams"
            yield Finding(what, where, int(row["grown"]), kinds)


# -- logs -----------------------------------------------------------------------------------


def _judge_log(found: Dict[str, Any]) -> Iterator[Finding]:
    left = found.get("log at the end") or {}
    if "overdue" not in left and left.get("streams"):
        names = found.get("names at the end", [])[:_EXAMPLES]
        yield Finding("stream left in the event log", found["plan"]["log"], left["streams"], names)
    for what, name in (
        ("open", "open stream"), ("overdue", "stream past its time"),
        ("entries without a stream", "entries without a stream"),
    ):
        if left.get(what):
            yield Finding(f"{name} left in the event log", found["plan"]["log"], left[what], [])
    sizes = [moment["log"] for moment in found["quiet"] if moment["name"] != "warm-up" and moment["log"]]
    for what in ("bytes of the file", "bytes in use"):
        values = [each[what] for each in sizes if what in each]
        if len(values) > 1 and values[-1] > 2 * values[0] + (8 << 20):
            yield Finding(f"event log grows: {what}", found["plan"]["log"], values[-1] - values[0], [])


_TRACEBACK = re.compile(
    r"^(.*)\nTraceback \(most recent call last\):\n((?:[ \t].*\n|\n(?=[ \t]))*)(.*)$", re.MULTILINE
)
_FRAME = re.compile(r'^ *File "(?:.*/)?(.+?)", (line \d+, in .*)$', re.MULTILINE)
_BAD = re.compile(
    r"^.*(?:WORKER TIMEOUT|was sent SIG(?:KILL|ABRT)|Exception ignored in|Fatal Python).*$", re.MULTILINE
)


def _is_gunicorns(before: str, frames: str, error: str) -> bool:
    """Whether gunicorn says that of connections which have no request yet, when their worker goes."""
    if "GreenletExit" in error:  # idle, when it gives the worker up after its graceful_timeout
        return "(no URI read)" in before
    # Just accepted: it asks the listener for its name, and has closed it.
    return "Bad file descriptor" in error and _last(frames).startswith("_socketcommon.py line") and (
        "in getsockname < base_async.py line" in _last(frames)
    )


def _last(frames: str) -> str:
    """Return where the last three of the *frames* of a traceback are, the last of them first."""
    return " < ".join(" ".join(frame) for frame in _FRAME.findall(frames)[:-4:-1])


def _judge_server_logs(found: Dict[str, Any]) -> Iterator[Finding]:
    for name, log in found["logs"].items():
        raised = [
            f"{error[:200]} in {_last(frames)}, after {before[:200]!r}"
            for before, frames, error in _TRACEBACK.findall("\n" + log)
            if "Provoked" not in error and not _is_gunicorns(before, frames, error)
        ]
        if raised:
            counts = Counter(raised).most_common(_EXAMPLES)
            examples = [f"{text} ({count})" for text, count in counts]
            yield Finding("traceback in the log", name, len(raised), examples)
        bad = _BAD.findall(log)
        if bad:
            yield _finding("trouble in the log", name, bad)
