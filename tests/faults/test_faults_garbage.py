"""Models that send garbage: each is a clear failure, soon, in bounded memory, and hurts nobody else."""

from __future__ import annotations

import gzip
import itertools
import random
import threading
import time
from collections import defaultdict
from typing import Any, DefaultDict, Dict, Iterable, Iterator, List, NamedTuple

import pytest
from procfs import peak_growth, reset_peak
from raw_model import RawModel, chunked
from seeing import Seen, ended, new_key, path_of, see, serving, unharmed

from flask_llmstream.testing import LiveServer, wait_until

pytestmark = [pytest.mark.faults, pytest.mark.live]

#: Seconds in which each must be over, and the time limits of the call.
SOON, TIMEOUTS = 8.0, [1.0, 2.0]
#: What garbage without end may cost a worker, in bytes.
MEMORY_BOUND = 24 << 20

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
_CHUNKED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
_BARE = _HEAD + b"Connection: close\r\n\r\n"
_TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":"first "}}]}\n\n'
_BLOCK = b"x" * 65536


class Garbage(NamedTuple):
    """What a model sends; ``after`` a first token where the answer itself has begun well."""

    name: str
    steps: Iterable[Any]
    after: bool = False


def _zeros() -> bytes:
    """Return a gzip file of 128 MiB, 128 KiB long."""
    return gzip.compress(b"data: " + bytes(128 << 20), 9)


def cases(begun: threading.Event) -> List[Garbage]:
    """Return them all.

    :param begun: set when the answer to the client has begun: the first token has been read by then.
    """
    chance = random.Random(7)
    noise = bytes(chance.randrange(256) for _ in range(65536))
    return [
        Garbage("random bytes", [noise]),
        Garbage("nothing at all", []),
        Garbage("HTTP/0.9", [b"hello\n"]),
        Garbage("a status of 999", [b"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n"]),
        Garbage("a redirect", [
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
        ]),
        Garbage("a page with status 200", [
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 16\r\n\r\n<h1>patient</h1>"
        ]),
        Garbage("a picture", [
            b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 4\r\n\r\n\x89PNG"
        ]),
        Garbage("a header line without end", itertools.chain(
            [b"HTTP/1.1 200 OK\r\nX-Long: "], itertools.repeat(_BLOCK)
        )),
        Garbage("10,000 headers", [_HEAD, b"".join(b"X-%d: y\r\n" % n for n in range(10000)), b"\r\n"]),
        Garbage("Content-Length: -5", [_HEAD + b"Content-Length: -5\r\n\r\n"]),
        Garbage("a huge Content-Length", [
            _HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", _TOKEN
        ], after=True),
        Garbage("gzip that is none", [
            _HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + noise
        ]),
        Garbage("a gzip bomb", [_HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n", _zeros()]),
        Garbage("a line without end", itertools.chain([_BARE, _TOKEN], itertools.repeat(_BLOCK)), after=True),
        Garbage("an event without end", itertools.chain(
            [_BARE, _TOKEN], itertools.repeat(b"data: 0123456789\n" * 4096)
        ), after=True),
        Garbage("HTTP chunks without a size", [_CHUNKED, chunked(_TOKEN), begun, b"zz\r\nwhat\r\n"],
                after=True),
        Garbage("an HTTP chunk of size -5", [_CHUNKED, chunked(_TOKEN), begun, b"-5\r\nwhat\r\n"],
                after=True),
        Garbage("a chunk size without end", itertools.chain(
            [_CHUNKED, chunked(_TOKEN), begun], itertools.repeat(b"1" * 65536)
        ), after=True),
        Garbage("invalid UTF-8", [
            _CHUNKED, chunked(_TOKEN, _TOKEN.replace(b"first", b"\xff\xfe")), b"0\r\n\r\n"
        ], after=True),
        Garbage("NULs", [_CHUNKED, chunked(_TOKEN, bytes(4096), b"\n\n"), b"0\r\n\r\n"], after=True),
        Garbage("JSON of another shape", [
            _CHUNKED, chunked(_TOKEN, b'data: [[[["patient"]]]]\n\n'), b"0\r\n\r\n"
        ], after=True),
        Garbage("JSON nested 100,000 deep", [_CHUNKED, chunked(_TOKEN, b"data: " + b"[" * 100000 + b"\n\n"),
                                             b"0\r\n\r\n"], after=True),
        Garbage("interim answers without end", _interim()),
    ]


def _interim() -> Iterator[Any]:
    while True:
        yield b"HTTP/1.1 100 Continue\r\n\r\n"
        yield 0.02


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: Any) -> Iterator[LiveServer]:
    # Untraced: what coverage keeps would count as memory.
    env = {"COVERAGE_PROCESS_START": None, "COVERAGE_PROCESS_CONFIG": None}
    with serving(request.param, status_hold=5.0, max_duration=1.5, env=env) as running:
        yield running


def test_garbage_from_a_model(server: LiveServer, record: Any) -> None:
    outcomes: DefaultDict[str, List[str]] = defaultdict(list)
    faults: Dict[str, Any] = {}
    slowest = highest = 0.0
    [worker] = server.worker_pids()
    begun = threading.Event()
    first_round = cases(begun)
    # A pool keeps a connection to each of its last ten models.
    with unharmed(server, spare=12):
        memory = 0
        for number, case in enumerate([*first_round, *cases(begun)]):
            if number == len(first_round):
                memory = reset_peak(worker)  # what is paid once has been paid
                outcomes.clear()
            begun.clear()
            with RawModel(case.steps) as source:
                key, began = new_key(), time.monotonic()
                path = path_of("chat", key, model="any", upstream=source.url, timeouts=TIMEOUTS)
                try:
                    reader = server.request(path, timeout=SOON)
                    begun.set()
                    seen = see(reader, began)
                    check(case, seen, ended(server, key))
                    wait_until(lambda: source.over == source.begun, 5.0, "the model's connection to end")
                except (AssertionError, OSError) as error:
                    faults[case.name] = error
                    continue
            slowest = max(slowest, seen.took)
            outcomes[seen.end[1]].append(case.name)
            print(f"{case.name}: {seen.words}")
        highest = peak_growth(worker, memory) / 2**20
    print(f"slowest {slowest:.1f} s; memory grew by {highest:.1f} MiB at most")
    assert not faults, faults
    assert highest * 2**20 < MEMORY_BOUND
    said = "; ".join(f"`{code}`: {', '.join(names)}" for code, names in sorted(outcomes.items()))
    record(
        "garbage-model",
        client=f"a status (502, 504), or `failed` once there is text, within {slowest:.1f} s. {said}",
        model=f"closed; memory of the worker grew by {highest:.0f} MiB at most",
        log="one line for each, no traceback; reason `error`, or `timeout`",
    )


def check(case: Garbage, seen: Seen, reason: str) -> None:
    assert seen.complete and seen.took < SOON, seen
    name, code = seen.end
    assert name == ("failed" if case.after else "status"), seen
    assert code.startswith("upstream_") or code == "timeout", seen
    assert seen.status in ((200,) if case.after else (502, 504)), seen
    assert seen.text == "first " * case.after, seen
    assert reason in ("error", "timeout")
