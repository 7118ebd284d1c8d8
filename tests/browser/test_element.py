"""``<llm-stream>`` in a real browser, on gunicorn's gevent worker: what it shows, says and asks for."""

from __future__ import annotations

import random
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest
from element_page import APP, CONTROL, ENTER, ESCAPE, TAB, ElementPage, opened

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import cut, done, hold, silence, status, tokens

sys.path.append(str(Path(__file__).resolve().parent.parent / "live"))

from coming_back import CuttingProxy  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.browser]

CHAT = '<llm-stream src="/chat"></llm-stream>'
WAITS = '<llm-stream src="/chat" manual></llm-stream>'


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(upstream: ScriptedUpstream) -> Iterator[LiveServer]:
    once = "keepalive = 0"  # the cutting proxy looks at the first request of a connection only
    environment = {"UPSTREAM": upstream.url}
    with gunicorn_server(APP, env=environment, config_lines=once) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[ElementPage]:
    yield from opened(browser, server.url)


def statuses(page: ElementPage) -> Any:
    return page.run("return told.filter(([name]) => name === 'status').map(([, detail]) => detail.status)")


def test_answer_grows_behind_a_blinking_cursor_that_goes(
    page: ElementPage, upstream: ScriptedUpstream, npm_packages: Path
) -> None:
    first, second = threading.Event(), threading.Event()
    upstream.script = [
        hold(first), tokens("One <b>two</b>"), hold(second), tokens("\nthréé 🙂", "\n\nfour"), done()
    ]
    page.open(CHAT)
    page.wait_for("it.status === 'connecting' || it.status === 'streaming'")
    assert page.run("return it.getAttribute('aria-busy')") == "true"
    assert page.text == "" and page.violations(npm_packages) == []
    # It waits where the text will begin. What is said of it is not busy, which would be kept silent.
    assert page.run("return it.querySelector('.llm-cursor').className") == "llm-text llm-cursor"
    assert page.cursor("animationName") == "llm-blink"
    assert page.run("return it.querySelector('[role=status]').closest('[aria-busy]').ariaBusy") == "false"
    first.set()
    page.wait_for("it.querySelector('.llm-cursor')?.textContent === 'One <b>two</b>'")
    assert page.run("return it.querySelector('b')") is None
    assert page.cursor("content") == '""' and page.cursor("animationName") == "llm-blink"
    assert page.cursor("animationIterationCount") == "infinite"
    assert page.cursor("backgroundColor") == "rgb(196, 201, 209)"  # light gray
    page.run("document.documentElement.style.colorScheme = 'dark'")
    assert page.cursor("backgroundColor") == "rgb(134, 141, 152)"
    assert page.violations(npm_packages) == []
    page.run("it.style.setProperty('--llm-cursor-color', 'rgb(1, 2, 3)')")
    assert page.cursor("backgroundColor") == "rgb(1, 2, 3)"
    page.run("document.documentElement.style.colorScheme = ''")
    # Motion is unwelcome: it is there and rests.
    reduce = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", reduce)
    assert page.cursor("animationName") == "none" and page.cursor("content") == '""'
    # One place says what happens, politely, and it is not the text.
    assert page.said == "The answer is being written"
    assert page.run("return document.querySelectorAll('[aria-live], [role=log], [role=alert]').length") == 0
    tree = page.browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    names = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "StaticText"]
    assert "One <b>two</b>" in names
    assert names.count("The answer is being written") == 1
    second.set()
    page.wait_for("it.status === 'done'")
    answer = "One <b>two</b>\nthréé 🙂\n\nfour"
    assert page.text == page.run("return it.text") == page.said == answer
    assert page.cursor("content") == "none" and page.run("return it.querySelector('.llm-cursor')") is None
    assert page.run("return it.getAttribute('aria-busy')") == "false"
    assert statuses(page)[-1] == "done"
    ((_, end),) = page.run("return told.filter(([name]) => name === 'done')")
    assert (end["text"], end["reason"]) == (answer, "stop")
    assert page.violations(npm_packages) == []

    # The clipboard has the lines, and nothing else of the element.
    page.browser.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.run("getSelection().selectAllChildren(it)")
    page.browser.find_element("css selector", "body").send_keys(CONTROL + "c" + CONTROL)
    copied = page.browser.execute_async_script(
        "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    )
    assert copied.strip("\n") == answer


def test_keyboard_alone_stops_retries_and_keeps_its_place(
    page: ElementPage, upstream: ScriptedUpstream, npm_packages: Path
) -> None:
    upstream.script = [tokens("Half an "), silence()]
    page.open(WAITS)
    assert page.status == "idle" and page.violations(npm_packages) == []
    assert not page.part("stop").is_displayed() and not page.part("retry").is_displayed()
    page.run("it.start({ question: 'Why?' })")
    page.wait_for("it.text === 'Half an '")
    exchange = upstream.exchanges[-1]
    assert exchange.json["messages"][0]["content"] == '{"question":"Why?"}'
    page.browser.find_element("css selector", "body").send_keys(TAB)
    assert page.focused() == "llm-stop"
    # A server that refuses to stop can be told again.
    page.run("document.cookie = 'refuse=1'")
    assert page.run("return it.stop()") is False
    page.run("document.cookie = 'refuse=; max-age=0'")
    assert page.status == "streaming" and page.focused() == "llm-stop"
    page.part("stop").send_keys(ENTER)
    wait_until(lambda: exchange.closed_at is not None, 5, "the upstream to be closed")
    page.wait_for("it.status === 'stopped'")
    assert page.text == "Half an " and page.said == "Stopped" and page.cursor("content") == "none"
    assert page.focused() == "llm-retry" and page.violations(npm_packages) == []
    page.part("retry").send_keys(ENTER)
    page.wait_for("it.text === 'Half an ' && it.status === 'streaming'")
    again = upstream.exchanges[-1]
    assert again is not exchange and again.json == exchange.json
    assert page.focused() == "llm-stop"
    page.part("stop").send_keys(ESCAPE)
    wait_until(lambda: again.closed_at is not None, 5, "the upstream to be closed")
    page.wait_for("it.status === 'stopped'")

    upstream.script = [tokens("whole"), done()]
    page.run("it.retry()")
    page.wait_for("it.status === 'done'")
    assert page.text == "whole" and page.focused() == "llm-stream"
    # Escape belongs to others where nothing is being written.
    page.run("addEventListener('keydown', event => { window.escaped = !event.defaultPrevented })")
    page.run("it.focus()")
    page.browser.switch_to.active_element.send_keys(ESCAPE)
    assert page.run("return window.escaped") is True
    page.run("it.reset()")
    assert (page.text, page.status) == ("", "idle")
    assert page.run(
        "const box = document.createElement('div'), root = box.attachShadow({ mode: 'open' });"
        "document.body.append(box); root.append(it); it.push({ type: 'text', text: 'a' });"
        "it.querySelector('.llm-stop').focus(); it.stop(); return root.activeElement?.className"
    ) == "llm-retry"


@pytest.mark.parametrize(
    "script, said, text",
    [
        ([status(500)], "The model is not available.", ""),
        ([tokens("Half an "), cut()], "cut off", "Half an "),
    ],
    ids=["before", "in the middle"],
)
def test_failure_is_shown_with_a_way_out(
    page: ElementPage, upstream: ScriptedUpstream, npm_packages: Path, script: Any, said: str, text: str
) -> None:
    upstream.script = script
    page.open(CHAT)
    page.wait_for("it.status === 'failed'")
    assert said in page.said and page.text == text
    assert page.part("status").is_displayed() and page.part("status").size["width"] > 50
    assert page.part("retry").is_displayed() and not page.part("stop").is_displayed()
    assert page.cursor("content") == "none" and page.violations(npm_packages) == []
    assert page.run("return told.filter(([name]) => name === 'error').length") == 1
    # On paper there is nothing to press.
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert page.part("status").is_displayed() and not page.part("retry").is_displayed()
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert page.run("it.hidden = true; return it.offsetHeight") == 0


def test_reconnecting_is_said_and_the_text_goes_on(
    browser: Any, server: LiveServer, upstream: ScriptedUpstream, npm_packages: Path
) -> None:
    gate, looked = threading.Event(), threading.Event()
    upstream.script = [tokens("One", " two"), hold(gate), tokens(" three"), done()]
    cuts = iter([300])

    def plan(target: str) -> Optional[int]:
        if target.startswith("/llmstream/streams/"):
            looked.wait(8)  # who comes back gets no further before it was seen
        return next(cuts, None) if target.startswith("/chat") else None

    with CuttingProxy(server.address, plan) as proxy:
        page = ElementPage(browser, proxy.url).open(CHAT)
        page.wait_for("it.status === 'reconnecting'")
        assert page.part("status").text == "The connection was lost. Reconnecting…"
        assert page.part("status").size["width"] > 50
        assert page.cursor("content") == '""' or not page.text
        assert page.violations(npm_packages) == []
        assert page.status == "reconnecting"
        looked.set()
        gate.set()
        page.wait_for("it.status === 'done'", timeout=20)
        assert page.text == "One two three" and upstream.exchanges[-1].json
        browser.get("about:blank")


def test_moving_keeps_the_stream_and_removing_ends_it(page: ElementPage, upstream: ScriptedUpstream) -> None:
    gate = threading.Event()
    upstream.script = [tokens("One"), hold(gate), tokens(" two"), silence()]
    page.open(CHAT)
    page.wait_for("it.text === 'One'")
    exchange, asked = upstream.exchanges[-1], len(upstream.exchanges)
    page.run("const box = document.createElement('section'); document.body.append(box); box.append(it)")
    gate.set()
    page.wait_for("it.text === 'One two'")
    assert len(upstream.exchanges) == asked and exchange.closed_at is None
    page.run("window.gone = it; it.remove()")
    page.wait_for("window.gone.status === 'aborted'")
    assert page.run("return window.gone.text") == "One two"

    # What it is told outside of the page it asks for when it is back; what is said in one go, once.
    upstream.script = [tokens("back"), done()]
    page.run("gone.src = '/chat?two'; gone.body = { two: 2 }")
    page.frames()
    assert page.run("return gone.status") == "aborted"
    page.run("document.body.append(gone)")
    page.wait_for("it.status === 'done'")
    page.run("it.src = '/chat?three'; it.src = '/chat?four'; it.body = { four: 4 }; told.length = 0")
    page.wait_for("it.status === 'done' && told.length")
    asks = [each.json["messages"][0]["content"] for each in upstream.exchanges[asked:]]
    assert asks == ['{"two":2}', '{"four":4}']


def test_long_answer_is_counted_and_a_short_one_is_not(page: ElementPage) -> None:
    page.open('<llm-stream expected-tokens="1500"></llm-stream>')
    page.run("for (let n = 0; n < 150; n++) it.push({ type: 'text', text: 'a ' })")
    page.frames()
    assert page.part("count").text == ""
    page.run("for (let n = 0; n < 100; n++) it.push({ type: 'text', text: 'a ' })")
    page.frames()
    assert page.part("count").text == "250 of about 1,500 tokens"
    assert page.run("return it.querySelector('progress, [role=progressbar]')") is None
    page.run("it.push({ type: 'done', reason: 'stop', usage: { output_tokens: 1234 } })")
    assert page.part("count").text == "1,234 of about 1,500 tokens"
    # Deltas of JSON, and other languages.
    page.run(
        "it.labels = { streaming: 'Es wird geschrieben', stop: 'Anhalten' };"
        "it.push({ type: 'json', path: '', op: 'add', value: { a: 'x' } });"
        "it.push({ type: 'json', path: '/a', op: 'append', value: 'y' });"
    )
    assert page.run("return it.value") == {"a": "xy"} and page.text == ""
    assert page.said == "Es wird geschrieben" and page.part("stop").text == "Anhalten"
    assert [detail["value"] for _, detail in page.run("return told.filter(([name]) => name === 'value')")]
    # One channel of several; its page has buttons of its own.
    page.run(
        "it.setAttribute('controls', 'none');"
        "it.push({ type: 'text', text: 'Half', channel: 'a' });"
    )
    assert not page.part("stop").is_displayed()
    page.run("it.push({ type: 'channel', end: 'failed', message: 'No luck', code: 'x', retryable: true })")
    assert (page.text, page.status, page.said) == ("Half", "failed", "No luck")
    assert page.run("return [it.error.code, it.error.retryable]") == ["x", True]
    assert not page.part("retry").is_displayed()
    page.run("it.push({ type: 'text', text: 'b', channel: 'a' }); it.push({ type: 'channel', end: 'done' })")
    assert (page.text, page.status) == ("b", "done")


def test_hidden_tab_goes_on_without_frames(page: ElementPage) -> None:
    page.open("<llm-stream></llm-stream>")
    page.push("seen")
    page.run(
        "localStorage.clear();"
        "document.addEventListener('visibilitychange', () => {"
        "  if (document.hidden) it.push({ type: 'text', text: ' and hidden' }); });"
        "new MutationObserver(() => { localStorage.written = document.hidden; })"
        "  .observe(it, { subtree: true, characterData: true })"
    )
    tab = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")  # in front of the first
    try:
        # The same origin, so that it hears of what happens in the first, which stays hidden.
        page.browser.get(f"{page.url}/page")
        wait_until(lambda: page.run("return localStorage.written"), 10, "the text to be written")
        assert page.run("return localStorage.written") == "true"
    finally:
        page.browser.close()
        page.browser.switch_to.window(tab)
    assert page.text == "seen and hidden"


def test_blocks_look_and_are_copied_like_one_text(page: ElementPage) -> None:
    page.open("<llm-stream></llm-stream>")
    chance = random.Random(7)
    parts = ["word ", "\n", "\n\n", "\n\n\n", "a longer piece of a line, ", "  indented", "é🙂", "\t"]
    for _ in range(5):
        text = "".join(chance.choices(parts, k=2500)) + "end"
        pieces = []
        at = 0
        while at < len(text):
            size = chance.choice([1, 3, 20, 900, 4000])
            pieces.append(text[at : at + size])
            at += size
        seen = page.run(
            "it.reset(); for (const text of arguments[0]) { it.push({ type: 'text', text }); it.flush(); }"
            "it.push({ type: 'done' });"
            "const shown = it.querySelector('.llm-text'), one = document.createElement('div');"
            "one.style.cssText = 'white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext';"
            "one.textContent = arguments[0].join(''); it.after(one);"
            "getSelection().selectAllChildren(shown);"
            "const found = [shown.children.length, shown.offsetHeight - one.offsetHeight,"
            "  getSelection().toString()];"
            "one.remove(); return found",
            pieces,
        )
        assert seen[0] > 5 and seen[1] == 0
        assert seen[2].strip("\n") == text.strip("\n")
