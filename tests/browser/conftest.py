"""A headless Chromium, driven by its own driver."""

from __future__ import annotations

import shutil
from typing import Any, Iterator, List

import pytest

#: As root, without a screen, and without asking the Internet for anything.
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--window-size=1000,760",
]


def find(names: List[str], package: str) -> str:
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    pytest.fail(f"{names[0]} is not installed (Debian: apt-get install {package})", pytrace=False)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: Any) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = find(["chromium", "chromium-browser"], "chromium")
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(find(["chromedriver"], "chromium-driver"))
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver: Any) -> Iterator[Any]:
    """The browser, on an empty page and with an empty console."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.get_log("browser")
    yield driver
    driver.get("about:blank")
