"""``useLLMStream`` with React 18 and 19 in a real browser, on gunicorn with two workers."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Iterator, List
from urllib.parse import urlencode

import pytest
from bundling import BUNDLES
from reacting import complaints, serving

from flask_llmstream.testing import LiveServer, ScriptedUpstream, wait_until
from flask_llmstream.testing.upstreams import cut, done, hold, silence, status, tokens

pytestmark = [pytest.mark.live, pytest.mark.browser, pytest.mark.checkout]

ENTER = "\ue007"
STATIC = Path(__file__).resolve().parent.parent.parent / "flask_llmstream" / "static"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(
    npm_packages: Path, tmp_path_factory: pytest.TempPathFactory, upstream: ScriptedUpstream
) -> Iterator[LiveServer]:
    with serving(npm_packages, tmp_path_factory.mktemp("react"), upstream) as server:
        yield server


class Probe:
    """The page with one component that shows a stream, under StrictMode."""

    def __init__(self, browser: Any, server: LiveServer, bundle: str) -> None:
        self.browser = browser
        self._address = f"{server.url}/page/probe/{bundle}"

    def open(self, **query: str) -> None:
        self.browser.get(f"{self._address}?{urlencode(query)}")
        wait_until(lambda: self.run("return Boolean(window.hook)"), 10, "the component")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    @property
    def state(self) -> Any:
        """What was rendered last."""
        return self.run("""
            const { error, ...state } = seen.states.at(-1);
            return { ...state, error: error && { ...error, name: error.name, message: error.message } };
        """)

    def wait_for(self, **expected: Any) -> Any:
        """Return the state, once it has these values."""
        found: List[Any] = []

        def look() -> bool:
            found[:] = [self.state]
            return all(found[0][name] == value for name, value in expected.items())

        wait_until(look, 10, lambda: f"{expected} on the page, which has {found}")
        return found[0]


@pytest.fixture(params=sorted(BUNDLES))
def probe(request: Any, browser: Any, server: LiveServer) -> Iterator[Probe]:
    probe = Probe(browser, server, request.param)
    yield probe
    assert complaints(browser) == []


@pytest.mark.parametrize("how", ["immediate", "effect"])
def test_strict_mode_asks_once_and_frames_are_rendered_once(
    how: str, probe: Probe, upstream: ScriptedUpstream
) -> None:
    words = [f"{number} " for number in range(400)]
    half, go_on = "".join(words[:200]), threading.Event()
    upstream.script = [
        tokens(*words[:200], interval=0.001), hold(go_on), tokens(*words[200:], interval=0.001), done()
    ]
    asked = upstream.requests
    probe.open(how=how)
    probe.wait_for(text=half)  # it comes live
    go_on.set()
    state = probe.wait_for(status="done")
    assert state["text"] == "".join(words) and state["reason"] == "stop" and not state["busy"]
    assert upstream.requests == asked + 1
    deltas, renders, functions, ends, version = probe.run(
        "return [seen.deltas, seen.states.length / 2, seen.functions.size, seen.ends.length, seen.version]"
    )
    print(f"React {version}: {deltas} deltas, {renders:g} renders")
    assert deltas > 300 and renders < deltas / 3, "StrictMode calls each component twice"
    assert functions == 3 and ends == 1
    texts = probe.run("return seen.states.map((state) => state.text)")
    assert all(after.startswith(before) for before, after in zip(texts, texts[1:]))
    assert half in texts


def test_component_that_goes_away_closes_the_upstream(probe: Probe, upstream: ScriptedUpstream) -> None:
    upstream.script = [tokens("Half an "), silence()]
    probe.open(how="immediate", url="/chat?plain")
    probe.wait_for(status="streaming", text="Half an ", url=None)
    exchange = upstream.exchanges[-1]
    probe.run("show(false)")
    wait_until(lambda: exchange.closed_at is not None, 5, "the upstream to be closed")
    wait_until(lambda: probe.run("return seen.ends.length"), 5, "the end to be told")
    assert probe.run("return seen.ends.map((end) => [end.status, end.error])") == [["aborted", None]]


def test_stop_ends_the_generation_and_another_can_begin(probe: Probe, upstream: ScriptedUpstream) -> None:
    upstream.script = [tokens("Half an "), silence()]
    probe.open()
    assert probe.state["status"] == "idle" and probe.run("return hook.stop()") is False
    probe.browser.find_element("id", "text").click()  # start() as an event handler: no body
    state = probe.wait_for(status="streaming", text="Half an ")
    assert state["busy"] and state["url"]
    exchange = upstream.exchanges[-1]
    assert probe.run("return hook.stop()") is True
    state = probe.wait_for(status="stopped")
    assert (state["text"], state["reason"], state["error"]) == ("Half an ", "cancelled", None)
    wait_until(lambda: exchange.closed_at is not None, 5, "the upstream to be closed")

    flag = threading.Event()
    upstream.script = [tokens("An "), hold(flag), tokens("answer"), done()]
    probe.run("window.ended = null; hook.start({ one: 1 })")
    probe.wait_for(text="An ")
    asked = upstream.requests
    probe.run("hook.start({ two: 2 }).then((state) => { window.ended = state; })")
    upstream.wait_for(lambda upstream: upstream.requests == asked + 1)
    probe.wait_for(text="An ", status="streaming")
    flag.set()
    assert probe.wait_for(status="done")["text"] == "An answer"
    assert upstream.exchanges[-1].json["messages"][0]["content"] == json.dumps({"two": 2})
    assert probe.run("return ended.text") == "An answer"
    assert probe.run("return seen.ends.map((end) => end.status)") == ["stopped", "aborted", "done"]
    probe.run("hook.reset()")
    assert probe.wait_for(status="idle")["text"] == ""


def test_failures_are_states(probe: Probe, upstream: ScriptedUpstream) -> None:
    upstream.script = [status(400)]
    probe.open(how="immediate")
    state = probe.wait_for(status="failed")
    assert not state["busy"] and state["error"]["name"] == "StreamRefused" and state["error"]["status"] == 502
    upstream.script = [tokens("Half an "), cut()]
    probe.run("hook.start()")
    state = probe.wait_for(status="failed", text="Half an ")
    assert state["error"]["name"] == "StreamFailed" and state["error"]["code"] == "upstream_interrupted"
    assert len(probe.run("return seen.ends")) == 2
    upstream.script = [tokens("Well"), done()]
    probe.run("hook.start()")
    assert probe.wait_for(status="done", text="Well")["error"] is None


def test_json_is_a_new_value_in_each_frame(probe: Probe, upstream: ScriptedUpstream) -> None:
    value = {"name": "Ada", "notes": ["first", {"deep": "x" * 60}], "__proto__": {"polluted": True}}
    text = json.dumps(value)
    # Each part goes on with the value, and is shown before the next one comes.
    parts = [text[at : at + 20] for at in range(0, len(text), 20)]
    gates = [threading.Event() for _ in parts]
    steps = [[tokens(*re.findall(".{1,4}", part)), hold(gate)] for part, gate in zip(parts, gates)]
    upstream.script = [*itertools.chain(*steps), done()]
    probe.open(how="immediate", url="/chat?structured")
    shown: List[Any] = [None]

    def look() -> bool:
        now = probe.run("return JSON.stringify(seen.states.at(-1).json) ?? null")
        if now == shown[-1]:
            return False
        shown.append(now)
        return True

    for gate in gates:
        wait_until(look, 10, lambda: str(shown))
        gate.set()
    probe.wait_for(status="done")
    assert json.loads(probe.run("return JSON.stringify(hook.json)")) == value
    assert probe.run("return {}.polluted") is None
    values = probe.run("""
        const values = new Set(seen.states.map((state) => state.json));
        return [...values].map((value) => JSON.stringify(value));
    """)
    assert len(values) == len(set(values)) > 5, "each is another, and none was changed afterwards"


@pytest.mark.parametrize("bundle", sorted(BUNDLES))
def test_page_of_the_docs(bundle: str, browser: Any, server: LiveServer, upstream: ScriptedUpstream) -> None:
    upstream.script = [tokens("Half an "), silence()]
    browser.get(f"{server.url}/page/ask/{bundle}")
    find = browser.find_element
    wait_until(lambda: browser.find_elements("css selector", "input"), 10, "the page")
    find("css selector", "input").send_keys("Go on for ever" + ENTER)

    def text_of(tag: str) -> str:
        """In one step: React may put another element in its place."""
        return str(browser.execute_script("return document.querySelector(arguments[0])?.innerText", tag))

    wait_until(lambda: text_of("p").strip() == "Half an", 10, "the text")
    assert find("css selector", "p").get_attribute("aria-busy") == "true"
    exchange = upstream.exchanges[-1]
    assert "Go on for ever" in exchange.json["messages"][0]["content"]
    find("css selector", "button").click()
    wait_until(lambda: exchange.closed_at is not None, 5, "the upstream to be closed")
    wait_until(lambda: text_of("button") == "Ask", 5, "the end")
    assert text_of("p").strip() == "Half an"
    assert complaints(browser) == []


USED = """
import { useLLMStream, type LLMStreamState } from "./llmstream-react.js";

export function Form() {
  const hook = useLLMStream<{ name?: string }>("/form", {
    immediate: true, retries: 2, onDelta: (delta) => delta.type === "tool" && delta.name,
    onEnd: (state: LLMStreamState<{ name?: string }>) => state.json?.name,
  });
  const { json, text, start, stop, status, error, usage, channels } = hook;
  const name: string | undefined = json?.name;
  void start({ a: 1 }).then((state) => state.text.trim());
  void stop().then((told: boolean) => told);
  // @ts-expect-error: there is no such status
  if (status === "ready") return null;
  return [text, name, error?.message, usage?.output_tokens, channels["a"]?.text];
}
// @ts-expect-error: nor such an option
useLLMStream("/form", { immediately: true });
"""


def test_types(node: str, npm_packages: Path, tmp_path: Path) -> None:
    """The module is what its declarations say, and they say what a strict user needs."""
    for name in ("llmstream.js", "llmstream.d.ts", "llmstream-react.js", "llmstream-react.d.ts"):
        shutil.copyfile(str(STATIC / name), str(tmp_path / name))
    (tmp_path / "used.ts").write_text(USED)
    options = {
        "noEmit": True, "strict": True, "allowJs": True, "checkJs": True, "target": "es2022",
        "module": "esnext", "moduleResolution": "bundler", "lib": ["es2022", "dom", "dom.iterable"],
        "skipDefaultLibCheck": True, "types": [],
        "paths": {"react": [str(npm_packages / "@types" / "react")]},
    }
    config = {"compilerOptions": options, "files": ["llmstream-react.js", "used.ts"]}
    (tmp_path / "tsconfig.json").write_text(json.dumps(config))
    compiler = [node, str(npm_packages / "typescript" / "bin" / "tsc"), "--pretty", "false"]
    checked = subprocess.run(compiler, cwd=str(tmp_path), stdout=subprocess.PIPE, timeout=100)
    assert checked.returncode == 0, checked.stdout.decode()
