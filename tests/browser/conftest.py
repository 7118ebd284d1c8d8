"""A headless Chromium, driven by its own driver; node and its packages."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from chromium import find, start_chromium

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def installed(names: List[str], package: str) -> str:
    try:
        return find(names, package)
    except LookupError as exc:
        pytest.fail(str(exc), pytrace=False)


@pytest.fixture(scope="session")
def driver(tmp_path_factory: Any) -> Iterator[Any]:
    try:
        driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    except LookupError as exc:
        pytest.fail(str(exc), pytrace=False)
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver: Any) -> Iterator[Any]:
    """The browser, on an empty page and with an empty console."""
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [], "media": ""})
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    driver.get_log("browser")
    yield driver
    driver.get("about:blank")


def _installed_packages() -> Path:
    """Install the packages of package-lock.json, once for all who ask; return their folder."""
    folder = ROOT / "build" / "npm"
    folder.mkdir(parents=True, exist_ok=True)
    lock = (HERE / "package-lock.json").read_bytes()
    stamp = folder / "installed"
    with open(folder / "lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not (stamp.exists() and stamp.read_bytes() == lock):
            npm = installed(["npm"], "npm")
            for name in ("package.json", "package-lock.json"):
                shutil.copyfile(str(HERE / name), str(folder / name))
            # react-dom 18 stands beside react 19 under another name, which npm takes for a conflict.
            command = [npm, "ci", "--legacy-peer-deps", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(
                command, cwd=str(folder), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=110
            )
            if done.returncode:
                pytest.fail(f"npm ci: {done.stdout.decode(errors='replace')}", pytrace=False)
            stamp.write_bytes(lock)
    return folder / "node_modules"


@pytest.fixture(scope="session")
def npm_packages() -> Path:
    """The folder node_modules with what tests/browser/package.json names; installed where it is not."""
    return _installed_packages()


@pytest.fixture(scope="session")
def node() -> str:
    return installed(["node", "nodejs"], "nodejs")
