"""A page with ``<llm-stream>``, as its reader sees and uses it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Iterator, List
from urllib.parse import urlencode

from flask_llmstream.testing import wait_until

APP = Path(__file__).resolve().parent / "apps" / "element.py"
#: Keys as WebDriver writes them; selenium is not imported here, where a stack without it collects.
ESCAPE, TAB, ENTER, CONTROL = "\ue00c", "\ue004", "\ue007", "\ue009"
PAGE_UP, ARROW_UP = "\ue00e", "\ue013"

#: What runs in the page before anything else: all events of elements, and the errors of scripts.
RECORD = """
window.told = [];
window.wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
for (const name of ["status", "delta", "done", "error", "value"]) {
  addEventListener("llm-" + name, (event) => told.push([name, event.detail]));
}
"""


class ElementPage:
    """One page of ``apps/element.py``; the element is the first ``<llm-stream>`` on it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        self.url = url

    def open(self, markup: str, **query: str) -> ElementPage:
        """Load a page with this markup and wait until the element is alive."""
        first = self.browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RECORD})
        self.browser.get(f"{self.url}/page?{urlencode(dict(query, markup=markup))}")
        self.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", first)
        ready = "return !!document.querySelector('llm-stream .llm-text')"
        wait_until(lambda: self.run(ready), 10, lambda: f"the element to be defined; console: {self.log()}")
        return self

    def log(self) -> List[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a script with the element as ``it``."""
        head = "const it = document.querySelector('llm-stream');"
        return self.browser.execute_script(head + script, *arguments)

    def wait_for(self, script: str, what: str = "", timeout: float = 10.0) -> None:
        """Wait until the expression *script* is true, with the element as ``it``."""
        wait_until(
            lambda: self.run(f"return {script}"), timeout,
            lambda: f"{what or script}; status {self.status!r}, text {self.text[-300:]!r}, {self.log()}",
        )

    def frames(self) -> None:
        """Wait until two frames have been painted, so that all that waits for one is done."""
        self.browser.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done)))"
        )

    def push(self, text: str) -> None:
        """Give the element a piece of text, and wait until it is shown and scrolled to."""
        self.run("it.push({type: 'text', text: arguments[0]})", text)
        self.frames()

    @property
    def status(self) -> str:
        return str(self.run("return it?.dataset.status"))

    @property
    def text(self) -> str:
        """What can be read, blocks on lines of their own."""
        return str(self.run(
            "const blocks = [...it.querySelectorAll('.llm-text > .llm-block')];"
            "return blocks.map(each => each.textContent).join('\\n')"
        ))

    @property
    def said(self) -> str:
        """What a screen reader is told."""
        return str(self.run("return it.querySelector('[role=status]').textContent"))

    def part(self, name: str) -> Any:
        return self.browser.find_element("css selector", f"llm-stream .llm-{name}")

    def focused(self) -> str:
        return str(self.run("return document.activeElement.className || document.activeElement.localName"))

    def cursor(self, name: str) -> str:
        """Return a CSS property of the cursor at the end of the text."""
        return str(self.run(
            "const all = it.querySelectorAll('.llm-cursor');"
            "if (all.length > 1) return all.length + ' cursors';"
            "const end = all[0] ?? [...it.querySelectorAll('.llm-text *')].pop() ?? it;"
            "return getComputedStyle(end, '::after')[arguments[0]]",
            name,
        ))

    def violations(self, npm_packages: Path) -> List[str]:
        """Return what axe-core finds wrong with the page as it is."""
        if not self.run("return !!window.axe"):
            self.run((npm_packages / "axe-core" / "axe.min.js").read_text(encoding="utf-8"))
        found = self.browser.execute_async_script(
            "const done = arguments[0], options = { resultTypes: ['violations'] };"
            "axe.run(document, options).then(found => done(found.violations), error => done(String(error)))"
        )
        assert isinstance(found, list), found
        return [json.dumps([each["id"], [node["html"] for node in each["nodes"]]]) for each in found]

    def complaints(self) -> List[str]:
        """Return what the console shows, but for the browser's own line on a failed request."""
        shown = [message for message in self.log() if "Failed to load resource" not in message]
        return shown + list(self.run("return wrong"))


def opened(browser: Any, url: str) -> Iterator[ElementPage]:
    """Yield the page; what its console and its scripts complain of fails the test."""
    page = ElementPage(browser, url)
    yield page
    assert page.complaints() == []
