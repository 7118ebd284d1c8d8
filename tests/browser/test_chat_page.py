"""The page of examples/chat in a real browser, on gunicorn's gevent worker."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import cut, done, hold, silence, status, tokens

pytestmark = [pytest.mark.live, pytest.mark.browser]

ROOT = Path(__file__).resolve().parent.parent.parent
APP = ROOT / "examples" / "chat" / "app.py"
CONFIG = ROOT / "gunicorn.conf.py"
#: Keys as WebDriver writes them; selenium is not imported here, where a stack without it collects.
ENTER, ESCAPE = "\ue007", "\ue00c"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(upstream: ScriptedUpstream) -> Iterator[LiveServer]:
    environment = {"LLMSTREAM_UPSTREAM_URL": upstream.url}
    with gunicorn_server(APP, config=CONFIG, env=environment) as server:
        yield server


class Page:
    """The chat page, as a reader sees and uses it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def ask(self, question: str) -> None:
        self.browser.find_element("id", "prompt").send_keys(question + ENTER)

    def all(self, selector: str) -> List[Any]:
        return list(self.browser.find_elements("css selector", selector))

    @property
    def text(self) -> str:
        """What is shown of the last answer, without the note below it."""
        return str(self.browser.execute_script(
            "const last = [...document.querySelectorAll('llm-stream')].pop();"
            "return [...last?.querySelectorAll('.llm-block') ?? []].map(each => each.textContent).join('')"
        ))

    @property
    def note(self) -> str:
        """What can be seen below the last answer: what it took, or why it has ended."""
        last = "llm-stream:last-of-type"
        found = self.all(f"{last} + small, {last} .llm-status:not([data-quiet])")
        return str(found[-1].text) if found else ""

    @property
    def is_writing(self) -> bool:
        return bool(self.all("llm-stream[aria-busy=true]"))

    def cursor(self, name: str) -> str:
        """Return a CSS property of the cursor behind the last answer."""
        return str(self.browser.execute_script(
            "const last = [...document.querySelectorAll('llm-stream .llm-block')].pop() ?? document.body;"
            "return getComputedStyle(last, '::after')[arguments[0]]",
            name,
        ))

    def wait_for_text(self, text: str) -> None:
        wait_until(lambda: self.text == text, 10, lambda: f"{text!r} on the page, which shows {self.text!r}")

    def wait_for_end(self) -> None:
        wait_until(lambda: self.note and not self.is_writing, 10, lambda: f"the end of {self.text!r}")

    def complaints(self) -> List[str]:
        """Return what the console shows, but for the browser's own line on a failed request."""
        messages = [entry["message"] for entry in self.browser.get_log("browser")]
        return [message for message in messages if "Failed to load resource" not in message]


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[Page]:
    page = Page(browser, server.url)
    yield page
    assert page.complaints() == []


def test_tokens_appear_one_by_one_and_the_cursor_goes(page: Page, upstream: ScriptedUpstream) -> None:
    first, second = threading.Event(), threading.Event()
    upstream.script = [tokens("One"), hold(first), tokens(" two"), hold(second), tokens(" thréé 🙂"), done()]
    page.ask("Count")
    page.wait_for_text("One")
    assert page.is_writing
    assert page.cursor("content") == '""'
    assert page.cursor("animationName") == "llm-blink"
    assert page.all("#stop")[0].is_displayed() and not page.all("#send")[0].is_displayed()
    first.set()
    page.wait_for_text("One two")
    assert page.is_writing
    second.set()
    page.wait_for_text("One two thréé 🙂")
    page.wait_for_end()
    assert page.cursor("content") == "none"
    assert "first token after" in page.note and "3 tokens" in page.note
    assert page.all("#send")[0].is_displayed() and not page.all("#stop")[0].is_displayed()
    assert page.all("llm-stream .llm-status")[0].get_attribute("textContent") == "One two thréé 🙂"


def press_stop(page: Page) -> None:
    page.all("#stop")[0].click()


def press_escape(page: Page) -> None:
    page.all("#prompt")[0].send_keys(ESCAPE)


@pytest.mark.parametrize("stop", [press_stop, press_escape])
def test_stop_closes_the_upstream_and_keeps_the_text(
    page: Page, upstream: ScriptedUpstream, stop: Any
) -> None:
    upstream.script = [tokens("Half an "), silence()]
    page.ask("Go on for ever")
    page.wait_for_text("Half an ")
    exchange = upstream.exchanges[-1]
    stop(page)
    wait_until(lambda: exchange.closed_at is not None, 5, "the upstream to be closed")
    page.wait_for_end()
    assert (page.text, page.note) == ("Half an ", "Stopped")
    assert page.cursor("content") == "none"

    upstream.script = [tokens("answer"), done()]
    page.ask("Go on")
    page.wait_for_text("answer")
    page.wait_for_end()
    said = [(each["role"], each["content"]) for each in upstream.exchanges[-1].json["messages"][1:]]
    assert said == [("user", "Go on for ever"), ("assistant", "Half an "), ("user", "Go on")]


def go_elsewhere(page: Page) -> None:
    page.browser.get("about:blank")


def close_tab(page: Page) -> None:
    tab = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    other = page.browser.current_window_handle
    page.browser.switch_to.window(tab)
    page.browser.close()
    page.browser.switch_to.window(other)


@pytest.mark.parametrize("leave", [go_elsewhere, close_tab])
def test_reader_who_leaves_closes_the_upstream(page: Page, upstream: ScriptedUpstream, leave: Any) -> None:
    upstream.script = [tokens("Half an "), silence()]
    page.ask("Go on for ever")
    page.wait_for_text("Half an ")
    exchange = upstream.exchanges[-1]
    leave(page)
    wait_until(lambda: exchange.closed_at is not None, 5, "the upstream to be closed")


def test_text_never_becomes_html(page: Page, upstream: ScriptedUpstream) -> None:
    attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    upstream.script = [tokens(attack), done()]
    page.ask("<b>bold?</b>")
    page.wait_for_text(attack)
    page.wait_for_end()
    assert page.all("main img, main script, main b") == []
    assert page.all("article")[0].text == "<b>bold?</b>"
    assert page.browser.title == "Chat"


def test_failure_before_the_first_token_is_shown(page: Page, upstream: ScriptedUpstream) -> None:
    upstream.script = [status(500)]
    page.ask("Hello")
    page.wait_for_end()
    assert page.note == "The model is not available."
    assert page.cursor("content") == "none"


def test_failure_in_the_middle_is_shown_below_the_text(page: Page, upstream: ScriptedUpstream) -> None:
    upstream.script = [tokens("Half an "), cut()]
    page.ask("Hello")
    page.wait_for_end()
    assert page.text == "Half an "
    assert page.note == "The model's answer was cut off."


def test_cursor_rests_where_motion_is_unwelcome(page: Page, upstream: ScriptedUpstream) -> None:
    reduce = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", reduce)
    upstream.script = [tokens("One"), silence()]
    page.ask("Count")
    page.wait_for_text("One")
    assert page.cursor("content") == '""' and page.cursor("animationName") == "none"
    press_stop(page)
    page.wait_for_end()


def distance_from_end(page: Page) -> float:
    script = "const m = document.querySelector('main'); return m.scrollHeight - m.scrollTop - m.clientHeight"
    return float(page.browser.execute_script(script))


def test_page_follows_the_text_until_its_reader_scrolls_up(page: Page, upstream: ScriptedUpstream) -> None:
    first, second = threading.Event(), threading.Event()
    lines = "\n".join(f"line {number}" for number in range(100))
    upstream.script = [
        tokens(lines), hold(first), tokens(lines + "\nmore"), hold(second), tokens("\nlast"), done()
    ]
    page.ask("Write a lot")
    page.wait_for_text(lines)
    wait_until(lambda: distance_from_end(page) < 2, 5, "the page to be at its end")
    page.browser.execute_script("document.querySelector('main').scrollTop -= 400")
    wait_until(lambda: distance_from_end(page) > 300, 5, "the page to be scrolled up")
    place = page.browser.execute_script("return document.querySelector('main').scrollTop")
    first.set()
    wait_until(lambda: page.text.endswith("more"), 10, "more text")
    assert page.browser.execute_script("return document.querySelector('main').scrollTop") == place
    page.browser.execute_script("document.querySelector('main').scrollTop = 1e9")
    second.set()
    page.wait_for_end()
    assert page.text.endswith("last")
    wait_until(lambda: distance_from_end(page) < 2, 5, "the page to be at its end again")


def test_suggestion_is_asked_and_the_welcome_goes(page: Page, upstream: ScriptedUpstream) -> None:
    upstream.script = [tokens("Once"), done()]
    page.all("header button")[0].click()
    page.wait_for_text("Once")
    page.wait_for_end()
    assert not page.all("header")[0].is_displayed()
    assert upstream.exchanges[-1].json["messages"][-1]["content"].startswith("Tell me a story")


@pytest.mark.model
def test_real_model_writes_on_the_page(browser: Any, local_model: Any) -> None:
    with gunicorn_server(APP, config=CONFIG, env={"LLMSTREAM_UPSTREAM_URL": local_model.url}) as server:
        page = Page(browser, server.url)
        page.ask("Tell me a long story about a lighthouse.")
        lengths = set()
        wait_until(lambda: lengths.add(len(page.text)) or len(lengths) > 5, 60, lambda: f"text: {lengths}")
        assert page.is_writing and local_model.busy_slots() == 1
        press_stop(page)
        wait_until(lambda: local_model.busy_slots() == 0, 5, "the model to stop")
        page.wait_for_end()
        assert page.note == "Stopped" and page.complaints() == []
