"""What ``<llm-stream>`` costs the page: the work of a frame, and how often the document is written to."""

from __future__ import annotations

from typing import Any, Dict, Iterator

import pytest
from element_page import APP, ElementPage, opened

from flask_llmstream.testing import LiveServer, gunicorn_server

pytestmark = [pytest.mark.live, pytest.mark.browser, pytest.mark.timing]

#: A frame at 60 Hz, in milliseconds.
BUDGET = 16.0

#: Measures each frame from its callbacks to behind its layout and painting, and counts what is written in it.
MEASURE = """
const text = it.querySelector(".llm-text");
window.frames = []; window.writes = []; window.updates = []; let written = 0;
new MutationObserver((records) => { written += records.length; })
  .observe(text, { subtree: true, childList: true, characterData: true });
const channel = new MessageChannel();
let began = 0, before = 0;
// What is sent from a frame's callback is received when the frame is done.
channel.port1.onmessage = () => {
  const length = text.textContent.length;
  if (length !== before) { frames.push(performance.now() - began); writes.push(written); }
  before = length; written = 0;
};
const tick = () => {
  began = performance.now(); channel.port2.postMessage(0);
  if (!window.halt) requestAnimationFrame(tick);
};
requestAnimationFrame(tick);
"""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    # Not measured, which would slow the server down.
    unmeasured = {"COVERAGE_PROCESS_START": None, "COVERAGE_PROCESS_CONFIG": None}
    with gunicorn_server(APP, env={"UPSTREAM": "http://127.0.0.1:9", **unmeasured}) as server:
        yield server


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[ElementPage]:
    yield from opened(browser, server.url)


def measure(page: ElementPage, count: int, rate: int, timeout: float) -> Dict[str, float]:
    """Show so many tokens at so many a second; return what their frames took, in milliseconds."""
    page.run(MEASURE)
    page.run(f"it.src = '/many?count={count}&rate={rate}'")
    page.wait_for("it.status === 'done'", timeout=timeout)
    page.frames()
    assert page.run("return it.text.split(' ').length - 1") == count
    seen = page.run(
        "const sorted = frames.slice(1).sort((a, b) => a - b);"
        "const at = part => sorted[Math.floor((sorted.length - 1) * part)];"
        "return { frames: sorted.length, p50: at(.5), p95: at(.95), most: at(1),"
        "  writes: Math.max(...writes.slice(1)),"
        "  blocks: it.querySelectorAll('.llm-block').length, characters: it.text.length }"
    )
    print(f"{count} tokens, {rate} a second: {seen}")
    return dict(seen)


def test_tokens_at_200_a_second_stay_within_a_frame(page: ElementPage) -> None:
    """The second half of a long answer, at its pace: the first half is there at once."""
    page.open("<llm-stream expected-tokens=10000></llm-stream>")
    began = page.run(
        "const word = n => n % 40 === 39 ? 'words \\n' : `tok${n % 10} `;"
        "const text = Array.from({ length: 10000 }, (_, n) => word(n)), took = [];"
        "for (let n = 0; n < text.length; n += 4) { const began = performance.now();"
        "  it.push({ type: 'text', text: text.slice(n, n + 4).join('') }); it.flush();"
        "  it.querySelector('.llm-block:last-child').getBoundingClientRect();"
        "  took.push(performance.now() - began); }"
        "took.sort((a, b) => a - b);"
        "return { p50: took[took.length >> 1], p95: took[Math.floor(took.length * .95)] }"
    )
    print(f"one update of 10,000 tokens, with its layout: {began}")
    assert began["p50"] < 1.0
    seen = measure(page, 800, 200, 20)
    assert seen["p95"] < BUDGET
    # One text node grows in a frame; now and then a block begins.
    assert seen["writes"] <= 4
    burst = measure(page, 10000, 1000000, 30)
    assert burst["blocks"] > 30


@pytest.mark.slow
def test_ten_thousand_tokens_at_200_a_second(page: ElementPage) -> None:
    page.open("<llm-stream></llm-stream>")
    seen = measure(page, 10000, 200, 90)
    assert seen["p95"] < BUDGET and seen["frames"] > 1000
