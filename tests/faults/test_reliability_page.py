"""docs/reliability.md says what the tests in this folder have recorded, of every fault that it names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
pytestmark = pytest.mark.checkout


@pytest.fixture
def scripted() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        import reliability_page
    finally:
        sys.path.pop(0)
    return reliability_page


def test_reliability_page_is_up_to_date() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "reliability_page.py"), "--check"], check=True)


def test_every_fault_is_recorded_and_every_record_is_on_the_page(scripted: Any) -> None:
    faults = json.loads((ROOT / "docs" / "reliability.json").read_text(encoding="utf-8"))["faults"]
    assert set(faults) == set(scripted.ROWS)
    for name, columns in faults.items():
        assert set(columns) == {column for column, _ in scripted.COLUMNS}, name
        assert all(columns.values()), name


def test_every_fault_has_its_test(scripted: Any) -> None:
    """By name: a row that no test records would be a claim."""
    source = "".join(path.read_text(encoding="utf-8") for path in HERE.glob("test_faults_*.py"))
    recorded = set(re.findall(r'record\(\s*f?"([\w{}-]+)"', source))
    for pattern, values in {
        "hole-middle-{limit}": ("hole-middle-read", "hole-middle-idle"),
        "log-{kind}": tuple(name for name in scripted.ROWS if name[4:] in re.findall(r'"([\w-]+)"', source)),
    }.items():
        recorded.remove(pattern)
        recorded.update(values)
    assert recorded == set(scripted.ROWS)
