"""A headless Chromium, driven by its own driver."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, List

#: As root, without a screen, and without asking the Internet for anything.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1000,760",
]


def find(names: List[str], package: str) -> str:
    """Return the path of the first of these programs that there is; *package* is Debian's."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise LookupError(f"{names[0]} is not installed (Debian: apt-get install {package})")


def start_chromium(profile: Path) -> Any:
    """Return a selenium driver; its ``quit()`` ends the browser.

    :param profile: an empty folder.
    """
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = find(["chromium", "chromium-browser"], "chromium")
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(find(["chromedriver"], "chromium-driver"))
    return webdriver.Chrome(options=options, service=service)
