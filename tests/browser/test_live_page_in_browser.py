"""The live page, as somebody sees it who looks at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterator

import pytest

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

pytestmark = [pytest.mark.live, pytest.mark.browser]

APP = Path(__file__).resolve().parent / "apps" / "watched.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: Any) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("shared")
    with gunicorn_server(APP, env={"TMPDIR": str(folder)}) as server:
        yield server


def test_it_follows_what_runs_until_it_is_paused(browser: Any, server: LiveServer) -> None:
    def get(script: str) -> Any:
        return browser.execute_script("return " + script)

    def wait_for(script: str) -> None:
        wait_until(lambda: get(script), 10.0, lambda: f"{script}; {get('document.body.innerText')}")

    tokens = "Number(document.querySelector('#streams tbody td:nth-child(7)').textContent)"
    with server.request("/chat") as reader:
        reader.read_until(b"word")
        browser.get(server.url + "/llmstream/live")
        wait_for("document.getElementById('status').textContent === 'Up to date.'")
        wait_for("document.querySelectorAll('#streams tbody tr').length === 1")
        before = get(tokens)
        wait_for(f"{tokens} > {before}")
        cells = get("[...document.querySelector('#streams tbody tr').cells].map((cell) => cell.textContent)")
        heads = get("[...document.querySelectorAll('#streams thead th')].map((head) => head.textContent)")
        assert len(cells) == len(heads)
        row = dict(zip(heads, cells))
        assert (row["Route"], row["Format"], row["State"]) == ("chat", "sse", "streaming")
        assert row["Resumable"] == "no" and row["Readers who came back"] == "0"
        assert get("document.querySelector('#workers tbody').rows[0].cells[4].textContent") == "1 streaming"
        assert get("document.querySelector('#streams tbody tr').cells[0].scope") == "row"
        assert get("getComputedStyle(document.querySelector('table')).borderCollapse") == "collapse"

        # As somebody without a mouse: to the button, and the server has nothing to do any more.
        get("document.getElementById('pause').focus()")
        browser.switch_to.active_element.send_keys("\ue007")
        wait_for("document.getElementById('status').textContent === 'Paused.'")
        server.wait_for_log("GET /llmstream/live/events")
        browser.switch_to.active_element.send_keys("\ue007")
        wait_for("document.getElementById('status').textContent === 'Up to date.'")
    wait_for("document.getElementById('sum').textContent.startsWith('0 running')")
    assert get("document.querySelectorAll('tbody tr').length") == 0
    log = [entry["message"] for entry in browser.get_log("browser")]
    assert [message for message in log if "favicon" not in message] == []
