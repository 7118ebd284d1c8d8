"""Generated pages are up to date, and what docs name exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.checkout


@pytest.mark.parametrize("script", ["settings_table.py", "benchmarks_page.py", "formats_page.py"])
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
