"""The logs keep their contract on greenlets, too: in an interpreter that gevent has patched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent

PATCHED = """
from gevent import monkey
monkey.patch_all()
import sys, pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["memory.py::TestMemoryEventLog", "sqlite.py::TestSQLiteEventLog"])
def test_contract_is_kept_on_greenlets(which: str, tmp_path: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    tests = [str(HERE / f"test_{which}"), f"--basetemp={tmp_path / 'temp'}"]
    options = ["-q", "-s", "-x", "-p", "no:cacheprovider", "-p", "no:cov"]
    done = subprocess.run(
        [sys.executable, "-c", PATCHED, *options, *tests],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=110,
        env=environment,
        cwd=str(HERE.parent.parent),
    )
    said = done.stdout.decode()
    print(said)
    assert done.returncode == 0, said
    assert " passed" in said
