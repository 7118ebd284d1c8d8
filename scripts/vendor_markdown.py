"""Copy marked and DOMPurify out of their npm packages into flask_llmstream/static/vendor.

::

    python scripts/vendor_markdown.py            what PACKAGES names
    python scripts/vendor_markdown.py --check    compare only; 1 where a file is not what its package holds

For a newer version change its number in PACKAGES, run this and the tests of the browser. The files are
copied byte by byte, licences included, so that anybody can compare them with the packages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

TARGET = Path(__file__).resolve().parent.parent / "flask_llmstream" / "static" / "vendor"


class Package(NamedTuple):
    """What is taken from one npm package."""

    name: str
    #: The exact version.
    version: str
    #: Paths in the package, and the names that the files have here.
    files: Dict[str, str]


PACKAGES = [
    Package("marked", "18.2.1", {"lib/marked.esm.js": "marked.esm.js", "LICENSE": "marked.LICENSE.txt"}),
    Package(
        "dompurify", "3.4.18",
        {
            "dist/purify.es.mjs": "purify.es.mjs",
            "LICENSE": "purify.LICENSE.txt",
            "LICENSE-MPL": "purify.LICENSE-MPL.txt",
        },
    ),
]


def fetch(packages: List[Package]) -> Dict[str, bytes]:
    """Return the files of *packages* by the names that they have here. npm checks the packages' integrity.

    :raises SystemExit: where npm is missing or refuses, with what it said.
    """
    wanted = [f"{package.name}@{package.version}" for package in packages]
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--json", "--ignore-scripts", *wanted]
        try:
            done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise SystemExit("npm is not installed (Debian: apt-get install npm)") from None
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.decode(errors='replace')}")
        archives = {each["name"]: each["filename"] for each in json.loads(done.stdout.decode())}
        found: Dict[str, bytes] = {}
        for package in packages:
            with tarfile.open(str(Path(folder, archives[package.name]))) as archive:
                for path, name in package.files.items():
                    member = archive.extractfile(f"package/{path}")
                    if member is None:
                        raise SystemExit(f"{package.name}@{package.version} holds no file {path!r}")
                    found[name] = member.read()
        return found


def compare(files: Dict[str, bytes], folder: Path = TARGET) -> List[str]:
    """Return a line for each file of *folder* that is missing, different or not one of *files*."""
    there = {path.name for path in folder.glob("*")}
    found = [f"{name} is in no package" for name in sorted(there - set(files))]
    for name, content in files.items():
        if name not in there:
            found.append(f"{name} is missing")
        elif (folder / name).read_bytes() != content:
            found.append(f"{name} is not what its package holds")
    return found


def main(arguments: Optional[List[str]] = None) -> int:
    """Write the files, or compare them; return the exit status."""
    parser = argparse.ArgumentParser(description="Copy marked and DOMPurify out of their npm packages.")
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    files = fetch(PACKAGES)
    if not check:
        TARGET.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (TARGET / name).write_bytes(content)
    found = compare(files)
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
