"""docs/servers.md says what the tests in this folder have measured, of every row that they know."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.checkout

#: What a proxy has nothing to do with.
SERVERS_ONLY = {"graceful end"}


@pytest.fixture
def columns() -> Any:
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from servers_page import COLUMNS
    finally:
        sys.path.pop(0)
    return {name for name, _, _ in COLUMNS}


@pytest.fixture
def recorded() -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads((ROOT / "docs" / "servers.json").read_text(encoding="utf-8"))
    return found


def test_page_is_up_to_date() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "servers_page.py"), "--check"], check=True)


def test_every_server_is_on_the_page(recorded: Dict[str, Any], columns: Any) -> None:
    from test_servers import HTTP2, ROWS

    assert set(recorded["servers"]) == {*ROWS, HTTP2}
    for name, row in recorded["servers"].items():
        missing = {"disconnect seen (RST)"} if name == HTTP2 else set()
        assert set(row) == columns - missing, name


def test_every_proxy_is_on_the_page(recorded: Dict[str, Any], columns: Any) -> None:
    from test_proxies import ROWS

    assert set(recorded["proxies"]) == {row.title for row in ROWS.values()}
    for name, row in recorded["proxies"].items():
        assert set(row) == columns - SERVERS_ONLY, name


def test_every_row_of_the_table_is_tried() -> None:
    """By name: a row that no server here uses would be a claim."""
    from test_servers import ROWS

    from flask_llmstream.servers import SERVERS

    tried = {row.peer for row in ROWS.values()}
    assert {name for server in SERVERS for name in server.name.split(", ")} - tried == {"werkzeug before 2.0"}
