"""The Vercel AI SDK's own ``useChat`` on the page of docs/react.md: version 5 with React 18, 7 with 19."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from bundling import BUNDLES
from reacting import complaints, serving

from flask_llmstream.testing import LiveServer, ScriptedUpstream, wait_until
from flask_llmstream.testing.upstreams import cut, done, hold, silence, status, tokens

pytestmark = [pytest.mark.live, pytest.mark.browser, pytest.mark.checkout]

ENTER = "\ue007"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(
    npm_packages: Path, tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream
) -> Iterator[LiveServer]:
    with serving(npm_packages, tmp_path_factory.mktemp("ai-sdk"), upstream) as server:
        yield server


class Chat:
    """The page, as its reader sees and uses it."""

    def __init__(self, browser: Any, server: LiveServer, bundle: str) -> None:
        self.browser = browser
        self.address = f"{server.url}/page/chat/{bundle}#{uuid.uuid4()}"
        self.load(self.address)

    def load(self, address: str) -> None:
        # An address that differs behind the # only would not be loaded.
        self.browser.get("about:blank")
        self.browser.get(address)
        wait_until(lambda: self.all("input"), 10, "the page")

    def all(self, selector: str) -> List[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def ask(self, question: str) -> None:
        self.all("input")[0].send_keys(question + ENTER)

    @property
    def shown(self) -> Dict[str, Any]:
        found: Dict[str, Any] = self.browser.execute_script("""
            const all = (selector) => [...document.querySelectorAll(selector)];
            const texts = (selector) => all(selector).map((each) => each.textContent);
            return {
              status: document.querySelector("main").dataset.status,
              user: texts("p.user"), assistant: texts("p.assistant"), alert: texts("[role=alert]"),
            };
        """)
        return found

    def wait_for(self, **expected: Any) -> None:
        def look() -> bool:
            shown = self.shown
            return all(shown[name] == value for name, value in expected.items())

        wait_until(look, 10, lambda: f"{expected} on the page, which shows {self.shown}")


@pytest.fixture(params=sorted(BUNDLES))
def chat(request: Any, browser: Any, server: LiveServer) -> Iterator[Chat]:
    chat = Chat(browser, server, request.param)
    yield chat
    assert complaints(browser) == []


def test_page_that_is_loaded_anew_goes_on(chat: Chat, upstream: ScriptedUpstream) -> None:
    first, second = threading.Event(), threading.Event()
    upstream.script = [tokens("One"), hold(first), tokens(" two"), hold(second), tokens(" thréé 🙂"), done()]
    asked = upstream.requests
    chat.wait_for(status="ready", user=[], assistant=[])
    chat.ask("Count")
    chat.wait_for(status="streaming", user=["Count"], assistant=["One"])
    first.set()
    chat.wait_for(status="streaming", assistant=["One two"])
    for _ in range(2):
        chat.load(chat.address)
        chat.wait_for(status="streaming", user=["Count"], assistant=["One two"])
    second.set()
    chat.wait_for(status="ready", user=["Count"], assistant=["One two thréé 🙂"])
    assert upstream.requests == asked + 1
    chat.load(chat.address)
    chat.wait_for(status="ready", user=["Count"], assistant=["One two thréé 🙂"])

    upstream.script = [tokens("And"), cut()]
    chat.ask("Go on")
    chat.wait_for(status="error", alert=["The model's answer was cut off."])
    said = [(each["role"], each["content"]) for each in upstream.exchanges[-1].json["messages"]]
    assert said == [("user", "Count"), ("assistant", "One two thréé 🙂"), ("user", "Go on")]


def test_stop_reaches_the_model_before_and_after_a_reload(chat: Chat, upstream: ScriptedUpstream) -> None:
    for reload in (False, True):
        upstream.script = [tokens("Half an "), silence()]
        chat.ask("Go on for ever")
        texts = ["Half an ", "Half an "] if reload else ["Half an "]
        chat.wait_for(status="streaming", assistant=texts)
        exchange = upstream.exchanges[-1]
        if reload:
            chat.load(chat.address)
            chat.wait_for(status="streaming", assistant=texts)
        assert exchange.closed_at is None
        chat.all("button")[0].click()
        wait_until(lambda: exchange.closed_at is not None, 5, "the upstream to be closed")
        chat.wait_for(status="ready", alert=[])


def test_refusal_is_shown(chat: Chat, upstream: ScriptedUpstream) -> None:
    upstream.script = [status(400)]
    chat.ask("Hello")
    chat.wait_for(status="error")
    # React 18 shows it with a rendering of its own.
    [alert] = wait_until(lambda: chat.shown["alert"], 5, "the alert")
    assert "The model" in alert
