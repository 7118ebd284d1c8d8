"""What one token and one short stream cost, counted and not timed, so that a busy machine changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Dict

import pytest

PROGRAM = os.path.join(os.path.dirname(os.path.abspath(__file__)), "hot_path.py")

#: Bytecode instructions of the package for one token, at most: about 5 % more than there are on any Python
#: from 3.7 to 3.13. Who needs more of them should know why; who needs fewer should lower these. Those that
#: are called whole are of a stream with one token, from its request to its end.
AT_MOST = {
    "gevent": {
        "paced": 228, "hot": 190, "words": 665, "adopted": 180, "logged": 560, "read": 240, "measured": 280,
        "whole": 3100, "whole, measured": 6000,
    },
    "threads": {
        "paced": 202, "hot": 189, "words": 625, "adopted": 152, "logged": 420, "read": 240, "measured": 255,
        "whole": 3100, "whole, measured": 5400,
    },
}
#: Blocks of memory that a token may leave behind. Its text is a piece of a list; the log of this process
#: keeps a token as an entry. What has ended waits in the queue of the ticker until its time has come.
#: An idle stream has up to 9 more than a generator under stream_with_context(), and on a busy machine 6: not
#: each of them has been looked at by the ticker then. A block of a few streams comes and goes by chance.
BLOCKS = {"logged": 8.0, "whole": 8.0, "whole, measured": 8.0, "idle": 12.0}


@pytest.mark.parametrize("runtime", sorted(AT_MOST))
def test_token_and_stream_cost_no_more_than_they_did(runtime: str) -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, PROGRAM, runtime], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60,
        env=variables, universal_newlines=True,
    )
    assert done.returncode == 0, done.stderr
    found: Dict[str, Dict[str, Any]] = json.loads(done.stdout)
    assert sorted(found) == sorted([*AT_MOST[runtime], "idle"])
    for name, cost in found.items():
        print(f"{runtime}, {name}: {cost['instructions']} instructions, {cost['blocks']} blocks")
        most = AT_MOST[runtime].get(name)
        assert most is None or most * 0.5 < cost["instructions"] <= most, (name, cost)
        assert cost["blocks"] <= BLOCKS.get(name, 1.0), (name, cost)
