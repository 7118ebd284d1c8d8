"""docs/neighbours.md and the tests beside this file speak of the same things."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent.parent / "docs" / "neighbours.md"
#: Shows that the others can fail; nothing for readers.
UNNAMED = {"test_nothing_between_is_the_control"}

pytestmark = pytest.mark.checkout


def test_page_names_every_test_and_no_other() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    files = [path for path in HERE.glob("test_*.py") if path != Path(__file__).resolve()]
    written = {name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)}
    assert named == written - UNNAMED
