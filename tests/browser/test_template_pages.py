"""Pages made by templates, in a real browser: under a strict policy, and with jQuery, old and new."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from element_page import ENTER, ElementPage

from flask_llmstream.testing import LiveServer, gunicorn_server

pytestmark = [pytest.mark.live, pytest.mark.browser]

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent.parent / "docs"


@pytest.fixture(scope="module")
def server(npm_packages: Path) -> Iterator[LiveServer]:
    with gunicorn_server(HERE / "apps" / "templated.py", env={"NPM_PACKAGES": str(npm_packages)}) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[ElementPage]:
    page = ElementPage(browser, server.url)
    yield page
    # jQuery 1.12 asks by an inline handler what the browser can do; that costs it nothing but this line.
    assert [message for message in page.log() if "/jquery/jquery-1.js" not in message] == []


def show(page: ElementPage, template: str) -> None:
    page.browser.get(page.url + "/write")
    fill = "const it = document.querySelector('textarea'); it.value = arguments[0]; it.form.submit();"
    page.browser.execute_script(fill, template)
    page.wait_for("location.pathname === '/page' && document.readyState === 'complete'")


def html_of_docs() -> List[str]:
    """Return the blocks of HTML of docs/templates.md, for a page with the policy."""
    text = (DOCS / "templates.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```html\n(.*?)^```", text, re.M | re.S)
    return [re.sub("<script(?=[ >])", '<script nonce="{{ csp_nonce }}"', block) for block in blocks]


def test_nonce_is_all_that_a_strict_policy_asks_for(page: ElementPage) -> None:
    show(page, """{{ llmstream_scripts() }}</head><main><h1>Page</h1>
        {{ llm_stream("/answer", markdown=True, expected_tokens=800) }}</main>""")
    page.wait_for("it.status === 'done' && it.querySelector('.llm-text table td')?.textContent === 'b'")
    assert page.run("return it.querySelector('strong').textContent") == "nothing"
    assert page.run("return getComputedStyle(it).position") == "relative", "its styles are there"
    loaded = page.run("return performance.getEntriesByType('resource').map((each) => each.name)")
    modules = [url for url in loaded if "/ai/" in url]
    assert len(modules) > 4 and len(set(modules)) == len(modules)
    assert all(re.search(r"/ai/v\d[^/]*/", url) for url in modules), modules
    assert page.run("return broken") == [] and page.log() == []
    # The policy is there: what has no nonce, or another, does not run.
    show(page, "{{ llmstream_scripts(nonce='guessed') }}</head>{{ llm_stream('/answer') }}")
    page.wait_for("broken.length > 0")
    assert page.run("return broken[0]").startswith("script-src-elem ")
    assert page.run("return customElements.get('llm-stream') === undefined")
    assert all("Content Security Policy" in message for message in page.log())


@pytest.mark.parametrize("name", ["jquery-1", "jquery"])
def test_jquery_finds_the_element_and_its_events(page: ElementPage, name: str) -> None:
    _, recipe, bridge = html_of_docs()
    recipe = recipe.replace("/static/jquery.js", f"/jquery/{name}.js")
    show(page, recipe + '<p id="status"></p>' + bridge)
    page.wait_for("window.llmstream && $('#status').text() === 'done'")
    assert page.run("return $.fn.jquery").startswith("1.12" if name == "jquery-1" else "3.")
    page.browser.find_element("name", "question").send_keys("Why?" + ENTER)
    page.wait_for("it.status === 'done' && $('#count').text()")
    assert page.text.startswith("You asked: **Why?**")
    assert page.run("return $('#count').text()") == f"{len(page.run('return it.text'))} characters"
    assert page.run("return broken") == (["script-src-attr inline"] if name == "jquery-1" else [])
