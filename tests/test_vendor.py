"""The JavaScript of others that the package carries is what their packages hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "vendor_markdown.py"
VENDOR = ROOT / "flask_llmstream" / "static" / "vendor"
pytestmark = pytest.mark.checkout


def test_each_file_has_its_licence_beside_it() -> None:
    sources = [path.name.split(".")[0] for path in VENDOR.glob("*js")]
    assert sorted(sources) == ["marked", "purify"]
    for name in sources:
        assert "Copyright" in (VENDOR / f"{name}.LICENSE.txt").read_text(encoding="utf-8")


def test_a_file_that_was_changed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import vendor_markdown

    (tmp_path / "a.js").write_bytes(b"changed")
    (tmp_path / "more.js").write_bytes(b"")
    found = vendor_markdown.compare({"a.js": b"a", "b.js": b"b"}, tmp_path)
    assert found == ["more.js is in no package", "a.js is not what its package holds", "b.js is missing"]


@pytest.mark.slow
def test_the_files_are_those_of_their_packages() -> None:
    command = [sys.executable, str(SCRIPT), "--check"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=110)
    assert done.returncode == 0, done.stdout.decode(errors="replace")
