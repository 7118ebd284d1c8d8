"""The pages of the examples in a real browser, used by keyboard alone, and as axe-core finds them."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from element_page import ENTER, TAB, ElementPage

from flask_llmstream.testing import ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import Exchange, Script, cut, done, hold, silence, tokens

pytestmark = [pytest.mark.live, pytest.mark.browser]

ROOT = Path(__file__).resolve().parent.parent.parent
SPACE = " "
#: Behind what is in a field: who comes by Tab has all of it selected.
END = "\ue010"


class ExamplePage(ElementPage):
    """A page of an example, and the model behind it."""

    def __init__(self, browser: Any, url: str, upstream: ScriptedUpstream) -> None:
        super().__init__(browser, url)
        self.upstream = upstream
        browser.get(url)
        self.run("window.wrong = []; addEventListener('error', (event) => wrong.push(String(event.message)))")

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def wait_until(self, script: str, expected: Any) -> None:
        wait_until(
            lambda: self.run(f"return {script}") == expected, 10,
            lambda: f"{script} to be {expected!r}, it is {self.run(f'return {script}')!r}; {self.log()}",
        )

    def focus(self) -> Any:
        return self.run("return document.activeElement.id")


def opened(browser: Any, name: str) -> Iterator[ExamplePage]:
    with ScriptedUpstream() as upstream:
        app = ROOT / "examples" / name / "app.py"
        environment = {"LLMSTREAM_UPSTREAM_URL": upstream.url}
        with gunicorn_server(app, config=ROOT / "gunicorn.conf.py", env=environment) as server:
            page = ExamplePage(browser, server.url, upstream)
            yield page
            assert page.complaints() == []
            browser.get("about:blank")


@pytest.fixture
def form(browser: Any) -> Iterator[ExamplePage]:
    yield from opened(browser, "form_copilot")


@pytest.fixture
def chat(browser: Any) -> Iterator[ExamplePage]:
    yield from opened(browser, "chat")


@pytest.fixture
def dashboard(browser: Any) -> Iterator[ExamplePage]:
    yield from opened(browser, "dashboard")


SAID = "document.querySelector('#status').textContent"
#: Of each field of the ticket: its value, and whether it is disabled (-), being written (*) or final (+).
FIELDS = """[...document.querySelectorAll('#ticket [name]')].map((it) => {
  const { classList } = it.parentElement;
  const state = classList.contains('writing') ? '*' : classList.contains('final') ? '+' : '';
  return (it.disabled ? '-' : '') + state + it.value;
})"""


def test_fields_fill_live_and_are_enabled_one_by_one(form: ExamplePage, npm_packages: Path) -> None:
    gates = [threading.Event() for _ in range(5)]
    pieces = [
        '{"customer": "J', 'o", "product": "Exp', 'ort", "severity": "High"', ', "subject": "Emp',
        'ty <b>", "summary": "S", "reply": "R',
    ]
    script: List[Any] = []
    for piece, gate in zip(pieces, gates):
        script += [tokens(piece), hold(gate)]
    form.upstream.script = [*script, tokens('"}'), done()]
    assert form.violations(npm_packages) == []
    form.run("document.activeElement.blur()")
    form.press(TAB, TAB)
    assert form.focus() == "fill"
    form.press(ENTER)
    expected = [
        ["-*J", "-", "-", "-", "-", "-"],
        ["+Jo", "-*", "-", "-", "-", "-"],
        ["+Jo", "+Export", "+High", "-", "-", "-"],
        ["+Jo", "+Export", "+High", "-*Emp", "-", "-"],
        ["+Jo", "+Export", "+High", "+Empty <b>", "+S", "-*R"],
    ]
    for number, states in enumerate(expected):
        form.wait_until(FIELDS, states)
        if number == 3:
            assert form.focus() == "stop"
            assert form.violations(npm_packages) == []
            # What is final can be changed while the rest is written.
            form.press(TAB)
            assert form.focus() == "customer"
            form.press(END, " Winter", TAB, TAB, TAB)
            assert form.focus() not in ("subject", "summary", "reply")
            expected[4][0] = "+Jo Winter"
        gates[number].set()
    form.wait_until(FIELDS, ["+Jo Winter", "+Export", "+High", "+Empty <b>", "+S", "+R"])
    form.wait_until(SAID, "The ticket is complete. Please check it.")
    assert form.violations(npm_packages) == []
    (exchange,) = form.upstream.exchanges
    assert "nightly export" in exchange.json["messages"][1]["content"]
    assert exchange.json["response_format"]["json_schema"]["schema"]["required"][0] == "customer"


def test_what_the_model_leaves_is_the_readers(form: ExamplePage) -> None:
    form.upstream.script = [tokens('{"customer": "Jo", "product": "Sofas"', ', "subject": "x"'), silence()]
    form.run("document.querySelector('#fill').focus()")
    form.press(ENTER)
    form.wait_until(SAID, "The model's answer does not have the form that was asked for: /product")
    # Nobody says that a value is final which the schema does not allow.
    form.wait_until(FIELDS, ["+Jo", "", "", "", "", ""])
    form.upstream.wait_closed()
    assert form.focus() == "customer"
    form.upstream.script = [tokens('{"customer": "Al'), silence()]
    form.run("document.querySelector('#fill').focus()")
    form.press(SPACE)
    form.wait_until(FIELDS, ["-*Al", "-", "-", "-", "-", "-"])
    assert form.focus() == "stop"
    form.press(ENTER)
    form.wait_until(FIELDS, ["Al", "", "", "", "", ""])
    form.wait_until(SAID, "Stopped. The rest is yours.")
    form.upstream.wait_closed()


#: What the model is told for each section of the briefing.
TASKS = {"summary": "sentences", "for": "speaks for it", "against": "speaks against it", "next": "steps"}
STATUSES = "[...document.querySelectorAll('llm-stream')].map((it) => it.status)"


def test_sections_grow_side_by_side_from_one_request(dashboard: ExamplePage, npm_packages: Path) -> None:
    gates = {name: [threading.Event() for _ in range(2)] for name in TASKS}

    def answer(exchange: Exchange) -> Script:
        (name,) = [name for name, task in TASKS.items() if task in str(exchange.json["messages"])]
        first, second = gates[name]
        end = cut() if name == "against" else done()
        return [hold(first), tokens(f"- {name} **1"), hold(second), tokens(" 2**"), end]

    dashboard.upstream.script = answer
    assert dashboard.violations(npm_packages) == []
    dashboard.run("document.activeElement.blur()")
    dashboard.press(TAB, END, " Really?", ENTER)
    shown: Dict[str, str] = {}
    text = "document.getElementById('{}').querySelector('.llm-text').textContent.trim()"
    order = [("next", 0), ("for", 0), ("next", 1), ("summary", 0), ("against", 0), ("for", 1), ("summary", 1)]
    for name, step in order:
        gates[name][step].set()
        shown[name] = f"{name} 1" + " 2" * step
        for each in TASKS:
            dashboard.wait_until(text.format(each), shown.get(each, ""))
        if (name, step) == ("against", 0):
            assert dashboard.focus() == "stop"
            dashboard.wait_until(STATUSES, ["streaming", "streaming", "streaming", "done"])
            assert dashboard.run("return document.querySelectorAll('.llm-text li strong').length") == 4
            assert dashboard.run("return document.querySelectorAll('.llm-cursor').length") == 3
            assert dashboard.violations(npm_packages) == []
    gates["against"][1].set()
    dashboard.wait_until(STATUSES, ["done", "done", "failed", "done"])
    dashboard.wait_until(SAID, "The briefing is complete")
    assert "cut off" in dashboard.run("return document.getElementById('against').textContent")
    assert dashboard.focus() == "question"
    assert dashboard.violations(npm_packages) == []
    asked = "performance.getEntriesByType('resource').filter((it) => it.name.endsWith('/briefing')).length"
    assert dashboard.run(f"return {asked}") == 1
    assert len(dashboard.upstream.exchanges) == 4
    assert dashboard.upstream.exchanges[0].json["messages"][1]["content"].endswith("Sundays? Really?")

    dashboard.upstream.script = [tokens("Half"), silence()]
    dashboard.press(ENTER)
    dashboard.wait_until(STATUSES, ["streaming"] * 4)
    dashboard.press(ENTER)  # on Stop
    dashboard.wait_until(SAID, "Stopped")
    dashboard.upstream.wait_closed()


def test_chat_has_nothing_to_complain_of(chat: ExamplePage, npm_packages: Path) -> None:
    assert chat.violations(npm_packages) == []
    gate = threading.Event()
    chat.upstream.script = [tokens("One"), hold(gate), tokens(" two"), done()]
    assert chat.focus() == "prompt"
    chat.press("Count", ENTER)
    chat.wait_until("it?.textContent.includes('One')", True)
    assert chat.violations(npm_packages) == []
    gate.set()
    chat.wait_until("it.status", "done")
    assert chat.violations(npm_packages) == []
    assert chat.focus() == "prompt"
