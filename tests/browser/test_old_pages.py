"""What a page of the time before fetch does: XMLHttpRequest, whose responseText grows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import django
import pytest

from flask_llmstream.testing import gunicorn_server, wait_until

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
JQUERY = Path(django.__file__).parent / "contrib/admin/static/admin/js/vendor/jquery/jquery.js"
APPS = Path(__file__).resolve().parent.parent / "live" / "apps"
pytestmark = [pytest.mark.live, pytest.mark.browser]

#: For each URL: what responseText was at each progress, and how it ended. No syntax newer than 2009's.
PAGE = """
window.seen = [];
function follow(url) {
  var xhr = new XMLHttpRequest(), found = {pieces: [], end: ''}, at = 0;
  seen.push(found);
  xhr.open('GET', url);
  function take() {
    if (xhr.responseText.length > at) {
      found.pieces.push(xhr.responseText.substring(at));
      at = xhr.responseText.length;
    }
  }
  xhr.onprogress = take;
  xhr.onload = function () { take(); found.end = 'load'; };
  xhr.onerror = function () { found.end = 'error'; };
  xhr.send();
}
for (var i = 0; i < arguments.length; i++) { follow(arguments[i]); }
"""
#: As docs/old-clients.md shows it, and what it takes for granted; every text that was shown is noted.
RECIPE = """
document.body.innerHTML = '<input id="question"><pre id="answer"></pre>';
document.getElementById('question').value = arguments[0];
window.shown = [];
new MutationObserver(function () { shown.push($('#answer').text()); }).observe(
  document.getElementById('answer'), {childList: true, characterData: true, subtree: true});
"""
WORDS = ["one ", "tw\u00f6 ", "three"]


def see_each(browser: Any, folder: Path, has: str) -> None:
    """Let the server say each word when the one before was seen: *has* is a function in the page."""
    for number, word in enumerate(WORDS):
        wait_until(
            lambda: browser.execute_script(f"return ({has})(arguments[0])", word), 15.0,
            lambda: f"{word!r}: {browser.execute_script('return window.shown || seen')}",
        )
        (folder / str(number)).touch()


def run_recipe(browser: Any, question: str, folder: Path) -> Any:
    """Run the page of the docs with the jQuery that Django brings; return all that it has shown."""
    for file in folder.iterdir():
        file.unlink()
    browser.execute_script(RECIPE, question)
    page = (DOCS / "old-clients.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"<script>\n(.*?)</script>", page, re.S)
    jquery = JQUERY.read_text(encoding="utf-8") + "\nwindow.jQuery = window.$ = jQuery;\n"
    browser.execute_script(jquery + script)
    see_each(browser, folder, "function (word) { return $('#answer').text().indexOf(word) > 0; }")

    def over() -> bool:
        return bool(browser.execute_script("return $.active === 0 && shown.length > 0"))

    wait_until(over, 15.0, lambda: str(browser.execute_script("return shown")))
    return browser.execute_script("return shown")


def test_response_text_grows_with_each_word(browser: Any, tmp_path: Path) -> None:
    with gunicorn_server(APPS / "old_clients.py", env={"SEEN": str(tmp_path)}) as server:
        browser.get(server.url + "/page")
        urls = ["/slow?format=text", "/slow?format=sse&padding=2048", "/slow?format=ndjson"]
        browser.execute_script(PAGE, *urls)
        see_each(browser, tmp_path, (
            "function (word) { return seen.every(function (each) {"
            " return each.pieces.join('').indexOf(word) >= 0; }); }"
        ))

        def ended() -> bool:
            return bool(browser.execute_script("return seen.every(function (each) { return each.end; })"))

        wait_until(ended, 15.0, lambda: str(browser.execute_script("return seen")))
        text, events, lines = browser.execute_script("return seen")
        shown = [run_recipe(browser, question, tmp_path) for question in ("good? ", "fail? ")]
        browser.get("about:blank")
    whole_text = "".join(WORDS)
    assert "good? one " in shown[0] and shown[0][-1] == "good? " + whole_text
    assert shown[1][-1] == "fail? " + whole_text + " [the answer was cut off]"
    assert [each["end"] for each in (text, events, lines)] == ["load"] * 3
    # Without X-Content-Type-Options: nosniff all of it would be the first piece.
    assert text["pieces"] == WORDS
    whole = "".join(events["pieces"])
    comment, first, rest = whole.partition('data: {"text":"one "}\n\n')
    assert len(comment) >= 2048 and first and comment.startswith(": open\n:  ")
    for answer in (events, lines):
        # One piece for each word; the end may come with the last or behind it.
        pieces = [piece for piece in answer["pieces"] if any(word in piece for word in WORDS)]
        assert len(pieces) == 3, answer["pieces"]
        assert all(f'"text":"{word}"' in piece for word, piece in zip(WORDS, pieces))
