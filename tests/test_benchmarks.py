"""The benchmarks work; what they measure is nothing for a test on a busy machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.live, pytest.mark.checkout, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
CASES = (
    "paced", "hot", "relay", "relay, bursts", "relay, single", "memory", "passing",
    "first byte", "leaving", "leaving, all", "json, text", "json, form", "json, growth",
    "bytes", "bytes, single", "encode", "log, sqlite", "log, redis",
)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=110,
    )


def test_quick_run_prints_a_ratio_for_each_case(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("--quick", "--json", str(file))
    assert done.returncode == 0, done.stdout
    for name in CASES:
        assert f"\n{name} " in done.stdout, done.stdout
    written = json.loads(file.read_text())
    results = {row["case"]: row for row in written["results"]}
    assert tuple(results) == CASES
    for name, row in results.items():
        for contender, figures in row["figures"].items():
            assert figures and all(each is None or each > 0 for each in figures), (name, contender)
        # A bare generator that is blocked is never told that its client has left.
        assert (row["ratio"] is None) == name.startswith("leaving"), row
    assert results["leaving"]["medians"]["ours"] is not None
    assert written["versions"]["gunicorn"]


def test_case_that_does_not_exist_is_refused_with_those_that_do() -> None:
    done = run("pace")
    assert done.returncode == 2
    assert "'pace'" in done.stdout and "paced, hot" in done.stdout


def test_cost_of_a_token_of_json_does_not_grow_with_the_document(tmp_path: Path) -> None:
    """Sizes and bounds for a busy machine: what costs as much as the text so far is far above them."""
    file = tmp_path / "figures.json"
    done = run("json, form", "json, growth", "--quick", "--json", str(file))
    assert done.returncode == 0, done.stdout
    form, growth = json.loads(file.read_text())["results"]
    assert (form["case"], growth["case"]) == ("json, form", "json, growth")
    assert form["ratio"] < 1 and growth["ratio"] < 5, done.stdout
