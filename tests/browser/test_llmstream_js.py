"""``llmstream.js`` in a real browser, on gunicorn, with connections that are cut and readers who leave."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional

import pytest

from flask_llmstream.testing import LiveServer, ScriptedUpstream, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import Script, done, hold, silence, tokens

LIVE = Path(__file__).resolve().parent.parent / "live"
sys.path.append(str(LIVE))

from coming_back import Cuts, CuttingProxy, chat, script_for, words_of  # noqa: E402
from test_chat_page import close_tab, go_elsewhere  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.browser]

CUTS = 2
#: An answer of words_of().
MODEL = "{}-40-20"
HEARTBEAT = 0.2

#: What a test calls: read() collects what a run says, begin() keeps it going.
PAGE = """
const done = arguments[arguments.length - 1];
window.runs ??= {};
import("/llmstream/llmstream.js").then(async (module) => {
  window.llmstream = module;
  window.begin = (name, url, options = {}) => {
    const said = window.runs[name] = { items: [], statuses: [], details: [], error: null };
    const onStatus = (status, detail) => {
      said.statuses.push(status);
      localStorage[name] = status + (document.hidden ? ", hidden" : ""); // for other tabs
      said.details.push({ attempt: detail.attempt, delay: detail.delay });
    };
    const run = said.run = module.stream(url, { onStatus, ...options });
    said.ended = (async () => {
      try {
        for await (const item of run) said.items.push(item);
      } catch (error) {
        const { name, message, code, retryable, status, body, retryAfter } = error;
        said.error = { name, message, code, retryable, status, body, retryAfter };
        said.headers = error.headers?.get("Content-Type");
      }
    })();
    return said;
  };
  window.told = (name) => {
    const { run, ended, ...said } = window.runs[name];
    const { text, status, url, reason, usage, channels } = run;
    return { ...said, text, status, url, reason, usage, channels: { ...channels } };
  };
  window.read = async (name, url, options) => {
    await window.begin(name, url, options).ended;
    return window.told(name);
  };
}).then(() => done(null), (error) => done(String(error)));
"""


def script(exchange: Any) -> Script:
    """Answer as the model says: a word and silence, a word and what a gate lets through, or many words."""
    model = exchange.json["model"]
    if model in GATES:
        return [tokens("One"), hold(GATES[model]), tokens(" two"), done()]
    return [tokens("One"), silence()] if model.startswith("silent") else script_for(exchange)


GATES: Dict[str, threading.Event] = {}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream(script) as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(upstream: ScriptedUpstream, tmp_path_factory: Any) -> Iterator[LiveServer]:
    log = tmp_path_factory.mktemp("log") / "streams.db"
    settings = {"heartbeat_interval": HEARTBEAT, "status_hold": 0.2}
    environment = {
        "EVENT_LOG": f"sqlite:///{log}", "UPSTREAM": upstream.url, "SETTINGS": json.dumps(settings),
    }
    # The proxy looks at the first request of each connection only.
    with gunicorn_server(
        LIVE / "apps" / "resumable.py", workers=2, env=environment, config_lines="keepalive = 0"
    ) as server:
        yield server


class Page:
    """A page that has loaded the module."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.set_script_timeout(30)
        browser.get(url + "/login/ada")
        assert browser.execute_async_script(PAGE) is None

    def read(self, **asked: List[Any]) -> Dict[str, Any]:
        """Read streams at the same time; return what each has said, by its name."""
        script = """
        const done = arguments[arguments.length - 1], asked = arguments[0];
        const names = Object.keys(asked);
        Promise.all(names.map((name) => read(name, ...asked[name])))
          .then((said) => done(Object.fromEntries(names.map((name, i) => [name, said[i]]))));
        """
        found: Dict[str, Any] = self.browser.execute_async_script(script, asked)
        return found

    def begin(self, name: str, url: str, options: Optional[Dict[str, Any]] = None) -> None:
        self.browser.execute_script("begin(...arguments)", name, url, options or {})

    def told(self, name: str) -> Dict[str, Any]:
        found: Dict[str, Any] = self.browser.execute_script("return told(arguments[0])", name)
        return found

    def wait_for_text(self, name: str, text: str) -> None:
        wait_until(lambda: self.told(name)["text"] == text, 10, lambda: f"{text!r}: {self.told(name)}")

    def wait_for(self, name: str, status: str) -> Dict[str, Any]:
        wait_until(lambda: self.told(name)["status"] == status, 10, lambda: f"{status}: {self.told(name)}")
        return self.told(name)

    def run(self, code: str) -> Any:
        return self.browser.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            f"(async () => {{ {code} }})().then(done, (error) => done(String(error)))"
        )


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Page:
    return Page(browser, server.url)


def words(model: str) -> str:
    return "".join(words_of(model))


def once(model: str, **options: Any) -> str:
    """Return the address of a stream that cannot be resumed."""
    return chat(model, resumable=False, **options)


def test_the_text_is_exact_after_cuts_and_no_post_is_repeated(
    browser: Any, server: LiveServer, upstream: ScriptedUpstream
) -> None:
    cuts = Cuts(CUTS, least=400)

    def plan(reader: str) -> Optional[int]:
        # What has no header is an EventSource or not to be cut.
        cut = reader in ("post", "lines", "frames", "get") or "model=source" in reader
        return cuts(reader.split("&")[0]) if cut else None

    kinds = {
        "post": {"body": {"question": "why"}}, "lines": {"body": [1], "format": "ndjson"}, "get": {},
        "frames": {"body": "1", "format": "frames"}, "plain": {"format": "text"},
        "source": {"eventSource": True},
    }
    asked = {}
    # One of them finds the place taken. They are the first: a browser has six connections to a server, and
    # whoever has to wait for one could find that the other is over.
    both = {name: f"{name}-30-40" for name in ("one", "other")}
    for name, model in both.items():
        asked[name] = [once(model, max_streams=1), {"body": {}}]
    for name, options in kinds.items():
        if name != "source":
            options["headers"] = {"X-Reader": name}
        asked[name] = [chat(MODEL.format(name)), options]
    asked["several"] = [chat("a-9-1,b-5-2", "/several"), {"body": {}}]
    before = upstream.requests
    with CuttingProxy(server.address, plan) as proxy:
        page = Page(browser, proxy.url)
        browser.execute_script("""
            window.EventSource = class extends EventSource {
                constructor(...args) { super(...args); window.source = this; }
            };
        """)
        found = page.read(**asked)
        closed = browser.execute_script("return window.source.readyState")
        browser.get("about:blank")
    for name in kinds:
        said = found[name]
        assert said["error"] is None and said["text"] == words(MODEL.format(name)), (name, said)
        assert (said["status"], said["items"][-1]["type"]) == ("done", "done"), name
        assert said["reason"] == (None if name == "plain" else "stop"), name
        assert all(item["type"] in ("text", "usage") for item in said["items"][:-1]), (name, said)
        times = 0 if name == "plain" else CUTS
        assert said["statuses"].count("reconnecting") >= times, (name, said["statuses"])
        assert times or said["statuses"] == ["connecting", "streaming", "done"], (name, said["statuses"])
    assert closed == 2, "the EventSource was not closed at the end"
    # What the server asks for, spread, and doubled where nothing came in between.
    delays = [each["delay"] for each in found["post"]["details"] if each.get("delay")]
    assert delays and all(0.5 <= delay < 4.6 for delay in delays), delays
    # Each stream has asked the model once, however often its reader came back.
    assert upstream.requests - before == len(kinds) + 4
    assert [found[name]["text"] for name in both] == [words(model) for model in both.values()]
    served, waited = sorted((found[name] for name in both), key=lambda said: len(said["statuses"]))
    assert served["statuses"] == ["connecting", "streaming", "done"], served
    assert waited["statuses"][:2] == ["connecting", "reconnecting"], waited
    assert waited["statuses"][-2:] == ["streaming", "done"] and waited["details"][1]["delay"] >= 2, waited
    several = found["several"]
    texts = {name: channel["text"] for name, channel in several["channels"].items()}
    assert texts == {"a-9-1": words("a-9-1"), "b-5-2": words("b-5-2")} and several["text"] == ""
    ends = [item for item in several["items"] if item["type"] == "channel"]
    assert sorted((each["channel"], each["end"]) for each in ends) == [("a-9-1", "done"), ("b-5-2", "done")]


def test_what_cannot_be_resumed_is_not_asked_for_again(
    browser: Any, server: LiveServer, upstream: ScriptedUpstream
) -> None:
    before = upstream.requests
    # Behind a few words: what a page has not read yet when its connection breaks is lost to it.
    plan = {"post": 400, "get": 400, "text": 160}.get
    with CuttingProxy(server.address, plan) as proxy:
        page = Page(browser, proxy.url)
        found = page.read(
            post=[once(MODEL.format("p")), {"body": {}, "headers": {"X-Reader": "post"}}],
            get=[once(MODEL.format("g")), {"headers": {"X-Reader": "get"}}],
            # It has a URL and no ids: it would begin again.
            text=[chat(MODEL.format("t")), {"format": "text", "headers": {"X-Reader": "text"}}],
        )
        browser.get("about:blank")
    assert upstream.requests - before == 3
    for name, said in found.items():
        assert said["error"]["name"] == "StreamInterrupted" and said["error"]["retryable"], (name, said)
        assert said["error"]["message"].startswith("/chat broke off"), said
        assert said["text"] and said["statuses"] == ["connecting", "streaming", "failed"], (name, said)


def test_refusals_say_what_was_seen(page: Page) -> None:
    found = page.read(
        missing=["/nowhere", {"body": {}}], page=["/login/ada", {}],
        format=[chat("x-1-1"), {"format": "text"}], gone=["/llmstream/streams/nobodys", {}],
    )
    missing = found["missing"]["error"]
    assert (missing["name"], missing["status"], missing["retryable"]) == ("StreamRefused", 404, False)
    assert "/nowhere answered 404" in missing["message"] and "<title>404" in missing["body"]
    wrong = found["page"]["error"]
    assert (wrong["status"], wrong["body"]) == (200, "ada")
    assert found["page"]["headers"].startswith("text/html")
    assert "with Content-Type text/html, expected text/event-stream" in wrong["message"]
    assert found["format"]["error"] is None and found["gone"]["error"]["status"] == 404


def exchange_of(upstream: ScriptedUpstream, model: str) -> Any:
    def found(upstream: ScriptedUpstream) -> Any:
        return [each for each in upstream.exchanges if each.json["model"] == model]

    return upstream.wait_for(found)[0]


def wait_closed(upstream: ScriptedUpstream, model: str) -> None:
    exchange = exchange_of(upstream, model)
    wait_until(lambda: exchange.closed_at is not None, 5, f"the upstream of {model} to be closed")


def test_giving_up_closes_the_connection_at_once(page: Page, upstream: ScriptedUpstream) -> None:
    models = {name: f"silent-{name}" for name in ("abort", "signal", "break", "stop")}
    page.browser.execute_script("""
        const urls = arguments[0];
        window.controller = new AbortController();
        begin("abort", urls.abort, { body: {} });
        begin("signal", urls.signal, { body: {}, signal: controller.signal });
        begin("stop", urls.stop, { body: {} });
        const run = llmstream.stream(urls.break);
        const ended = (async () => { for await (const item of run) break; })();
        runs.break = { run, ended, items: [], error: null };
    """, {name: once(model) for name, model in models.items()})
    for name in ("abort", "signal", "stop", "break"):
        page.wait_for_text(name, "One")
    found = page.run("""
        const early = llmstream.stream("/nowhere", { signal: AbortSignal.abort("why") });
        const next = early[Symbol.asyncIterator]().next();
        const refused = await next.catch((error) => [error.name, error.cause]);
        runs.abort.run.abort("enough");
        controller.abort();
        const told = await runs.stop.run.stop();
        await Promise.all(Object.values(runs).map((said) => said.ended));
        return { refused, told, idle: llmstream.stream("/nowhere").status };
    """)
    # Without a URL nobody can be told: the connection says it.
    assert found == {"refused": ["AbortError", "why"], "told": False, "idle": "idle"}
    for name in ("abort", "signal"):
        said = page.told(name)
        error = said["error"]
        assert (said["status"], error["name"], error["code"]) == ("aborted", "AbortError", "aborted")
    assert page.told("break")["status"] == "aborted" and page.told("break")["error"] is None
    said = page.told("stop")
    assert (said["status"], said["reason"], said["error"]) == ("stopped", "cancelled", None)
    for model in models.values():
        wait_closed(upstream, model)


def test_stop_has_the_server_stop_the_model(page: Page, upstream: ScriptedUpstream) -> None:
    """Also of a stream that goes on without readers, and before the first token."""
    models = ["silent-a", "silent-b"]
    for model in models:
        page.begin(model, chat(model, on_disconnect="detach"), {"body": {}})
    page.wait_for_text("silent-a", "One")
    exchange_of(upstream, "silent-b")
    found = page.run("return Promise.all(['silent-a', 'silent-b'].map((id) => runs[id].run.stop()))")
    assert found == [True, True]
    for model in models:
        said = page.wait_for(model, "stopped")
        assert (said["items"][-1]["type"], said["reason"]) == ("done", "cancelled")
        assert said["error"] is None and said["statuses"] == ["connecting", "streaming", "stopped"]
        wait_closed(upstream, model)
    assert page.run("return runs['silent-a'].run.stop()") is False


def test_hiding_the_tab_closes_nothing(page: Page, server: LiveServer) -> None:
    gate = GATES["hidden"] = threading.Event()
    page.begin("hidden", once("hidden"), {"body": {}})
    page.wait_for_text("hidden", "One")
    tab = page.browser.current_window_handle
    page.browser.switch_to.new_window("tab")
    page.browser.get(server.url + "/login/ada")
    gate.set()
    look = "return localStorage.hidden"
    wait_until(lambda: page.browser.execute_script(look) == "done, hidden", 10, "the end in the hidden tab")
    page.browser.close()
    page.browser.switch_to.window(tab)
    assert page.told("hidden")["text"] == "One two"


def test_silence_without_heartbeats_is_a_broken_connection(page: Page, upstream: ScriptedUpstream) -> None:
    """With them it is silence; and whoever comes back goes on where it was."""
    gate = GATES["beating"] = threading.Event()
    again = GATES["mute"] = threading.Event()
    options = {"body": {}, "idleTimeout": 8 * HEARTBEAT}
    page.begin("beating", once("beating"), options)
    page.begin("mute", once("mute", heartbeat_interval=0), options)
    # It is followed with the heartbeats of the app.
    GATES["resumed"] = again
    page.begin("resumed", chat("resumed", heartbeat_interval=0), options)
    said = page.wait_for("mute", "failed")
    assert said["error"]["name"] == "StreamInterrupted", said
    assert "not a byte in 1.6 s" in said["error"]["message"]
    returned = ["connecting", "streaming", "reconnecting", "streaming"]
    wait_until(lambda: page.told("resumed")["statuses"] == returned, 10, lambda: str(page.told("resumed")))
    assert page.told("beating")["statuses"] == ["connecting", "streaming"]
    gate.set()
    again.set()
    for name in ("beating", "resumed"):
        assert page.wait_for(name, "done")["text"] == "One two"
    assert len([each for each in upstream.exchanges if each.json["model"] == "resumed"]) == 1


@pytest.mark.parametrize("leave", [go_elsewhere, close_tab])
def test_who_leaves_the_page_ends_the_stream(page: Page, upstream: ScriptedUpstream, leave: Any) -> None:
    model = f"silent-{leave.__name__}"
    page.begin("left", once(model), {"body": {}})
    page.wait_for_text("left", "One")
    assert exchange_of(upstream, model).closed_at is None
    leave(page)
    wait_closed(upstream, model)
