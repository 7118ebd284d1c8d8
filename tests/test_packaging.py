"""What gets into the sdist and the wheel."""

from __future__ import annotations

import configparser
import email
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path
from typing import Dict, List, Set

import pytest

import flask_llmstream

pytestmark = [pytest.mark.checkout, pytest.mark.slow]

ROOT = Path(__file__).resolve().parent.parent
MADE = {".git", ".venv", ".matrix", ".coverage", ".hypothesis", ".mypy_cache", ".pytest_cache", "__pycache__"}
MADE |= {".import_linter_cache", "build", "dist", "htmlcov"}


def not_source(folder: str, entries: List[str]) -> List[str]:
    """Tell :func:`shutil.copytree` what is not part of the source."""
    ends = (".pyc", ".egg-info", ".log", ".db", ".sqlite3")
    return [name for name in entries if name in MADE or name.endswith(ends) or name.startswith(".coverage.")]


def files_under(folder: Path) -> Set[str]:
    """Return the relative paths of all files under *folder*."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Built:
    """An sdist, and the wheel that was built from it."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source = files_under(source)
        (sdist,) = folder.glob("*.tar.gz")
        (wheel,) = folder.glob("*.whl")
        self.wheel_path = wheel
        with tarfile.open(str(sdist)) as tar:
            self.sdist = {m.name.split("/", 1)[1] for m in tar.getmembers() if m.isfile()}
        with zipfile.ZipFile(str(wheel)) as archive:
            self.wheel = set(archive.namelist())
            (info,) = {name.split("/")[0] for name in self.wheel if ".dist-info/" in name}
            self.metadata: Message = email.message_from_bytes(archive.read(f"{info}/METADATA"))
            self.entry_points = archive.read(f"{info}/entry_points.txt").decode()
        self.info = info


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build from a copy, so that nothing that an earlier build left behind gets in."""
    scratch = tmp_path_factory.mktemp("packaging")
    source = scratch / "source"
    shutil.copytree(str(ROOT), str(source), ignore=not_source)
    before = Path(str(source) + ".before")
    shutil.copytree(str(source), str(before))
    # Without isolation: the test needs no network. .ci/run builds with it.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(scratch / "dist")]
    environ = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    done = subprocess.run(
        command,
        cwd=str(source),
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout.decode()
    return Built(before, scratch / "dist")


def test_the_sdist_holds_the_whole_source(built: Built) -> None:
    generated = {"PKG-INFO"} | {name for name in built.sdist if ".egg-info/" in name}
    assert built.sdist - generated == built.source


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    package = {name for name in built.source if name.startswith("flask_llmstream/")}
    assert {name for name in built.wheel if not name.startswith(built.info)} == package


def test_the_wheel_marks_the_package_as_typed(built: Built) -> None:
    assert "flask_llmstream/py.typed" in built.wheel


def test_the_wheel_carries_the_licence(built: Built) -> None:
    assert [name for name in built.wheel if name.startswith(built.info) and name.endswith("LICENSE")]


def test_the_wheel_is_for_every_platform(built: Built) -> None:
    assert built.wheel_path.name == f"flask_llmstream-{flask_llmstream.__version__}-py3-none-any.whl"


def test_the_metadata_says_what_the_code_is(built: Built) -> None:
    assert built.metadata["Name"] in ("flask-llmstream", "flask_llmstream")
    assert built.metadata["Version"] == flask_llmstream.__version__
    assert built.metadata["Requires-Python"] == ">=3.7"
    assert built.metadata["License"] == "MIT"
    assert built.metadata["Description-Content-Type"] == "text/markdown"
    assert built.metadata.get_payload() or built.metadata["Description"]


def test_the_command_line_is_installed(built: Built) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(built.entry_points)
    assert dict(parser["console_scripts"]) == {"flask-llmstream": "flask_llmstream.cli:main"}


def requirements(built: Built) -> Dict[str, Set[str]]:
    """Return the required packages by extra, "" for none."""
    found: Dict[str, Set[str]] = {"": set()}
    for line in built.metadata.get_all("Requires-Dist") or []:
        requirement, _, marker = line.partition(";")
        extra = marker.rpartition("extra ==")[2].strip(" \"'") if "extra ==" in marker else ""
        found.setdefault(extra, set()).add(requirement.replace("(", "").replace(")", "").replace(" ", ""))
    return found


def test_only_three_packages_are_required(built: Built) -> None:
    assert requirements(built)[""] == {"Flask>=1.0.4", "requests>=2.21", "sseclient-py>=1.7"}


def test_the_extras_are_the_documented_ones(built: Built) -> None:
    extras = {
        "gunicorn", "redis", "metrics", "otel", "local", "schema", "doctor", "test", "bench", "fuzz", "dev",
    }
    assert set(built.metadata.get_all("Provides-Extra") or []) == extras


def test_the_test_extra_repeats_what_the_tests_run_on(built: Built) -> None:
    found = requirements(built)
    assert found["gunicorn"] | found["redis"] | found["local"] < found["test"]


def test_nothing_has_an_upper_bound(built: Built) -> None:
    for extra, names in requirements(built).items():
        assert not [name for name in names if "<" in name or "==" in name], extra


def test_every_requirement_of_the_matrix_is_exact() -> None:
    """Only setuptools may float: which one a Python brings along differs."""
    paths = sorted((ROOT / "tests" / "matrix").glob("*.txt"))
    assert len(paths) == 8
    for path in paths:
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        assert first.startswith("# python3."), path
        pins = [line for line in lines if line and not line.startswith("#")]
        assert [line for line in pins if "==" not in line] in ([], ["setuptools<82"]), path
