"""Runs the tests against the installed wheel, on stacks from the oldest to the newest.

An environment is a file in ``tests/matrix``: its name is the file's, its first line says which
Python it wants, the rest are exact pins. ``wheel`` is one more: the running Python, nothing pinned,
the extra ``test``.

For each: a virtual environment in ``.matrix`` (kept, and made again when the pins change), the wheel
of this checkout, and a temporary folder that holds the tests but not the package, so that only
what was installed can be imported.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence

from interpreters import find_interpreter

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "tests" / "matrix"
VENVS = ROOT / ".matrix"

#: What the tests may use besides themselves; setup.cfg is there for the settings of pytest.
COMPANIONS = ("tests", "examples", "gunicorn.conf.py", "setup.cfg")

#: What to run, as arguments to pytest. Old stacks lack the tools of the rest (browser, model, SDKs).
SELECTIONS = {
    "core": ["tests", "--ignore=tests/live", "-m", "not (checkout or live or browser or model or slow)"],
    "quick": ["tests", "-m", "not (checkout or browser or model or slow)"],
    "all": ["tests", "-m", "not checkout"],
}


class Environment(NamedTuple):
    """One stack to test on."""

    name: str
    version: str
    requirements: List[str]
    #: What decides whether an existing virtual environment is still the right one.
    key: str
    extras: str = ""


def load(name: str) -> Environment:
    """Read the environment *name* from its file.

    :raises SystemExit: there is none of that name.
    """
    if name == "wheel":
        version = "%d.%d" % sys.version_info[:2]
        return Environment(name, version, [], (ROOT / "setup.cfg").read_text(), "[test]")
    path = PINS / f"{name}.txt"
    if not path.exists():
        sys.exit(f"error: no environment {name!r}; there are: wheel {' '.join(names())}")
    text = path.read_text()
    version = text.splitlines()[0].rpartition("python")[2].strip()
    return Environment(name, version, ["-r", str(path)], text)


def names() -> List[str]:
    """Return the names of all pinned environments, oldest Python first."""
    return sorted((path.stem for path in PINS.glob("*.txt")), key=lambda name: int(load(name).version[2:]))


def build_wheel() -> Path:
    """Build the wheel of this checkout and return its path.

    From a copy: setuptools leaves a ``build`` folder in the source, and would put what an earlier
    build left there into the next wheel.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        shutil.copytree(ROOT, source, ignore=_not_source)
        target = VENVS / "dist"
        shutil.rmtree(target, ignore_errors=True)
        run([sys.executable, "-m", "build", "--wheel", "--outdir", target, source], quiet=True)
    (wheel,) = target.glob("*.whl")
    return wheel


def prepare(environment: Environment, interpreter: str, wheel: Path) -> Path:
    """Return the Python of a virtual environment that has the pins and *wheel*."""
    home = VENVS / environment.name
    python = home / "bin" / "python"
    stamp = home / "stamp"
    key = hashlib.sha256((interpreter + environment.key).encode()).hexdigest()
    install = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet", "--prefer-binary"]
    if not stamp.exists() or stamp.read_text() != key:
        say(f"{environment.name}: making a virtual environment with {interpreter}")
        shutil.rmtree(home, ignore_errors=True)
        run([interpreter, "-m", "venv", home])
        run([*install, *environment.requirements, f"{wheel}{environment.extras}"], quiet=True)
        stamp.write_text(key)
    run([*install, "--no-deps", "--force-reinstall", wheel], quiet=True)
    run([python, "-m", "pip", "--disable-pip-version-check", "check"], quiet=True)
    return python


def run_tests(environment: Environment, python: Path, arguments: Sequence[str]) -> bool:
    """Run pytest in a folder without the package; return whether it passed."""
    with tempfile.TemporaryDirectory(prefix=f"{environment.name}-") as scratch:
        for companion in COMPANIONS:
            source = ROOT / companion
            if source.is_dir():
                shutil.copytree(source, Path(scratch) / companion, ignore=_not_source)
            elif source.exists():
                shutil.copy(source, scratch)
        # What the tests start by name (gunicorn, flask-llmstream) must come from there too.
        path = os.pathsep.join((str(python.parent), os.environ.get("PATH", os.defpath)))
        variables = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        variables.pop("PYTHONPATH", None)
        # The weights are no part of what is tested, and large: the model runs where they are.
        variables.setdefault("LLMSTREAM_LOCAL_PYTHON", sys.executable)
        where = [str(python), "-c", "import flask_llmstream; print(flask_llmstream.__file__)"]
        found = subprocess.run(where, cwd=scratch, env=variables, stdout=subprocess.PIPE, text=True)
        if found.returncode or not found.stdout.startswith(str(VENVS)):
            say(f"{environment.name}: the installed wheel was not imported but {found.stdout.strip()!r}")
            return False
        say(f"{environment.name}: pytest {' '.join(arguments)}")
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        return subprocess.run(command, cwd=scratch, env=variables).returncode == 0


def _not_source(folder: str, entries: List[str]) -> List[str]:
    made = {".git", ".venv", ".matrix", "build", "dist", "__pycache__", ".mypy_cache", ".pytest_cache"}
    return [entry for entry in entries if entry in made or entry.endswith((".pyc", ".egg-info"))]


def run(command: Sequence[object], quiet: bool = False) -> None:
    """Run *command*; end this program where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE if quiet else None,
        stderr=subprocess.STDOUT if quiet else None,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout or ''}error: failed: {' '.join(str(part) for part in command)}")


def say(message: str) -> None:
    """Show progress."""
    print(f"==> {message}", flush=True)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the environments that were named, and say how each went."""
    parser = argparse.ArgumentParser(description="Run the tests on pinned stacks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments; default: all pinned ones")
    parser.add_argument("--list", action="store_true", help="list the environments and their Pythons")
    parser.add_argument("--select", choices=sorted(SELECTIONS), help="default: core; wheel: quick")
    parser.add_argument("--strict", action="store_true", help="a missing Python is a failure")
    own, extra = _split(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(own)
    environments = [load(name) for name in options.names or names()]
    if options.list:
        for environment in environments:
            found = find_interpreter(environment.version) or "not installed"
            print(f"{environment.name:16} Python {environment.version:5} {found}")
        return 0

    results = {}
    wheel: Optional[Path] = None
    for environment in environments:
        interpreter = find_interpreter(environment.version)
        if interpreter is None:
            results[environment.name] = f"NOT RUN, Python {environment.version} is not installed"
            continue
        started = time.monotonic()
        wheel = wheel or build_wheel()
        python = prepare(environment, interpreter, wheel)
        select = options.select or ("quick" if environment.name == "wheel" else "core")
        outcome = "passed" if run_tests(environment, python, [*SELECTIONS[select], *extra]) else "FAILED"
        results[environment.name] = f"{outcome} in {time.monotonic() - started:.0f} s"
    for name, result in results.items():
        say(f"{name}: {result}")
    bad = ("FAILED", "NOT RUN") if options.strict else ("FAILED",)
    return 1 if any(result.startswith(bad) for result in results.values()) else 0


def _split(arguments: Sequence[str]) -> "tuple[List[str], List[str]]":
    """Cut *arguments* at ``--``: ours before it, pytest's after it."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:cut]), list(arguments[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main())
