"""Finds the Python interpreters that this machine has."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator, Optional

__all__ = ["find_interpreter"]


def find_interpreter(version: str) -> Optional[str]:
    """Return the path of a Python *version* ("3.7"), or ``None`` where there is none.

    The running interpreter comes first, then ``python3.7`` on the PATH, then what pyenv manages.
    """
    for candidate in _candidates(version):
        if _version_of(candidate) == version:
            return candidate
    return None


def _candidates(version: str) -> Iterator[str]:
    # The base: a virtual environment made from one inside another keeps the outer one's path.
    yield getattr(sys, "_base_executable", sys.executable)
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield on_path
    for root in _pyenv_roots():
        for home in sorted(root.glob(f"versions/{version}.*"), reverse=True):
            yield str(home / "bin" / f"python{version}")


def _pyenv_roots() -> Iterator[Path]:
    if os.environ.get("PYENV_ROOT"):
        yield Path(os.environ["PYENV_ROOT"])
    pyenv = shutil.which("pyenv")
    if pyenv:
        yield Path(subprocess.run([pyenv, "root"], stdout=subprocess.PIPE, text=True).stdout.strip())
    yield Path.home() / ".pyenv"


def _version_of(candidate: str) -> Optional[str]:
    """Ask it: a name on the PATH may be a stub that only explains how to install Python."""
    ask = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        answer = subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
