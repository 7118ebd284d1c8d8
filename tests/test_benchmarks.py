"""The benchmarks work; what they measure is nothing for a test on a busy machine."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List
from xml.etree import ElementTree

import pytest

pytestmark = [pytest.mark.live, pytest.mark.checkout]

ROOT = Path(__file__).resolve().parent.parent
CASES = (
    "paced", "hot", "relay", "relay, bursts", "relay, single", "memory", "passing",
    "first byte", "leaving", "leaving, all", "json, text", "json, form", "json, growth",
    "bytes", "bytes, single", "encode", "log, sqlite", "log, redis",
)
WORKS = (
    "paced-50", "paced-200", "paced-1000", "saturated", "bursts", "first-event", "churn", "idle",
    "relay-paced", "relay-fast", "relay-first-token", "relay-left", "relay-left-thinking",
)
#: What is measured of the peers in each run of the tests: one of each kind.
SOME_WORKS = ("paced-50", "bursts", "idle", "relay-paced", "relay-left-thinking")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=110,
    )


def measured(file: Path, *arguments: str) -> Dict[str, Any]:
    done = run("--quick", "--json", str(file), *arguments)
    assert done.returncode == 0, done.stdout
    written: Dict[str, Any] = json.loads(file.read_text())
    return {**written, "printed": done.stdout}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Any]:
    """The figures of servers that need no environment of their own."""
    works = [f"peers/{name}" for name in SOME_WORKS]
    return measured(tmp_path_factory.mktemp("figures") / "figures.json", "--peers", "floor", *works)


@pytest.fixture()
def pages(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script that writes docs/benchmarks.md."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmarks_page")


def figures_of(data: Dict[str, Any], work: str) -> Dict[str, Dict[str, List[Any]]]:
    """Return what the servers have reached in *work*, by figure and server."""
    row = next(row for row in data["peers"]["works"] if row["work"] == f"peers/{work}")
    assert row["failed"] == {}, row["failed"]
    return {
        figure["figure"]: {name: each["rounds"] for name, each in figure["servers"].items()}
        for figure in row["figures"]
    }


def test_peers_do_the_same_work(compared: Dict[str, Any]) -> None:
    servers = {"bare", "bare again", "ours", "floor"}
    assert {server["name"] for server in compared["peers"]["servers"]} == servers
    assert compared["peers"]["left_out"]["litellm"] == "not asked for"
    for work in SOME_WORKS:
        assert f"\npeers/{work}: " in compared["printed"], compared["printed"]
        for name, rounds in figures_of(compared, work).items():
            assert set(rounds) == servers and all(len(each) == 1 for each in rounds.values()), (work, name)
    for work in ("paced-50", "bursts", "relay-paced"):
        assert all(each[0] > 0 for each in figures_of(compared, work)["CPU"].values()), work
    assert all(each[0] > 0 for each in figures_of(compared, "idle")["memory"].values())
    assert compared["machine"]["processor"] and compared["machine"]["cores"]


def test_only_who_watches_the_reader_closes_a_silent_upstream(compared: Dict[str, Any]) -> None:
    figures = figures_of(compared, "relay-left-thinking")
    assert figures["closed"]["ours"] == [100] and figures["median"]["ours"][0] > 0
    assert figures["closed"]["bare"] == [0] and figures["median"]["bare"] == [None]


def test_page_and_plots_are_made_of_the_figures_alone(compared: Dict[str, Any], pages: Any) -> None:
    page, images = pages.page(compared), pages.images(compared)
    assert (page, images) == (pages.page(compared), pages.images(compared))
    # What a plot shows is linked, with words for those who do not see it; all are whole.
    assert set(re.findall(r"!\[[^\]]{10,}\]\(images/([^)]+)\)", page)) == set(images)
    for name, text in images.items():
        assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg", name
        assert "<title>" in text and "prefers-color-scheme: dark" in text, name
    median = compared["peers"]["works"][0]["figures"][0]["servers"]["ours"]["median"]
    assert f"| Flask with flask-llmstream | {pages._number(median)} |" in page
    assert f"| {pages._number(median)} |" not in pages.page({**compared, "peers": {}})
    assert page.count(pages.NOT_MEASURED) == 1  # nothing beside the bare generator was asked for
    assert "- litellm: not asked for" in page
    # A bare generator that waits for a silent upstream does not close it.
    assert "| Flask, bare generator | never |" in page
    assert ">never<" in images["bench-relay-left-thinking-p99.svg"]


def test_page_says_what_is_not_measured(pages: Any) -> None:
    data = json.loads((ROOT / "docs" / "benchmarks.json").read_text(encoding="utf-8"))
    data.pop("peers", None)
    page = pages.page(data)
    assert pages.NOT_MEASURED in page
    assert "| the same, to sse-starlette on uvicorn | 0.75 | not measured |" in page
    assert set(pages.images(data)) == {"bench-ratios.svg"}


def test_plots_show_spread_and_say_what_never_was(pages: Any) -> None:
    from plots import Bar, Line, bars, lines

    drawn = ElementTree.fromstring(bars("A & B", "ms", [
        Bar("<one>", 2.0, (1.0, 4.0), "2", True), Bar("none", None, None, "never"),
    ]))
    texts = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"A & B", "<one>", "never"} <= set(texts)
    widths = [float(each.attrib["width"]) for each in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    assert len(widths) == 1 and widths[0] == pytest.approx(400 * 2 / 4)
    series = [Line("ours", [1.0, 100.0], True), Line("gone", [None, None])]
    curve = ElementTree.fromstring(lines("delay", "ms", ["p50", "p99"], series))
    paths = [each.attrib["d"] for each in curve.iter("{http://www.w3.org/2000/svg}path")]
    assert any(re.match(r"M60\.0 \d+\.\dL530\.0 \d+\.\d$", path) for path in paths), paths


def test_peer_that_does_not_start_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.peers.running import running
    from benchmarks.peers.servers import PEERS, Missing

    def command_of_none(place: Any) -> List[str]:
        raise Missing("there is none")

    broken = PEERS[0]._replace(
        name="broken", command=lambda place: [sys.executable, "-c", "exit('it is\\nbroken')"]
    )
    none = PEERS[0]._replace(name="none", command=command_of_none)
    with running([broken, none], "http://127.0.0.1:9/v1") as (found, missing):
        assert found == []
        assert missing == {"broken": "does not start: it is broken", "none": "there is none"}


def test_peer_that_fails_is_told_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, pages: Any, compared: Dict[str, Any]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.peers.compare import compare
    from benchmarks.peers.servers import PEERS
    from benchmarks.peers.works import WORKS as ALL
    from benchmarks.peers.works import Workload

    bursts = next(work for work in ALL if work.name == "peers/bursts")

    def measure(each: Any, field: Any) -> Any:
        if each.name == "floor":
            raise RuntimeError("it hangs")
        return bursts.measure(each, field)

    floor = next(peer for peer in PEERS if peer.name == "floor")
    load = Workload(rounds=2, hot_streams=1, hot_tokens=5)
    found = compare([floor, floor._replace(name="bare")], [bursts._replace(measure=measure)], load)
    row = found["works"][0]
    assert row["failed"] == {"floor": "RuntimeError: it hangs"}
    assert len(row["figures"][0]["servers"]["bare"]["rounds"]) == 2
    assert "| failed: RuntimeError: it hangs |" in pages.page({**compared, "peers": found})


def test_all_that_peers_need_is_pinned() -> None:
    for file in (ROOT / "benchmarks" / "peers" / "requirements").glob("*.txt"):
        pins = [line for line in file.read_text().splitlines() if not line.startswith("#")]
        assert pins and all(re.match(r"[\w.-]+==[\w.]+$", pin) for pin in pins), file.name


def test_case_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = run("pace")
    assert done.returncode == 2
    assert "'pace'" in done.stdout and "paced, hot" in done.stdout and "peers/idle" in done.stdout
    done = run("--peers", "flask")
    assert done.returncode == 2
    assert "no peer 'flask'" in done.stdout and "starlette" in done.stdout


@pytest.mark.slow
def test_quick_run_prints_a_ratio_for_each_case(tmp_path: Path) -> None:
    written = measured(tmp_path / "figures.json", "bars")
    for name in CASES:
        assert f"\n{name} " in written["printed"], written["printed"]
    results = {row["case"]: row for row in written["results"]}
    assert tuple(results) == CASES
    for name, row in results.items():
        for contender, figures in row["figures"].items():
            assert figures and all(each is None or each > 0 for each in figures), (name, contender)
        # A bare generator that is blocked is never told that its client has left.
        assert (row["ratio"] is None) == name.startswith("leaving"), row
    assert results["leaving"]["medians"]["ours"] is not None
    assert written["versions"]["gunicorn"]


@pytest.mark.slow
def test_peers_with_an_environment_of_their_own_do_all_works(tmp_path: Path) -> None:
    written = measured(tmp_path / "figures.json", "peers", "--peers", "starlette,node,nginx")
    assert {"starlette", "node", "nginx"} <= {each["name"] for each in written["peers"]["servers"]}
    assert tuple(row["work"] for row in written["peers"]["works"]) == tuple(f"peers/{name}" for name in WORKS)
    for work in WORKS:
        peers = {"nginx"} if work.startswith("relay") else {"starlette", "node"}
        for rounds in figures_of(written, work).values():
            assert set(rounds) == {"bare", "bare again", "ours"} | peers, work


@pytest.mark.slow
def test_environment_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks.peers import environments

    (tmp_path / "broken.txt").write_text("./there_is_none-1.0-py3-none-any.whl\n")
    monkeypatch.setattr(environments, "_REQUIREMENTS", tmp_path)
    monkeypatch.setattr(environments, "ROOT", tmp_path)
    with pytest.raises(environments.Missing, match="not installed: .*there_is_none"):
        environments.environment("broken")
    (tmp_path / "broken.txt").write_text("# nothing\n")
    folder = environments.environment("broken")
    assert (folder / "python").exists() and folder == tmp_path / "build" / "bench" / "broken" / "bin"
    marker = folder / "kept"
    marker.touch()
    assert environments.environment("broken") == folder and marker.exists()
    (tmp_path / "broken.txt").write_text("# something else\n")
    assert environments.environment("broken") == folder and not marker.exists()


@pytest.mark.slow
@pytest.mark.timing
def test_cost_of_a_token_of_json_does_not_grow_with_the_document(tmp_path: Path) -> None:
    """Sizes and bounds for a busy machine: what costs as much as the text so far is far above them."""
    written = measured(tmp_path / "figures.json", "json, form", "json, growth")
    form, growth = written["results"]
    assert (form["case"], growth["case"]) == ("json, form", "json, growth")
    assert form["ratio"] < 1 and growth["ratio"] < 5, written["printed"]
