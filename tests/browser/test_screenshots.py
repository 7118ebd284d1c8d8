"""The script that takes the pictures of the docs still takes them."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.browser, pytest.mark.checkout, pytest.mark.slow]


def test_pictures_are_taken(tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "screenshots.py")
    subprocess.run([sys.executable, script, "--png", str(tmp_path)], check=True, timeout=110)
    taken = {path.stem for path in tmp_path.iterdir()}
    # The drawings of the benchmarks are no pictures of pages; tests/test_benchmarks.py knows them.
    assert taken == {path.stem for path in (ROOT / "docs" / "images").glob("*.webp")}
    for path in tmp_path.iterdir():
        width, _ = struct.unpack(">II", path.read_bytes()[16:24])
        assert width == 1600, path.name
