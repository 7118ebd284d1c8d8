"""What many streams need is reckoned right, and the documentation says what was measured."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

pytestmark = [pytest.mark.checkout]

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def source_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture()
def capacity() -> Any:
    return importlib.import_module("benchmarks.capacity")


@pytest.fixture()
def pages() -> Any:
    """The script that writes docs/scaling.md."""
    return importlib.import_module("scaling_page")


@pytest.fixture()
def measured() -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads((ROOT / "docs" / "scaling.json").read_text(encoding="utf-8"))
    return found


def figures(capacity: Any, **changed: float) -> Any:
    """Figures with which one can reckon in one's head; what is not named costs nothing."""
    values = dict.fromkeys(capacity.Figures._fields, 0.0)
    values.update(
        start_us=1000, event_us=40, read_us=10, idle_us=20, worker_mib=50, stream_kib=50, kernel_kib=14,
        stream_files=2, event_bytes=34, **changed
    )
    return capacity.Figures(**values)


def test_plan_is_what_one_reckons_by_hand(capacity: Any) -> None:
    found = capacity.plan(
        capacity.Load(10000, rate=20, length=10), figures(capacity), capacity.Machine(cores=8, busy=0.5)
    )
    # A stream: 1000 us in 10 s, 20 times 50 us a second: 1100 us. 10,000: 11 cores, half busy.
    assert found.cores == pytest.approx(11)
    assert (found.workers, found.because[0]) == (22, "CPU")
    assert (found.machines, found.because[1]) == (3, "one worker a core")
    assert found.worker_cpu == pytest.approx(0.5) and found.starts == 1000
    assert found.memory_gib == pytest.approx((10000 * 64 / 1024 + 22 * 50) / 1024)
    # An event is 34 bytes, in a packet of 66 more: 200,000 times 100 bytes.
    assert found.bits == pytest.approx(160e6)
    assert (found.shards, found.clusters, found.redis_commands) == (0, 0, 0)


def test_log_and_readers_who_come_back_are_reckoned(capacity: Any) -> None:
    costs = figures(
        capacity, log_start_us=500, logged_us=5, logged_second_us=30, back_us=4000, followed_us=200,
        redis_start_commands=10, redis_start_us=100, redis_start_bytes=1000, redis_start_memory=4096,
        redis_second_commands=4, redis_second_us=20, redis_second_bytes=300, redis_event_us=1,
        redis_event_bytes=6, redis_event_memory=8, redis_back_commands=12, redis_back_us=300,
        redis_followed_commands=5, redis_followed_us=50, id_bytes=50,
    )
    load = capacity.Load(1000, rate=20, length=10, resumable=0.5, comes_back=0.1, keep=100)
    # 1000 + 0.5 * (500 + 0.1 * 4000) in 10 s; 20 times 50 + 0.5 * (5 + 0.05 * 200); 0.5 * 30.
    assert capacity.worker_us(load, costs) == pytest.approx(145 + 20 * 57.5 + 15)
    found = capacity.plan(load, costs)
    # 50 begin in a second, 500 send, 10,000 events; 5 come back; 500 events are followed.
    assert found.redis_commands == pytest.approx(50 * 10 + 500 * 4 + 5 * 12 + 500 * 5)
    assert found.redis_cores * 1e6 == pytest.approx(50 * 100 + 500 * 20 + 10000 + 5 * 300 + 500 * 50)
    assert found.redis_bytes == pytest.approx(50 * 1000 + 500 * 300 + 10000 * 6)
    # 500 run, half written; 5,000 are kept, of 200 events each.
    assert found.redis_gib * 2**30 == pytest.approx(5500 * 4096 + (250 + 5000) * 200 * 8)
    assert found.bits == pytest.approx(20000 * (34 + 25 + 66) * 8)
    assert (found.shards, found.clusters) == (1, 1)
    # Less than two events a second are written one by one.
    assert capacity.worker_us(load._replace(rate=1), costs) == pytest.approx(145 + 57.5 + 7.5)
    assert capacity.worker_us(load._replace(rate=0), costs) == pytest.approx(145 + 20)
    # No more than this many are kept of each.
    fewer = capacity.plan(load._replace(keep_events=100), costs)
    assert fewer.redis_gib * 2**30 == pytest.approx(5500 * 4096 + 5250 * 100 * 8)


def test_limit_that_is_met_first_decides(capacity: Any) -> None:
    costs, load = figures(capacity), capacity.Load(10000, rate=0.1)
    found = capacity.plan(load, costs, capacity.Machine(worker_streams=500))
    assert (found.workers, found.because[0]) == (20, "streams per worker")
    found = capacity.plan(load, costs, capacity.Machine(worker_files=1000, busy=0.5))
    assert (found.workers, found.because[0]) == (40, "open files")
    found = capacity.plan(load, costs, capacity.Machine(memory_gib=0.5, busy=0.5))
    assert (found.machines, found.because[1]) == (4, "memory")
    assert capacity.carried(load, costs, capacity.Machine(worker_streams=500)) == (500, "streams per worker")
    full = capacity.Machine(busy=1.0, worker_streams=10**9, worker_files=10**9)
    assert capacity.carried(capacity.Load(1, rate=20, length=10), costs, full) == (909, "CPU")
    assert capacity.carried(capacity.Load(1, rate=20, length=10, relayed=0), costs, full)[0] == 1111


def test_cluster_is_split_before_its_nodes_drown_in_messages_of_others(capacity: Any) -> None:
    costs = figures(capacity, redis_second_us=20.0, redis_bus_us=3.0)
    machine = capacity.Machine()
    for streams in (10000, 100000, 300000, 1000000):
        found = capacity.plan(capacity.Load(streams, resumable=1.0, keep=1), costs, machine)
        each = found.shards / found.clusters
        assert each == int(each)
        messages = streams * 2 + found.starts
        passed_on = messages / found.clusters * 3e-6
        # What a node does itself, and what the others of its cluster pass on to it.
        used = found.redis_cores / found.shards + passed_on * (each - 1) / each
        assert used <= machine.busy and (found.clusters == 1 or passed_on <= machine.busy / 2), streams
    assert found.clusters > 1
    free = capacity.plan(capacity.Load(1000000, resumable=1.0, keep=1), costs._replace(redis_bus_us=0))
    assert free.clusters == 1 and free.shards < found.shards
    full = capacity.plan(capacity.Load(10000, resumable=1.0), costs._replace(redis_event_memory=1000.0))
    # 305,000 answers of 600 events of 1000 bytes: 170.4 GiB, of which 9.6 fit into one.
    assert (full.shards, full.clusters, full.because[2]) == (18, 1, "memory")
    # 3 cores of work; 352,500 messages of 3 us, 1.06 cores: four clusters. Each has 0.75 of its own, and is
    # passed on 0.264, of 0.6: (0.75 - 0.264) / (0.6 - 0.264) nodes.
    found = capacity.plan(capacity.Load(150000, resumable=1.0, keep=1), costs, machine)
    assert (found.shards, found.clusters) == (8, 4)


@pytest.mark.parametrize("name, values", [
    ("streams", [1, 7, 1000, 12345, 1000000]),
    ("rate", [0, 0.5, 2, 30, 100]),
    ("relayed", [0, 0.3, 1]),
    ("resumable", [0, 0.01, 0.5, 1]),
    ("comes_back", [0, 0.02, 1, 3]),
    ("keep", [0, 600, 86400]),
])
def test_more_never_needs_less(
    capacity: Any, measured: Dict[str, Any], name: str, values: List[float]
) -> None:
    costs = capacity.figures_in(measured)
    base = capacity.Load(50000, resumable=0.5)
    needs = [capacity.plan(base._replace(**{name: value}), costs) for value in values]
    for less, more in zip(needs, needs[1:]):
        for field in (
            "workers", "machines", "shards", "cores", "memory_gib", "bits", "redis_cores", "redis_gib"
        ):
            assert getattr(less, field) <= getattr(more, field), field


@pytest.mark.parametrize("changed, said", [
    ({"streams": 0}, "streams is 0, expected 1 at least"),
    ({"rate": -1}, "rate is -1, expected 0 at least"),
    ({"rate": float("nan")}, "rate is nan"),
    ({"rate": float("inf")}, "rate is inf"),
    ({"length": 0}, "length is 0, expected 0.001 at least"),
    ({"resumable": 1.5}, "resumable is 1.5, expected 0 at least and 1 at most"),
    ({"busy": 0}, "busy is 0, expected 0.01 at least and 1 at most"),
    ({"worker_streams": 0}, "worker_streams is 0"),
])
def test_what_cannot_be_is_refused(capacity: Any, changed: Dict[str, Any], said: str) -> None:
    kinds = (capacity.Load(10), capacity.Machine())
    load, machine = (
        kind._replace(**{name: value for name, value in changed.items() if name in kind._fields})
        for kind in kinds
    )
    for reckon in (capacity.plan, capacity.carried):
        with pytest.raises(ValueError, match=re.escape(said)):
            reckon(load, figures(capacity), machine)


def test_command_line(capacity: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "figures.json").write_text(json.dumps({"figures": figures(capacity)._asdict()}))
    given = ["--figures", str(tmp_path / "figures.json")]
    wanted = ["--streams", "10000", "--rate", "20", "--length", "10", "--cores", "8", "--busy", "0.5"]
    assert capacity.main(given + wanted) == 0
    printed = capsys.readouterr().out
    assert re.search(r"workers +22 +\(CPU; 455 streams and 50% of a core each\)", printed), printed
    assert "11.0 cores busy" in printed and "0.16 Gbit/s" in printed
    assert capacity.main(given + wanted + ["--json"]) == 0
    assert json.loads(capsys.readouterr().out)["workers"] == 22
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "empty.json").write_text("{}")
    for arguments, said in (
        (given + ["--streams", "0"], "streams is 0"),
        (["--figures", str(tmp_path / "none.json"), "--streams", "1"], "none.json"),
        (["--figures", str(tmp_path / "broken.json"), "--streams", "1"], "Expecting"),
        (["--figures", str(tmp_path / "empty.json"), "--streams", "1"], "there is no figure 'figures'"),
        (given + ["--streams", "many"], "--streams: invalid int value: 'many'"),
        (given, "--streams"),
    ):
        try:
            status = capacity.main(arguments)
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        assert status == 2 and out == ""
        assert err.startswith("error: ") and said in err and err.count("\n") == 1, err


def test_figures_of_the_documentation_are_whole(capacity: Any, pages: Any, measured: Dict[str, Any]) -> None:
    assert set(measured["figures"]) == set(measured["spread"]) == set(capacity.Figures._fields)
    assert {name for name, _, _ in pages.ROWS} == set(capacity.Figures._fields)
    for name, value in measured["figures"].items():
        low, high = measured["spread"][name]
        assert 0 <= low <= value <= high, name
    assert measured["machine"]["processor"] and measured["versions"]["redis-server"]
    # Orders of magnitude, which a wrong unit would miss.
    for name, low, high in (
        ("start_us", 300, 20000), ("event_us", 5, 200), ("worker_mib", 20, 200), ("stream_kib", 10, 300),
        ("event_bytes", 20, 100), ("stream_files", 1.9, 2.2), ("redis_start_commands", 5, 40),
        ("redis_second_commands", 1, 10), ("redis_event_memory", 4, 200), ("redis_bus_us", 0.3, 50),
    ):
        assert low <= measured["figures"][name] <= high, name


def test_model_agrees_with_what_the_machine_did(
    capacity: Any, pages: Any, measured: Dict[str, Any]
) -> None:
    low, high = pages.GOOD
    streams, memory = measured["check"]["streams"], measured["check"]["memory"]
    assert low <= streams["ratio"] <= high and 0.8 <= memory["ratio"] <= 1.25
    assert streams["ratio"] == pytest.approx(streams["measured"] / streams["predicted"] / streams["free"])
    full = capacity.Machine(busy=1.0, worker_streams=10**9, worker_files=10**9)
    load = capacity.Load(1, rate=streams["rate"], length=1e9, relayed=0)
    said, _ = capacity.carried(load, capacity.figures_in(measured), full)
    assert abs(said - streams["predicted"]) <= 1


def test_page_is_made_of_the_figures(pages: Any, measured: Dict[str, Any]) -> None:
    page = pages.page(measured)
    assert page == pages.page(measured)
    left = set(re.findall(r"\{(\w+)\}", page)) - {"stream"}
    assert not left, left
    changed = json.loads(json.dumps(measured))
    changed["figures"]["event_us"] *= 2
    changed["check"]["streams"].update(ratio=2.0, free=0.5)
    changed.update(kept=0.6, kernel_is_known=False)
    changed_page = pages.page(changed)
    other = " ".join(changed_page.split())
    assert "**This machine was busy with something else**" in other and "The model is wrong here" in other
    assert "only 50% of its core" in other and "could not be told" in other
    rows = [line for line in page.splitlines() if line.startswith("| 1,000,000 | 100% |")]
    assert len(rows) == 1 and rows[0] not in changed_page


def test_page_names_metrics_that_exist(pages: Any, measured: Dict[str, Any]) -> None:
    from flask_llmstream.metrics.table import METRICS

    known = {row.name: row.labels for row in METRICS}
    page = pages.page(measured)
    named = re.findall(r"\b(llmstream_\w+)(?:\{(\w+)=)?", page)
    assert len({name for name, _ in named}) > 5
    for name, label in named:
        assert name in known and (not label or label in known[name]), name


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timing
def test_quick_run_measures_everything_and_the_model_fits(capacity: Any, tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.measured", "--quick", "--check", "--json", str(file)],
        cwd=str(ROOT), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=115,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    found = json.loads(file.read_text(encoding="utf-8"))
    assert set(found["figures"]) == set(capacity.Figures._fields)
    for name in ("start_us", "event_us", "worker_mib", "stream_kib", "stream_files", "redis_second_commands"):
        assert found["figures"][name] > 0, name
    # A full run is held to less by the page; this one is short, and the machine may be busy.
    assert 0.4 <= found["check"]["streams"]["ratio"] <= 2.5, done.stdout
    assert 0.8 <= found["check"]["memory"]["ratio"] <= 1.25, done.stdout
