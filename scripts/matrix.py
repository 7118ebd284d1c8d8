"""Runs the tests against the installed wheel, on stacks from the oldest to the newest.

An environment is a file in ``tests/matrix``: its name is the file's, its first line says which
Python it wants, the rest are exact pins. ``wheel`` is one more: the running Python, nothing pinned,
the extra ``test``.

For each: a virtual environment in ``.matrix`` (kept, and made again when the pins change), the wheel
of this checkout, and a temporary folder that holds the tests but not the package, so that only
what was installed can be imported. At the end a table says how each went, and which could not run.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple
from xml.etree import ElementTree

from interpreters import find_interpreter

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "tests" / "matrix"
VENVS = ROOT / ".matrix"

#: What the tests may use besides themselves; setup.cfg is there for the settings of pytest.
COMPANIONS = ("tests", "examples", "gunicorn.conf.py", "setup.cfg")

#: Markers of tests that need what a pinned stack lacks: browser, model, other servers, the source, root.
ELSEWHERE = "checkout or servers or faults or browser or model or slow"

#: What to run, as arguments to pytest.
SELECTIONS = {
    # Everything but live servers.
    "core": ["tests", "--ignore=tests/live", "-m", f"not ({ELSEWHERE} or live)"],
    # The promises, under this stack's gunicorn. The Redis test wants clients of several versions.
    "live": [
        "tests/live", "tests/neighbours", "--ignore=tests/live/test_redis_pool.py",
        "-m", f"not ({ELSEWHERE})",
    ],
    # The least of them: who leaves, who ends, and what arrives.
    "vital": [
        f"tests/live/test_{name}.py"
        for name in ("leaving", "endings", "integrity", "retrofit", "old_scripts")
    ]
    + ["-m", f"not ({ELSEWHERE})"],
    "quick": ["tests", "-m", f"not ({ELSEWHERE})"],
    "all": ["tests", "-m", "not (checkout or faults)"],
}
#: What is run where nothing else is said.
USUAL = ["core", "live"]
USUAL_OF_WHEEL = ["quick"]


class Environment(NamedTuple):
    """One stack to test on."""

    name: str
    version: str
    requirements: List[str]
    #: What decides whether an existing virtual environment is still the right one.
    key: str
    extras: str = ""


class Result(NamedTuple):
    """How one selection went on one stack."""

    environment: str
    selection: str
    #: ``passed``, ``FAILED`` or ``NOT RUN``.
    outcome: str
    #: What pytest counted, or why nothing was run.
    details: str
    seconds: float = 0.0

    def __str__(self) -> str:
        took = f"{self.seconds:5.0f} s" if self.seconds else ""
        return f"{self.environment:16} {self.selection:6} {self.outcome:8}{took:9} {self.details}".rstrip()


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


def run_tests(
    environment: Environment, python: Path, selection: str, more: Sequence[str], at_once: bool
) -> Result:
    """Run a selection in a folder without the package.

    :param more: further arguments to pytest.
    :param at_once: show its output as it comes, not in one piece at the end.
    """
    started = time.monotonic()
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
            wrong = f"not the installed wheel was imported but {found.stdout.strip()!r}"
            return Result(environment.name, selection, "FAILED", wrong)
        report = Path(scratch) / "report.xml"
        chosen = list(SELECTIONS[selection])
        if any((ROOT / each.partition("::")[0]).exists() for each in more):
            chosen = [each for each in chosen if each.partition("/")[0] != "tests"]  # not whole folders
        arguments = [*chosen, *more, f"--junitxml={report}"]
        title = f"{environment.name}: pytest {' '.join(arguments)}"
        command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        if at_once:
            say(title)
            status = subprocess.run(command, cwd=scratch, env=variables).returncode
        else:
            done = subprocess.run(
                command, cwd=scratch, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
            say(f"{title}\n{done.stdout.decode(errors='replace')}")
            status = done.returncode
        outcome = "passed" if status == 0 else "no tests" if status == 5 and more else "FAILED"
        return Result(environment.name, selection, outcome, _counts(report), time.monotonic() - started)


def _counts(report: Path) -> str:
    """Return how many tests there were, failed and were skipped, by pytest's own *report*."""
    if not report.exists():
        return "pytest did not get that far"
    root = ElementTree.parse(str(report)).getroot()
    sums = {
        what: sum(int(suite.get(what, "0")) for suite in root.iter("testsuite"))
        for what in ("tests", "failures", "errors", "skipped")
    }
    return ", ".join(f"{number} {what}" for what, number in sums.items() if number or what == "tests")


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
    own, extra = _split(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(own)
    environments = [load(name) for name in options.names or names()]
    if options.list:
        for environment in environments:
            path = find_interpreter(environment.version) or "not installed"
            print(f"{environment.name:16} Python {environment.version:5} {path}")
        return 0

    found = {each.name: find_interpreter(each.version) for each in environments}
    wheel = build_wheel() if any(found.values()) else None

    def prepare_one(environment: Environment) -> Optional[Path]:
        interpreter = found[environment.name]
        return None if interpreter is None or wheel is None else prepare(environment, interpreter, wheel)

    def run_one(what: Tuple[Environment, Optional[Path], str]) -> Result:
        environment, python, selection = what
        if python is None:
            missing = f"Python {environment.version} is not installed"
            return Result(environment.name, selection, "NOT RUN", missing)
        return run_tests(environment, python, selection, extra, options.jobs == 1)

    with ThreadPoolExecutor(options.jobs) as pool:
        asked = [
            (environment, python, selection)
            for environment, python in zip(environments, pool.map(prepare_one, environments))
            for selection in options.select or (USUAL_OF_WHEEL if environment.name == "wheel" else USUAL)
        ]
        results = list(pool.map(run_one, asked))
    say("results")
    print(*results, sep="\n", flush=True)
    for other in map(load, names()):
        if other.name not in options.names and options.names and not find_interpreter(other.version):
            print(f"{other.name:16} could not run either: Python {other.version} is not installed")
    bad = ("FAILED", "NOT RUN") if options.strict else ("FAILED",)
    return 1 if any(result.outcome in bad for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run the tests on pinned stacks.", epilog="What follows -- is for pytest."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="environments; default: all pinned ones")
    parser.add_argument("--list", action="store_true", help="list the environments and their Pythons")
    parser.add_argument(
        "--select",
        choices=sorted(SELECTIONS),
        action="append",
        help=f"what to run; may be given more than once; default: {' and '.join(USUAL)},"
        f" of wheel: {' and '.join(USUAL_OF_WHEEL)}",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N",
        help="selections that run at the same time: the live tests mostly wait; default: 1",
    )
    parser.add_argument("--strict", action="store_true", help="a missing Python is a failure")
    return parser


def _split(arguments: Sequence[str]) -> "tuple[List[str], List[str]]":
    """Cut *arguments* at ``--``: ours before it, pytest's after it."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:cut]), list(arguments[cut + 1 :])


if __name__ == "__main__":
    sys.exit(main())
