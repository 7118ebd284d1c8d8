"""The same hand-over where more stands in the way: another master, TLS, a proxy that speaks HTTP/2."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from asking import events_of, text_of
from moving import Reader, address, all_completed, held, serve, words

from flask_llmstream.testing import wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream

sys.path.append(str(Path(__file__).resolve().parent.parent / "servers"))

pytestmark = [pytest.mark.live, pytest.mark.slow]

COUNT = 8


def check(readers: Dict[int, Reader], upstream: ScriptedUpstream, moved: threading.Event) -> int:
    """Have all be sent away and read to the end; return how many requests they have made."""
    wait_until(lambda: all(len(each.workers) > 1 for each in readers.values()), 20, "all to be sent away")
    moved.set()
    for number, reader in readers.items():
        assert reader.join() == "".join(words(str(number), 30))
    assert upstream.requests == len(readers), "nothing was asked for twice"
    upstream.wait_for(all_completed)
    return sum(len(reader.workers) for reader in readers.values())


@pytest.mark.timing
def test_another_master_takes_over(tmp_path: Path, noticed: Callable[[str], None]) -> None:
    """SIGUSR2 starts a second master on the same sockets; then the first is told to end."""
    lines = f"pidfile = '{tmp_path / 'pid'}'"
    moved = threading.Event()
    with ScriptedUpstream(held(moved, 30)) as upstream, serve(tmp_path, "gevent", lines) as server:
        readers = {n: Reader(server.url + address(upstream, n)) for n in range(COUNT)}
        wait_until(lambda: all(reader.begun.is_set() for reader in readers.values()), 10)
        first = set(server.worker_pids())
        second = tmp_path / "pid.2"
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: second.exists() and len(set(server.worker_pids()) - first) == 2, 20, server.log)
        master = int(second.read_text())
        try:
            os.kill(server.pid, signal.SIGTERM)
            noticed(f"{check(readers, upstream, moved)} requests of {COUNT} readers")
            wait_until(lambda: not first & set(server.worker_pids()), 20, "the first master's workers to end")
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, signal.SIGTERM)
        assert "Traceback" not in server.log() and "SIGKILL" not in server.log(), server.log()


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_reload_over_tls(worker: str, tmp_path: Path, certificate: Tuple[str, str]) -> None:
    moved = threading.Event()
    with ScriptedUpstream(held(moved, 30)) as upstream, serve(
        tmp_path, worker, certificate=certificate
    ) as server:
        assert server.url.startswith("https:")
        readers = {n: Reader(server.url + address(upstream, n), ca_file=certificate[0]) for n in range(COUNT)}
        wait_until(lambda: all(reader.begun.is_set() for reader in readers.values()), 10)
        os.kill(server.pid, signal.SIGHUP)
        check(readers, upstream, moved)
        # gevent's own: of a connection whose handshake was under way when the worker ceased to listen.
        unheard = server.log().count("'StreamServer' object has no attribute 'handle'")
        assert server.log().count("Traceback") == unheard, server.log()


def test_reload_behind_a_proxy_that_speaks_http2(
    tmp_path: Path, certificate: Tuple[str, str], noticed: Callable[[str], None]
) -> None:
    pytest.importorskip("h2", reason="this old stack has none")
    from http2 import Http2Answer
    from proxies import proxy_server

    moved = threading.Event()
    with ScriptedUpstream(held(moved, 30)) as upstream, serve(tmp_path, "gevent") as server:
        with proxy_server("nginx-h2-tls", server.address, certificate) as proxy:

            def ask(path: str, **headers: str) -> Any:
                return Http2Answer(proxy.connect(30, "h2"), path, headers)

            path, body, answers = address(upstream, 5), b"", 1
            with contextlib.closing(ask(path)) as answer:
                assert answer.status == 200
                place = answer.headers["content-location"]
                pieces: Any = iter(answer)
                while b"5.3" not in body:
                    body += next(pieces)[1]
                os.kill(server.pid, signal.SIGHUP)
                body += b"".join(data for _, data in pieces)
                assert answer.complete, "the proxy has seen no error"
            moved.set()
            deadline = time.monotonic() + 20
            while events_of(body)[-1].event != "done":
                assert time.monotonic() < deadline
                last: List[str] = [event.id for event in events_of(body) if event.id]
                with contextlib.closing(ask(place, **{"last-event-id": last[-1]})) as answer:
                    answers += 1
                    assert answer.status == 200
                    body += b"".join(data for _, data in answer)
                time.sleep(0.1)
            said = b"".join(
                block + b"\n\n" for block in body.split(b"\n\n") if b"event:" not in block
            )
            assert text_of(said) == "".join(words("5", 30))
            noticed(f"{answers} answers over HTTP/2")
            assert answers > 1 and upstream.requests == 1
