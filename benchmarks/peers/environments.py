"""Where peers live: a virtual environment for each requirements file, kept until the file changes."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Dict

__all__ = ["ROOT", "Missing", "environment", "versions_in"]

ROOT = Path(__file__).resolve().parent.parent.parent
_REQUIREMENTS = Path(__file__).resolve().parent / "requirements"


class Missing(Exception):
    """A peer cannot run here; says why."""


def environment(name: str) -> Path:
    """Return the folder of programs of the environment called *name*; make it where it is not up to date.

    :raises Missing: if something in it cannot be installed.
    """
    requirements = _REQUIREMENTS / f"{name}.txt"
    folder = ROOT / "build" / "bench" / name
    stamp, log = folder / "stamp", folder.parent / f"{name}.log"
    # Scripts in it name their interpreter by its full path, so a moved checkout needs new ones.
    state = hashlib.sha256(
        f"{folder} {platform.python_version()}\n".encode() + requirements.read_bytes()
    ).hexdigest()
    if stamp.exists() and stamp.read_text() == state:
        return folder / "bin"
    print(f"... installing {name} into build/bench", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # The pip of this environment installs into that one: to make another pip takes longer than all else.
    pip = [
        sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"),
        "--disable-pip-version-check",
    ]
    make = [sys.executable, "-m", "venv", "--without-pip", "--clear", str(folder)]
    # All is pinned and was resolved once, so that pip need not do it again.
    install = [*pip, "install", "--no-deps", "--prefer-binary", "-r", str(requirements)]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("w") as output:
        for command in (make, install, [*pip, "check"]):
            # Somewhere else: this checkout is no part of it.
            done = subprocess.run(
                command, cwd=folder.parent, env=surroundings, stdout=output, stderr=subprocess.STDOUT
            )
            if done.returncode:
                raise Missing(f"not installed: {_reason(log)}")
    stamp.write_text(state)
    return folder / "bin"


def _reason(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")] or lines[-1:] or ["no output"]
    return errors[0][:200].replace(str(ROOT) + os.sep, "")


def versions_in(name: str) -> Dict[str, str]:
    """Return the versions that the requirements called *name* pin, by the names of packages in lower case."""
    lines = (_REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if "==" in line)
    return {package.split("[")[0].lower(): version for package, version in pins}
