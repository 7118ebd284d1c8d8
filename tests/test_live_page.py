"""Who may see the live page, and what it says; see tests/live/test_observed.py for several workers."""

from __future__ import annotations

import json
import os
import time
from types import SimpleNamespace
from typing import Any, Dict, List

import pytest
from flask import Flask

from flask_llmstream import LLMStream
from flask_llmstream.live import _page
from flask_llmstream.livefiles import LiveTable
from flask_llmstream.liverows import MOST_ROWS, state_of

PAGES = ("/llmstream/live", "/llmstream/live/events")


def make_app(tmp_path: Any, debug: bool = False, **settings: Any) -> Flask:
    app = Flask("seen")
    app.debug = debug
    LLMStream(app, shared_dir=str(tmp_path / "shared"), **settings)
    return app


@pytest.mark.parametrize("debug, settings, status", [
    pytest.param(True, {}, 404, id="off"),
    pytest.param(False, {"live": True}, 404, id="nobody was named"),
    pytest.param(False, {"live": True, "authorize": lambda what: what == "metrics"}, 403, id="others may"),
    pytest.param(False, {"live": True, "authorize": lambda what: what == "live"}, 200, id="may"),
    pytest.param(True, {"live": True}, 200, id="debug"),
    pytest.param(True, {"live": True, "authorize": lambda what: False}, 200, id="debug comes first"),
])
def test_who_may_see_it(tmp_path: Any, debug: bool, settings: Dict[str, Any], status: int) -> None:
    client = make_app(tmp_path, debug, **settings).test_client()
    for path in PAGES if status != 200 else PAGES[:1]:
        answer = client.get(path)
        assert answer.status_code == status
        assert answer.headers["Cache-Control"] == "no-store"
    assert client.post(PAGES[0]).status_code == 405


def test_where_it_is_off_no_file_is_touched(tmp_path: Any) -> None:
    make_app(tmp_path).test_client().get(PAGES[0])
    assert not (tmp_path / "shared").exists()


def test_page_says_nothing_to_others(tmp_path: Any) -> None:
    headers = make_app(tmp_path, True, live=True).test_client().get(PAGES[0]).headers
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert headers["X-Frame-Options"] == "DENY" and headers["X-Robots-Tag"] == "noindex, nofollow"
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Vary"] == "Accept"


def row(**changes: Any) -> Dict[str, Any]:
    row = {
        "id": "a1", "route": "r", "format": "sse", "state": "opening", "age": 1.0, "first": None, "pieces": 0,
        "rate": 0.0, "bytes": 1, "resumable": False, "follows": None, "followers": 0, "pid": 1,
    }
    return dict(row, **changes)


def test_what_is_shown_is_escaped(tmp_path: Any) -> None:
    rows = [row(route="<script>alert(1)</script>", format='"&'), row(follows="b2", pieces=None, first=0.5)]
    workers = [{"pid": 1, "streams": 3, "rate": 0.0, "bytes": 2, "states": {"<b>": 2}}]
    with make_app(tmp_path, live=True).test_request_context():
        page = _page({"streams": 3, "hidden": 1, "rows": rows, "workers": workers})
    assert "&lt;script&gt;alert(1)" in page and "<script>" not in page and "2 &lt;b&gt;" in page
    assert "3 running, of which 1 are not listed" in page
    assert "<td>follows b2</td>" in page and "<td>not counted</td>" in page and "<td>0.50 s</td>" in page
    assert page.count('<th scope="col">') == 17 and page.count('<th scope="row">') == 3


class Still:
    """A stream as it is at some moment."""

    def __init__(self, **changes: Any) -> None:
        self._state, self._gone, self._in_source, self._cancellation = "running", False, True, None
        self._leave_at, self._touched, self._first_at = float("inf"), 10.0, 5.0
        self.__dict__.update(changes)


@pytest.mark.parametrize("changes, state", [
    ({}, "streaming"),
    ({"_first_at": None}, "opening"),
    ({"_first_at": None, "_touched": 1.0}, "opening"),
    ({"_touched": 1.0}, "waiting for its source"),
    ({"_touched": 1.0, "_in_source": False}, "reader slow"),
    ({"_gone": True}, "detached"),
    ({"_gone": True, "_leave_at": 14.4}, "detached, 4 s of grace"),
    ({"_state": "ending"}, "ending"),
    ({"_gone": True, "_cancellation": SimpleNamespace(reason="stop")}, "cancelling: stop"),
])
def test_state_in_words(changes: Dict[str, Any], state: str) -> None:
    assert state_of(Still(**changes), 10.1) == state


@pytest.fixture
def table(tmp_path: Any) -> LiveTable:
    return LiveTable(Flask("table"), str(tmp_path / "shared"))


def other_worker(tmp_path: Any, text: str, age: float = 0.0) -> Any:
    path = tmp_path / "shared" / "live" / f"{os.getppid()}.json"
    path.write_text(text)
    os.utime(str(path), (time.time() - age, time.time() - age))
    return path


@pytest.mark.parametrize("text, age, stays", [
    pytest.param('{"pid": 1', 0.0, True, id="half a file"),
    pytest.param('{"streams": 3}', 10.0, True, id="old"),
    pytest.param('{"streams": 3}', 100.0, False, id="forgotten"),
])
def test_what_a_worker_has_not_renewed_is_not_shown(
    table: LiveTable, tmp_path: Any, text: str, age: float, stays: bool
) -> None:
    path = other_worker(tmp_path, text, age)
    assert table.look() == {"streams": 0, "hidden": 0, "workers": [], "rows": []}
    assert path.exists() == stays


def test_rows_are_limited_and_all_are_counted(table: LiveTable, tmp_path: Any) -> None:
    rows: List[Any] = [row(age=float(number)) for number in range(MOST_ROWS + 50)]
    other = {"pid": 1, "streams": 900, "rate": 1.0, "bytes": 2, "states": {}, "followers": {"a1": 2}}
    other_worker(tmp_path, json.dumps(dict(other, rows=rows)))
    found = table.look()
    assert (found["streams"], len(found["rows"]), found["hidden"]) == (900, MOST_ROWS, 700)
    assert found["rows"][0]["age"] == MOST_ROWS + 49 and found["rows"][0]["followers"] == 2
