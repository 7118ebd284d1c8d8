"""``<llm-stream>`` keeps its end in view, and leaves alone whoever looks elsewhere."""

from __future__ import annotations

from typing import Any, Dict, Iterator

import pytest
from element_page import APP, ARROW_UP, PAGE_UP, ElementPage

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

pytestmark = [pytest.mark.live, pytest.mark.browser]

LINES = "".join(f"line {number}\n" for number in range(100))
MORE = "".join(f"more {number}\n" for number in range(20))

#: Where an element may stand: the style of each part (no stylesheet passes the policy), and what scrolls.
PLACES: Dict[str, Any] = {
    "itself": ("it.style.cssText = 'overflow-y: auto; height: 300px'", "it"),
    "ancestor": (
        "const box = document.querySelector('main');"
        "box.style.cssText = 'overflow-y: scroll; height: 400px; padding: 8px'",
        "document.querySelector('main')",
    ),
    "page": (
        "const below = document.createElement('footer'); below.textContent = 'below';"
        "below.style.height = '900px'; document.body.append(below)", "document.scrollingElement",
    ),
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    with gunicorn_server(APP, env={"UPSTREAM": "http://127.0.0.1:9"}) as server:
        yield server


class Scrolled(ElementPage):
    """A page whose element scrolls in one of the places."""

    scroller = ""

    def place(self, where: str) -> Scrolled:
        style, self.scroller = PLACES[where]
        self.open("<llm-stream></llm-stream>")
        self.run(style)
        return self

    @property
    def top(self) -> float:
        return float(self.run(f"return {self.scroller}.scrollTop"))

    @property
    def below(self) -> float:
        """Pixels of the element that are below what can be seen."""
        return float(self.run(
            f"const box = {self.scroller};"
            "if (box === it) return box.scrollHeight - box.scrollTop - box.clientHeight;"
            "const edge = box === document.scrollingElement ? innerHeight"
            "  : box.getBoundingClientRect().top + box.clientTop + box.clientHeight;"
            "return it.getBoundingClientRect().bottom - edge"
        ))

    def send(self, command: str, **arguments: Any) -> None:
        self.browser.execute_cdp_cmd(command, arguments)

    def middle(self) -> Dict[str, float]:
        return dict(self.run(
            f"const box = {self.scroller}.getBoundingClientRect();"
            "return { x: box.left + 40, y: Math.max(box.top, 0) + 100 }"
        ))

    def wheel(self, pixels: int) -> None:
        self.send("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=pixels, **self.middle())

    def touch(self, pixels: int) -> None:
        at = self.middle()
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[at])
        for step in range(1, 6):
            moved = {"x": at["x"], "y": at["y"] + pixels * step / 5}
            self.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[moved])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def settle(self) -> float:
        """Wait until nothing moves, smooth scrolling included; return the place."""
        seen = [self.top]

        def still() -> bool:
            self.frames()
            self.frames()
            seen.append(self.top)
            return len(seen) > 2 and seen[-1] == seen[-2] == seen[-3]

        wait_until(still, 5, "scrolling to end")
        return self.top


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[Scrolled]:
    page = Scrolled(browser, server.url)
    yield page
    assert page.complaints() == []


@pytest.mark.parametrize("where", PLACES)
def test_end_stays_in_view_until_the_reader_turns_away(
    page: Scrolled, where: str, npm_packages: Any
) -> None:
    page.place(where)
    page.push(LINES)
    assert abs(page.below) <= 1 and page.run("return it.following")
    assert not page.part("jump").is_displayed()
    page.push(MORE)
    assert abs(page.below) <= 1

    # The wheel, while text comes in each frame: a smooth scroll is not taken back.
    page.run("window.pump = setInterval(() => it.push({ type: 'text', text: 'x\\n' }), 5)")
    page.wheel(-300)
    page.settle()
    page.run("clearInterval(window.pump)")
    page.frames()
    place = page.settle()
    assert page.below > 250 and not page.run("return it.following")
    page.push(MORE)
    assert page.top == place
    if where == "itself":
        assert page.violations(npm_packages) == []

    # The button leads back; the keyboard's focus does not get lost with it.
    jump = page.part("jump")
    assert jump.is_displayed() and jump.text == "Jump to the end"
    seen = page.run("const box = it.querySelector('.llm-jump').getBoundingClientRect();"
                    "return document.elementFromPoint(box.x + 9, box.y + 9)?.className")
    assert seen == "llm-jump"
    jump.click()
    page.frames()
    assert abs(page.below) <= 1 and not jump.is_displayed() and page.focused() == "llm-stream"
    page.push(MORE)
    assert abs(page.below) <= 1

    # Coming back by hand is enough, too; the scrollbar moves no more than scrollTop.
    page.run(f"{page.scroller}.scrollTop -= 50")
    page.frames()
    place = page.top
    page.push(MORE)
    assert page.top == place
    page.run(f"{page.scroller}.scrollTop += {page.below - 30}")
    page.frames()
    page.push(MORE)
    assert abs(page.below) <= 1
    page.run("it.push({ type: 'done', reason: 'stop', usage: null })")
    page.frames()
    assert page.below <= 1 and not page.part("jump").is_displayed()


def test_touch_keys_and_a_selection_turn_away_too(page: Scrolled) -> None:
    page.place("page").push(LINES)
    for turn in (
        lambda: page.touch(200),
        lambda: page.browser.find_element("css selector", "body").send_keys(PAGE_UP),
        lambda: page.run("getSelection().selectAllChildren(it.querySelector('.llm-block:last-child'))"),
    ):
        page.run("window.scrollTo(0, 0); it.querySelector('.llm-jump').click()")
        page.frames()
        page.push(MORE)
        assert abs(page.below) <= 1
        turn()
        place = page.settle()
        page.push(MORE)
        page.push(MORE)
        assert page.top == place and not page.run("return it.following")
    assert "more 19" in page.run("return getSelection().toString()")

    # At once, before anything has moved: a scroll of ours would end a smooth one that has just begun.
    page.run("getSelection().removeAllRanges(); it.querySelector('.llm-jump').click()")
    page.frames()
    assert page.run(
        "const wheel = deltaY => it.dispatchEvent(new WheelEvent('wheel', { deltaY, bubbles: true }));"
        "wheel(10); const down = it.following; wheel(-10); return [down, it.following]"
    ) == [True, False]

    # Who zooms with the wheel, or opens a menu that keeps the end of the click, has not turned away.
    page.run("it.querySelector('.llm-jump').click()")
    page.frames()
    page.run("it.dispatchEvent(new WheelEvent('wheel', { deltaY: -10, ctrlKey: true, bubbles: true }))")
    at = page.middle()
    page.send("Input.dispatchMouseEvent", type="mousePressed", button="right", clickCount=1, **at)
    page.push(MORE)
    assert abs(page.below) <= 1
    page.send("Input.dispatchMouseEvent", type="mouseReleased", button="right", clickCount=1, **at)

    # A finger that rests, or a mouse that drags, is not scrolled away under.
    page.run("getSelection().removeAllRanges(); it.querySelector('.llm-jump').click()")
    page.frames()
    at = page.middle()
    page.send("Input.dispatchMouseEvent", type="mousePressed", button="left", clickCount=1, **at)
    place = page.top
    page.push(MORE)
    assert page.top == place
    page.send("Input.dispatchMouseEvent", type="mouseReleased", button="left", clickCount=1, **at)
    page.push(MORE)
    assert abs(page.below) <= 1

    # What was typed elsewhere is not about the text.
    page.run("const field = document.createElement('textarea'); document.querySelector('h1').append(field);"
             "field.style.position = 'fixed'; field.focus({ preventScroll: true })")
    page.browser.switch_to.active_element.send_keys(ARROW_UP)
    page.push(MORE)
    assert abs(page.below) <= 1
    # The keyboard of a telephone takes half of the window.
    page.send("Emulation.setDeviceMetricsOverride", width=500, height=300, deviceScaleFactor=1, mobile=False)
    page.wait_for("innerHeight === 300")
    page.frames()
    assert abs(page.below) <= 1
    page.send("Emulation.clearDeviceMetricsOverride")


def test_reader_of_something_else_is_not_taken_along(page: Scrolled) -> None:
    page.place("page")
    page.run("document.querySelector('h1').style.height = '3000px'")
    page.push(LINES)
    assert page.top == 0 and not page.run("return it.following")
    page.push(MORE)
    assert page.top == 0

    # A page that does not scroll, whose body does.
    page.run(
        "document.querySelector('h1').style.height = ''; document.querySelector('footer').remove();"
        "document.documentElement.style.cssText = 'height: 100%; overflow: hidden'; it.reset();"
        "const smooth = 'overflow: auto; scroll-behavior: smooth';"
        "document.body.style.cssText = 'height: 100%; margin: 0;' + smooth"
    )
    page.push(LINES)
    below = "return it.getBoundingClientRect().bottom - document.body.offsetHeight"
    assert page.run("return document.body.scrollTop") > 1000 and abs(page.run(below)) <= 1
    page.run("document.body.style.height = '50%'")
    page.frames()
    assert abs(page.run(below)) <= 1
