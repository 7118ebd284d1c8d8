"""Looks for bytes that break a decoder, with libFuzzer: ``python tests/fuzz/run.py --help``.

What it finds is written to the folder ``fuzz-findings``, and run again by giving that file's name.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, Optional

sys.path[:0] = [str(Path(__file__).resolve().parent)]

#: MiB of memory, KiB of input, seconds for one input.
_LIMITS = ("-rss_limit_mb=768", "-max_len=8192", "-timeout=10", "-print_final_stats=1", "-verbosity=0")


def _fuzz(name: str, arguments: List[str]) -> None:
    """Fuzz one target in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["flask_llmstream"]):
        import targets
    atheris.Setup([sys.argv[0], *arguments], targets.TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Fuzz each target in a process of its own; return 1 where one has failed."""
    import targets

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="target", help=f"of: {', '.join(targets.TARGETS)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (default: 60)")
    parser.add_argument("--input", metavar="FILE", help="only run the one target on this file")
    options = parser.parse_args()
    unknown = set(options.targets) - set(targets.TARGETS)
    if unknown:
        parser.error(f"there is no target {sorted(unknown)[0]!r}; there are: {', '.join(targets.TARGETS)}")
    failed: List[str] = []
    for name in options.targets or targets.TARGETS:
        print(f"==> {name}", flush=True)
        if _run(name, options.seconds, options.input, targets.SEEDS.get(name, [])):
            failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "nothing found")
    return 1 if failed else 0


def _run(name: str, seconds: int, file: Optional[str], seeds: List[bytes]) -> int:
    findings = Path("fuzz-findings")
    findings.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        corpus, words = Path(folder) / "corpus", Path(folder) / "words"
        corpus.mkdir()
        for number, seed in enumerate(seeds):
            (corpus / str(number)).write_bytes(seed)
        # Keys and signs, which mutations of single bytes would hardly find.
        found = {word for seed in seeds for word in re.findall(rb'"[a-zA-Z_.]+"|[a-z]+: |[*`]+', seed)}
        lines = (b'"%b"\n' % word.replace(b'"', b'\\"') for word in sorted(found))
        words.write_bytes(b"# words of the seeds\n" + b"".join(lines))
        what = [file] if file else [f"-max_total_time={seconds}", f"-dict={words}", str(corpus)]
        command = [
            sys.executable, __file__, "--child", name,
            *_LIMITS, f"-artifact_prefix={findings}/{name}-", *what,
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        print(said)
    for line in re.findall(r"stat::(?:number_of_executed_units|peak_rss_mb): .*", said):
        print("   ", line)
    return done.returncode


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        _fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
