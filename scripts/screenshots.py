"""Take the pictures of docs/images: the examples and the element, light and dark.

In the Chromium of the tests, with a model whose words stand here. The fonts of the pictures are Debian's
``fonts-inter``. ``--png FOLDER`` writes them as PNG elsewhere, to look at.
"""

from __future__ import annotations

import argparse
import base64
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, Dict

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "browser")]

from chromium import start_chromium  # type: ignore[import-not-found]  # noqa: E402

from flask_llmstream.testing import ScriptedUpstream, gunicorn_server, wait_until  # noqa: E402
from flask_llmstream.testing.upstreams import Exchange, Script, done, hold, tokens  # noqa: E402

TARGET = ROOT / "docs" / "images"
#: Pixels of the page, and of the picture for each of them.
WIDTH, SCALE = 1000, 1.6

STORY = """\
The lighthouse at Farrow Point had been dark for eleven years when its new keeper came with a suitcase and a \
box of bulbs.

“You will want a ladder,” said the harbour master, and lent her his own.

On the third evening she climbed to the lamp, wiped the salt from the glass, and turned the switch. Far \
out, a boat that nobody had expected"""

TICKET = """{"customer": "Fern & Oak", "product": "Export", "severity": "High", "subject": \
"Nightly export has been empty since Monday's update", "summary": "The nightly export writes a file with its \
headings and no rows since the update on Monday. Nothing has changed on the customer's side. Their \
accountants need the data by Friday"""

#: By words of what the model is told. One that ends in a full stop is complete.
BRIEFING = {
    "three sentences": "Sunday is the day on which most people ask whether we are open. A trial of eight"
    " weeks with a small team costs little and answers what a survey cannot. Decide after it, by the takings"
    " of the whole week",
    "speaks for it": "- **Demand:** every fifth call comes on a Sunday.\n- **Rent:** the shop is paid for on"
    " all seven days.\n- **Calm:** Saturdays become less crowded, for everybody.",
    "speaks against it": "- **Staff:** two more shifts have to be found.\n- **Wages:** Sundays cost half as"
    " much again",
    "next three steps": "1. **Shop lead** asks who would like Sundays.\n2. **Payroll** works out the cost of",
}

#: Makes the page of the picture of the element.
STATES = (ROOT / "scripts" / "element_states.js").read_text(encoding="utf-8")


def answer(exchange: Exchange) -> Script:
    """Answer a request as far as the picture shows it, and no further."""
    asked = str(exchange.json["messages"])
    if "support ticket" in asked:
        text = TICKET
    else:
        text = next((text for task, text in BRIEFING.items() if task in asked), STORY)
    pieces = tokens(*text.replace(" ", " \0").split("\0"))
    return [pieces, done()] if text.endswith(".") else [pieces, hold(RELEASED), done()]


#: Set when the pictures are taken.
RELEASED = threading.Event()


class Camera:
    """A page in the browser, and where its pictures go."""

    def __init__(self, driver: Any, folder: Path, form: str) -> None:
        self.driver = driver
        self._folder = folder
        self._form = form

    def open(self, url: str, height: int) -> None:
        size = {"width": WIDTH, "height": height, "deviceScaleFactor": SCALE, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", **size)
        self._command("Emulation.setScrollbarsHidden", hidden=True)
        self._look("light")
        self.driver.get(url)

    def wait_for(self, script: str) -> None:
        """Wait until an expression is true."""
        wait_until(lambda: self.run(f"return {script}"), 20, script)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def take(self, name: str) -> None:
        """Take one picture in light and one in dark."""
        self.run("document.activeElement.blur()")
        for scheme in ("light", "dark"):
            self._look(scheme)
            self.driver.execute_async_script(
                "const done = arguments[0]; document.fonts.ready.then("
                "() => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 300))))"
            )
            quality = {"quality": 88} if self._form == "webp" else {}
            found = self._command("Page.captureScreenshot", format=self._form, **quality)
            data = base64.b64decode(found["data"])
            path = self._folder / f"{name}-{scheme}.{self._form}"
            path.write_bytes(data)
            print(f"{path.name}  {len(data) / 1000:.0f} KB")

    def _look(self, scheme: str) -> None:
        # Without motion the cursor does not blink, and each picture has it.
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
        listed = [{"name": name, "value": value} for name, value in features.items()]
        self._command("Emulation.setEmulatedMedia", features=listed)

    def _command(self, name: str, **arguments: Any) -> Dict[str, Any]:
        result: Dict[str, Any] = self.driver.execute_cdp_cmd(name, arguments)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--png", type=Path, metavar="FOLDER", help="write PNG files there")
    options = parser.parse_args()
    folder = options.png or TARGET
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, ScriptedUpstream(answer) as upstream:
        driver = start_chromium(Path(profile))
        try:
            camera = Camera(driver, folder, "png" if options.png else "webp")
            for picture in (chat, form_copilot, dashboard, element):
                example = "chat" if picture is element else picture.__name__
                app = ROOT / "examples" / example / "app.py"
                with gunicorn_server(
                    app, config=ROOT / "gunicorn.conf.py", env={"LLMSTREAM_UPSTREAM_URL": upstream.url}
                ) as server:
                    picture(camera, server.url)
                    driver.get("about:blank")
        finally:
            RELEASED.set()
            driver.quit()


def chat(camera: Camera, url: str) -> None:
    camera.open(url, 560)
    camera.run("document.querySelector('#intro button').click()")
    camera.wait_for("document.body.innerText.includes('expected')")
    camera.take("chat")


def form_copilot(camera: Camera, url: str) -> None:
    camera.open(url, 640)
    camera.run("document.getElementById('fill').click()")
    camera.wait_for("document.getElementById('summary').value.endsWith('Friday')")
    camera.take("form_copilot")


def dashboard(camera: Camera, url: str) -> None:
    camera.open(url, 640)
    camera.run("document.getElementById('ask').click()")
    for end in ("cost of", "half as much again", "whole week"):
        camera.wait_for(f"document.body.innerText.includes('{end}')")
    camera.wait_for("document.querySelector('[data-status=done]')")
    camera.take("dashboard")


def element(camera: Camera, url: str) -> None:
    camera.open(url, 565)
    camera.run(STATES)
    camera.wait_for("document.getElementById('reconnecting').status === 'reconnecting'")
    camera.wait_for("document.getElementById('scrolled').scrollTop > 0")
    camera.run("goOn()")
    camera.take("element")


if __name__ == "__main__":
    main()
