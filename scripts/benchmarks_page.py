"""Write docs/benchmarks.md and its plots from docs/benchmarks.json; ``--check`` only compares.

The figures come from ``make bench ARGS="--json docs/benchmarks.json"``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

from generated import write_or_check
from plots import Bar, Line, bars, lines

DOCS = Path(__file__).resolve().parent.parent / "docs"
SOURCE, TARGET = DOCS / "benchmarks.json", DOCS / "benchmarks.md"

HEAD = """\
# Benchmarks

What this library costs beside a bare Flask generator, and what the same work costs on the servers that
people would move to instead. Everything on this page, its plots too, is written by
`scripts/benchmarks_page.py` from the figures of `make bench`, which are in
[benchmarks.json](benchmarks.json), round by round.
"""

NOT_MEASURED = """\
Not measured yet: the figures of this part are not in benchmarks.json. `make bench` takes them.
"""

FLOORS = """\
### Where the rest goes

- **Paced streams.** What a token runs through in the library is counted by
  `tests/test_hot_path.py`; it is little where its stream is in the processor's cache. Between two
  tokens of one stream hundreds of others have had theirs, so that is not the rule: most of what is
  above the bare generator is waiting for memory. What each token touches lies side by side for that
  reason.
- **Memory.** An idle stream takes no more than a generator under `stream_with_context` takes, the
  second column of figures below. What that is above the bare one is Flask's request context: it is
  kept because a generator may use `request`, `g` and the session.
- **Paced relays.** Copying between two gevent sockets is the floor: each token wakes a greenlet, is
  received and is sent. On top of it come the HTTP chunks of both sides, finding the end of an
  event, JSON, and the stream; with few streams nothing of that is shared, and the processor has
  slept in between.
"""

BARE = """\
## Beside a bare Flask generator

An app that uses this library, with everything switched on, is compared to a bare Flask
generator on the same gunicorn with the gevent worker, in turns within one run. CPU is that of the
worker process. The same bare app runs on a second server, which shows the noise. A ratio below 1
means less than the bare generator needs. Where streams keep a pace their client never sleeps: to wake
it would be charged to whoever sends, by chance, and more to the slower one.
"""

PEERS = """\
## Beside other servers

The same work on each, in turns. Each runs as its documentation recommends, with one worker process and
without an access log, on a core of its own; the client has another. CPU is that of all processes of a
server, memory is PSS. The figure is the median of the rounds, with the lowest and the highest beside it;
*to bare* and *ours to it* are medians of the ratios round by round, and below 1 means less. The bare Flask
app is there twice: what differs between these two is noise.

Events are due at moments that server and client know, on the clock that they share. A delay is counted from
the moment at which an event was due, so a server that falls behind cannot hide it. It includes the timers of
each runtime: those of uvloop and Node are whole milliseconds, which are rounded up here.
"""

HOW = """\
## Run it yourself

```
make bench                                            # all of it: about 25 minutes on two idle cores
make bench ARGS="--json docs/benchmarks.json"         # keep them; then: python scripts/benchmarks_page.py
make bench ARGS="--without litellm"                   # a third of a gigabyte less to install; says so
make bench ARGS="bars"                                # only beside a bare Flask generator
make bench ARGS="peers/paced-200 --peers starlette,node"
make bench ARGS="--list"                              # the cases and the servers
make bench ARGS="--quick"                             # does everything work? The figures mean nothing
```

Each server of another framework gets a virtual environment under `build/bench`, made from the pinned versions
in `benchmarks/peers/requirements` and kept until these change. Node and nginx are those of the system. What
cannot be installed is left out, and that is said. A machine with two cores that do nothing else is needed for
figures that mean something: look at the noise.
"""


class Promise(NamedTuple):
    """What the library is meant to keep to."""

    text: str
    #: What is good enough: at most so much.
    bar: float
    unit: str
    #: Finds it in the figures; ``None`` where it is not there.
    find: Callable[[Dict[str, Any]], Optional[float]]


def _case(name: str, contender: str = "") -> Callable[[Dict[str, Any]], Optional[float]]:
    """Find the ratio of a case, or the median of one contender."""

    def find(data: Dict[str, Any]) -> Optional[float]:
        for row in data["results"]:
            if row["case"] == name:
                found: Optional[float] = row["medians"].get(contender) if contender else row["ratio"]
                return found
        return None

    return find


def _work(work: str, figure: str, server: str, value: str) -> Callable[[Dict[str, Any]], Optional[float]]:
    """Find a figure of a server in a work."""

    def find(data: Dict[str, Any]) -> Optional[float]:
        for row in data.get("peers", {}).get("works", []):
            for each in row["figures"]:
                if (row["work"], each["figure"]) == (work, figure) and server in each["servers"]:
                    found: Optional[float] = each["servers"][server][value]
                    return found
        return None

    return find


PROMISES = (
    Promise("CPU per event, 200 paced streams, to a bare Flask generator", 1.10, "", _case("paced")),
    Promise(
        "the same, to sse-starlette on uvicorn", 0.75, "",
        _work("peers/paced-200", "CPU", "starlette", "ours to it"),
    ),
    Promise("CPU per event, bursts of a generator, to a bare one", 0.30, "", _case("hot")),
    Promise("CPU per event, relay of a fast upstream, to a bare one", 0.30, "", _case("relay")),
    Promise(
        "CPU per event, paced relay byte for byte, to copying between two gevent sockets", 2.0, "",
        _case("bytes, single"),
    ),
    Promise(
        "CPU per event, paced relay, to FastAPI with OpenAI's SDK and sse-starlette", 1 / 6, "",
        _work("peers/relay-paced", "CPU", "fastapi + sse-starlette", "ours to it"),
    ),
    Promise("memory of an idle stream, to a bare Flask generator's", 1.20, "", _case("memory")),
    Promise(
        "the same, of 5,000 streams", 1.20, "", _work("peers/idle", "memory", "ours", "to bare"),
    ),
    Promise("client leaves to generator closed, p99", 20, "ms", _case("leaving", "ours")),
    Promise(
        "client leaves to upstream closed, while tokens flow, p99", 20, "ms",
        _work("peers/relay-left", "p99", "ours", "median"),
    ),
    Promise(
        "client leaves to upstream closed, while the model is silent, p99", 20, "ms",
        _work("peers/relay-left-thinking", "p99", "ours", "median"),
    ),
    Promise("CPU per token of JSON deltas, to parsing again with jiter", 0.1, "", _case("json, text")),
    Promise("CPU per token of JSON deltas at 1 MB, to that at the beginning", 1.2, "", _case("json, growth")),
)


class Plot(NamedTuple):
    """What is drawn of a work."""

    work: str
    #: The figures: one for bars, several for lines over percentiles.
    figures: Sequence[str]


_PERCENTILES = ("delay, p50", "delay, p90", "delay, p99", "delay, p99.9")

PLOTS = (
    Plot("peers/paced-200", ["CPU"]),
    Plot("peers/paced-200", _PERCENTILES),
    Plot("peers/paced-1000", _PERCENTILES),
    Plot("peers/saturated", ["events"]),
    Plot("peers/bursts", ["CPU"]),
    Plot("peers/first-event", ["median"]),
    Plot("peers/churn", ["CPU per request"]),
    Plot("peers/idle", ["memory"]),
    Plot("peers/relay-paced", ["CPU"]),
    Plot("peers/relay-paced", _PERCENTILES),
    Plot("peers/relay-fast", ["CPU"]),
    Plot("peers/relay-left", ["p99"]),
    Plot("peers/relay-left-thinking", ["p99"]),
)


def page(data: Dict[str, Any]) -> str:
    """Return the text of the page for the figures in *data*."""
    parts = [HEAD, _promises(data) + "\n" + FLOORS, BARE]
    parts += [_bare(data)] if data["results"] else [NOT_MEASURED]
    parts += [PEERS]
    parts += _peers(data) if data.get("peers", {}).get("works") else [NOT_MEASURED]
    parts += [HOW, _machine(data)]
    return "\n".join(parts)


def images(data: Dict[str, Any]) -> Dict[str, str]:
    """Return the plots for the figures in *data*, by the names of their files."""
    found: Dict[str, str] = {}
    ratios = [row for row in data["results"] if row["ratio"] is not None and row["case"] in _DRAWN]
    if ratios:
        found["bench-ratios.svg"] = bars(_RATIOS, "ratio of ours to a bare Flask generator; less is better", [
            Bar(
                row["case"], row["ratio"], (min(row["ratios"]), max(row["ratios"])),
                _number(row["ratio"]) + ("" if row["bar"] is None else f" (goal {row['bar']:.2f})"), True,
            )
            for row in ratios
        ])
    for work in data.get("peers", {}).get("works", []):
        for plot in PLOTS:
            if plot.work == work["work"]:
                found[_file(plot)] = _draw(plot, work, data["peers"]["servers"])
    return found


_RATIOS = "Ours beside a bare Flask generator"
#: Cases that compare CPU or memory to the bare app; the others compare to something else.
_DRAWN = ("paced", "hot", "relay", "relay, bursts", "relay, single", "memory", "passing")


def _file(plot: Plot) -> str:
    kind = "delay" if len(plot.figures) > 1 else plot.figures[0].split()[0].lower()
    return f"bench-{plot.work.split('/')[1]}-{kind}.svg"


def _draw(plot: Plot, work: Dict[str, Any], servers: List[Dict[str, Any]]) -> str:
    titles = {server["name"]: server["title"] for server in servers}
    figures = {each["figure"]: each for each in work["figures"]}
    names = [name for name in titles if name != "bare again" and name in figures[plot.figures[0]]["servers"]]
    first = figures[plot.figures[0]]
    note = f"{work['description'].split(';')[0].split(':')[0]}; "
    if len(plot.figures) > 1:
        return lines(
            f"{work['title']}: delay of events", f"{note}{first['unit']}, less is better",
            [figure.rpartition(" ")[2] for figure in plot.figures],
            [
                Line(
                    titles[name],
                    [figures[figure]["servers"][name]["median"] for figure in plot.figures],
                    name == "ours",
                )
                for name in names
            ],
        )
    better = "more" if first["more_is_better"] else "less"
    return bars(
        f"{work['title']}: {first['figure']}", f"{note}{first['unit']}, {better} is better",
        [_bar(titles[name], first["servers"][name], name.startswith("ours")) for name in names],
    )


def _bar(title: str, each: Dict[str, Any], is_ours: bool) -> Bar:
    if each["median"] is None:
        return Bar(title, None, None, "never", is_ours)
    return Bar(title, each["median"], (each["lowest"], each["highest"]), _number(each["median"]), is_ours)


def _promises(data: Dict[str, Any]) -> str:
    lines = ["## Promises", "", "| what | at most | measured | |", "|---|---|---|---|"]
    for promise in PROMISES:
        found, unit = promise.find(data), f" {promise.unit}".rstrip()
        verdict = "" if found is None else "kept" if found <= promise.bar else "**missed**"
        measured = "not measured" if found is None else f"{_number(found)}{unit}"
        lines.append(f"| {promise.text} | {_number(promise.bar)}{unit} | {measured} | {verdict} |")
    return "\n".join(lines) + "\n"


def _bare(data: Dict[str, Any]) -> str:
    lines = [_image("bench-ratios.svg", _RATIOS), ""] if "bench-ratios.svg" in images(data) else []
    lines += [
        "| case | unit | bare | with request context | ours | ratio | noise | goal |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(row) for row in data["results"]]
    lines += ["", "What the cases do:", ""]
    lines += [f"- **{row['case']}**: {row['description']}." for row in data["results"]]
    return "\n".join(lines) + "\n"


def _row(row: Dict[str, Any]) -> str:
    medians = row["medians"]
    cells: List[str] = [row["case"], row["unit"]]
    cells += [_number(medians.get(name)) for name in ("bare", "bare + context", "ours")]
    noise = row["noise"]
    cells += [
        _number(row["ratio"]),
        "" if noise is None else f"{noise:.1%}",
        "" if row["bar"] is None else f"≤ {row['bar']:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _peers(data: Dict[str, Any]) -> List[str]:
    compared = data["peers"]
    parts = [_work_section(work, compared["servers"]) for work in compared["works"]]
    lines = ["### The servers", "", "| server | how it runs | versions |", "|---|---|---|"]
    for server in compared["servers"]:
        versions = ", ".join(f"{name} {version}" for name, version in server["versions"].items())
        lines.append(f"| {server['title']} | {server['configuration']} | {versions} |")
    if compared["left_out"]:
        lines += ["", "Left out of this run:", ""]
        lines += [f"- {name}: {reason}" for name, reason in compared["left_out"].items()]
    return [*parts, "\n".join(lines) + "\n"]


def _work_section(work: Dict[str, Any], servers: List[Dict[str, Any]]) -> str:
    lines = [f"### {work['title']}", "", f"`{work['work']}`: {work['description']}.", ""]
    for plot in PLOTS:
        if plot.work == work["work"]:
            first = next(each for each in work["figures"] if each["figure"] == plot.figures[0])
            what = "delay of events" if len(plot.figures) > 1 else first["figure"]
            lines += [_image(_file(plot), f"{work['title']}: {what}, {first['unit']}"), ""]
    first, *others = work["figures"]
    head = ["server", f"{first['figure']}, {first['unit']}", "lowest – highest", "to bare", "ours to it"]
    head += [f"{each['figure']}, {each['unit']}" for each in others]
    lines += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for server in servers:
        name = server["name"]
        if name in work["failed"]:
            lines.append(f"| {server['title']} | failed: {work['failed'][name]} |" + " |" * (len(head) - 2))
        elif name in first["servers"]:
            each = first["servers"][name]
            cells = [server["title"], _number(each["median"]) or "never"]
            cells += [f"{_number(each['lowest'])} – {_number(each['highest'])}"] if each["median"] else [""]
            cells += [_number(each["to bare"]), _number(each["ours to it"])]
            cells += [_number(other["servers"][name]["median"]) for other in others]
            lines.append("| " + " | ".join(cells) + " |")
    if first["noise"] is not None:
        lines += ["", f"Noise, between the two bare servers: {first['noise']:.1%}."]
    return "\n".join(lines) + "\n"


def _machine(data: Dict[str, Any]) -> str:
    loads = [row["load_average"] for row in [*data["results"], *data.get("peers", {}).get("works", [])]]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    lines = ["## The machine of this run", ""]
    if "machine" in data:
        machine = data["machine"]
        lines += [
            f"{machine['processor']}, {machine['cores']} cores, {machine['memory']},"
            f" {machine['kernel']}; measured on {data['measured']}.", "",
        ]
    load = f"; load average {min(loads):.1f} to {max(loads):.1f}" if loads else ""
    lines.append(f"{versions}{load}.")
    return "\n".join(lines) + "\n"


def _image(name: str, text: str) -> str:
    return f"![{text}](images/{name})"


def _number(value: Optional[float]) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"


def main() -> int:
    """Write or compare all of it; return the exit status."""
    data = json.loads(SOURCE.read_text(encoding="utf-8"))
    files = {DOCS / "images" / name: text for name, text in images(data).items()}
    status = write_or_check(TARGET, page(data))
    for target, text in files.items():
        status |= write_or_check(target, text)
    for old in sorted(set((DOCS / "images").glob("bench-*.svg")) - set(files)):
        if "--check" in sys.argv[1:]:
            print(f"{old.name} is of no figures any more")
            status = 1
        else:
            old.unlink()
    return status


if __name__ == "__main__":
    sys.exit(main())
