"""Generated pages are up to date, and what docs name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.checkout


@pytest.mark.parametrize(
    "script",
    ["settings_table.py", "benchmarks_page.py", "formats_page.py", "metrics_table.py", "scaling_page.py"],
)
def test_generated_page_is_up_to_date(script: str) -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / script), "--check"], check=True)


def test_settings_that_docs_name_exist() -> None:
    from flask_llmstream.settings import SETTINGS

    known = {setting.key for setting in SETTINGS}
    demo = {"LLMSTREAM_UPSTREAM_URL", "LLMSTREAM_UPSTREAM_KEY", "LLMSTREAM_MODEL"}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        named = set(re.findall(r"LLMSTREAM_[A-Z_]+", page.read_text(encoding="utf-8")))
        assert named <= known | demo, page.name


def test_per_stream_settings_are_keywords_of_stream_response() -> None:
    import inspect

    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from settings_table import PER_STREAM
    finally:
        sys.path.pop(0)
    from flask_llmstream import stream_response
    from flask_llmstream.settings import SETTINGS

    keywords = set(inspect.signature(stream_response).parameters)
    assert PER_STREAM == keywords & {setting.name for setting in SETTINGS}


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "docs").glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pictures_exist_in_light_and_dark_and_are_small() -> None:
    """``scripts/screenshots.py`` takes them, those of ``scripts/benchmarks_page.py`` apart."""
    folder = ROOT / "docs" / "images"
    taken = {path.name for path in folder.iterdir() if not path.name.startswith("bench-")}
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r'(?:src|srcset)="([^"]+)"', page.read_text(encoding="utf-8")):
            if "/images/" in "/" + target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"
    names = {"chat", "dashboard", "element", "form_copilot"}
    assert taken == {f"{name}-{scheme}.webp" for name in names for scheme in ("light", "dark")}
    assert sum((folder / name).stat().st_size for name in taken) < 600000


def test_tests_that_pages_name_exist() -> None:
    """Each ending in docs/resuming.md, and each promise in docs/security.md, says which test proves it."""
    defined = set()
    contract = ROOT / "flask_llmstream" / "testing" / "eventlog.py"
    for path in [contract, *(ROOT / "tests").rglob("test_*.py")]:
        defined.update(re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE))
    for page in sorted((ROOT / "docs").glob("*.md")):
        named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
        assert named <= defined, f"{page.name}: {sorted(named - defined)}"
    for name, behind, least in (
        ("resuming.md", "## How each stream ends", 12), ("security.md", "## What is written on the wire", 25)
    ):
        said = (ROOT / "docs" / name).read_text(encoding="utf-8").partition(behind)[2]
        assert said.count("\n\n**") >= least
        for block in said.split("\n\n**")[1:]:
            assert "`test_" in block.partition("\n\n")[0], f"nothing proves: {block[:60]}"
