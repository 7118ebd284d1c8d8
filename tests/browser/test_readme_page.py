"""What README.md shows for a page runs in a real browser, with the app that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flask_llmstream.testing import ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import done, tokens

pytestmark = [pytest.mark.live, pytest.mark.browser, pytest.mark.checkout]

README = Path(__file__).resolve().parent.parent.parent / "README.md"

PAGES = """
@app.route("/element")
def element_page():
    return {element!r}


@app.route("/module")
def module_page():
    return {module!r}
"""

MODULE = """<pre></pre><script type="module">
const messages = [{{ role: "user", content: "Hi" }}];
const show = (text) => document.querySelector("pre").append(text);
{code}
document.title = "over";
</script>"""


def block(language: str) -> str:
    """Return the first fenced block of *language*."""
    found = re.search(rf"^```{language}\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found.group(1)


def test_element_and_module_of_the_readme(browser: Any, tmp_path: Path) -> None:
    pages = PAGES.format(element=block("html"), module=MODULE.format(code=block("js")))
    file = tmp_path / "app.py"
    file.write_text(block("python") + pages)
    with ScriptedUpstream([tokens("Hello", "!"), done()]) as upstream:
        env = {"OPENAI_API_KEY": "not-a-key", "OPENAI_BASE_URL": upstream.url}
        with gunicorn_server(file, env=env, config_lines="keepalive = 0") as server:
            for page, place in [("element", "#answer .llm-text"), ("module", "pre")]:
                browser.get(f"{server.url}/{page}")
                text = f"return document.querySelector({json.dumps(place)})?.textContent"
                wait_until(
                    lambda: browser.execute_script(text) == "Hello!", 10.0,
                    lambda: f"{page}: {browser.get_log('browser')}, the log: {server.log()}",
                )
            wait_until(lambda: browser.title == "over", 5.0, "the end of the loop")
            assert not [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]
            browser.get("about:blank")
        assert upstream.requests == 2
