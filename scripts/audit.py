"""Look for known vulnerabilities in what the package depends on: in .venv, and in each pinned stack.

    python scripts/audit.py [STACK …]

Needs pip-audit beside this Python or on the PATH, and its service: PyPI, or OSV (PIP_AUDIT_SERVICE=osv).
A package that it does not know or cannot be asked about counts as a failure: pip-audit by itself says
"No known vulnerabilities found" of those, too.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parent.parent
#: Each pinned stack in a file; the oldest is the one of the lower bounds.
STACKS = ROOT / "tests" / "matrix"
#: What is installed for the tests alone reaches no user.
BOUGHT = (
    "flask", "requests", "sseclient-py", "gunicorn", "gevent", "redis", "prometheus-client", "packaging",
)


def pip_audit() -> List[str]:
    """Return the command.

    :raises SystemExit: it is not installed.
    """
    if importlib.util.find_spec("pip_audit") is not None:
        return [sys.executable, "-m", "pip_audit"]
    found = shutil.which("pip-audit")
    if found is None:
        raise SystemExit("pip-audit is not installed; pip install pip-audit (Python 3.10 or newer)")
    return [found]


def newest() -> List[str]:
    """Return the pins of what is installed beside this Python and reaches users."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "list", "--format", "freeze", "--exclude-editable"],
        check=True, stdout=subprocess.PIPE,
    ).stdout.decode()
    wanted, pins = set(BOUGHT), {line.partition("==")[0].lower(): line for line in listed.split()}
    for name in BOUGHT:
        shown = subprocess.run(
            [sys.executable, "-m", "pip", "show", name], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ).stdout.decode()
        for line in shown.splitlines():
            if line.startswith("Requires:"):
                wanted.update(each.strip().lower() for each in line[9:].split(",") if each.strip())
    return [pin for name, pin in sorted(pins.items()) if name in wanted]


def audit(name: str, pins: List[str]) -> bool:
    """Ask about *pins*; return whether all are known and none is known to be vulnerable."""
    print(f"== {name}: {len(pins)} packages", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text("\n".join(pins) + "\n", encoding="utf-8")
        command = [*pip_audit(), "--strict", "--disable-pip", "--no-deps", "-r", str(requirements)]
        service = os.environ.get("PIP_AUDIT_SERVICE", "pypi")
        return subprocess.run([*command, "-s", service]).returncode == 0


def main() -> int:
    """Run the audits; return the exit status."""
    chosen = sys.argv[1:]
    results = {}
    if not chosen or "newest" in chosen:
        results["newest"] = audit("newest", newest())
    for path in sorted(STACKS.glob("*.txt")):
        if not chosen or path.stem in chosen:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
            results[path.stem] = audit(path.stem, [line for line in lines if "==" in line and line[0] != "#"])
    for name, good in results.items():
        print(f"{name}: {'nothing known' if good else 'see above'}")
    return 0 if results and all(results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
