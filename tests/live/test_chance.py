"""Ten thousand short streams whose clients leave when they like: each ends once, and alone."""

from __future__ import annotations

import itertools
import random
import socket
import struct
import threading
import time
from collections import Counter
from typing import Callable, List

import pytest
from asking import APPS, UNTRACED, ask, events_of, text_of
from untraced import untraced_threads

from flask_llmstream.testing import LiveServer, gunicorn_server, read_stream, send_request, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

#: What a client does: reads everything, reads everything with its own half closed, or leaves.
PLANS = ["stay", "stay", "half-close", "FIN", "FIN", "RST", "RST"]


class Clients:
    """Clients that do what chance tells them, each one connection after the other."""

    def __init__(self, server: LiveServer, total: int, at_once: int, pipelining: bool) -> None:
        self.server = server
        self.pipelining = pipelining
        self.done: Counter[str] = Counter()
        self.faults: List[str] = []
        self._numbers = itertools.count()
        self._total = total
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(at_once)]

    def run(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        with untraced_threads():
            for thread in self._threads:
                thread.start()
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in self._threads), (self.done, self.faults[:5])

    def _run(self) -> None:
        while len(self.faults) < 5:
            with self._lock:
                number = next(self._numbers)
            if number >= self._total:
                return
            chance = random.Random(number)
            plan = chance.choice(PLANS)
            second = chance.choice(["", "", "pipelined", "follow-up"])
            answered = False
            try:
                answered = self._visit(number, plan, second, chance)
            except Exception as error:
                self.faults.append(f"{number} {plan} {second}: {error!r}")
            with self._lock:
                self.done[plan] += 1
                self.done["second request"] += answered

    def _visit(self, number: int, plan: str, second: str, chance: random.Random) -> bool:
        """Return whether a second request was answered, too."""
        count = chance.randrange(7)
        if plan == "half-close" and second:
            second = "pipelined"
        if second == "pipelined" and not self.pipelining:
            second = "" if plan == "half-close" else "follow-up"
        with self.server.connect() as sock:
            send_request(sock, f"/few?key=s{number}&count={count}")
            if second == "pipelined":
                send_request(sock, f"/canary/{number}")
            if plan in ("FIN", "RST"):
                time.sleep(chance.random() * 0.012)
                if plan == "RST":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
            if plan == "half-close":
                sock.shutdown(socket.SHUT_WR)
            answer = read_stream(sock, timeout=30)
            body = answer.read()
            assert answer.complete and answer.status == 200, body
            assert text_of(body.partition(b"event:")[0]).split() == [f"s{number}.{n}" for n in range(count)]
            assert [event.event for event in events_of(body)][count:] == ["done"], body
            if second == "follow-up":
                send_request(sock, f"/canary/{number}")
            if second:
                reply = read_stream(sock, timeout=30, buffered=answer.rest)
                assert reply.status == 200 and reply.read() == f"canary {number}".encode()
                assert reply.rest == b""
        return bool(second)


def pipelines(server: LiveServer) -> bool:
    """Return whether a second request that comes with the first is answered; see RFC 9112 9.3.2.

    The gthread worker of old gunicorns forgets what it has read beyond a request.
    """
    with server.connect() as sock:
        for number in (1, 2):
            send_request(sock, f"/canary/{number}")
        first = read_stream(sock)
        assert first.read() == b"canary 1"
        try:
            return read_stream(sock, timeout=2, buffered=first.rest).read() == b"canary 2"
        except (ConnectionError, socket.timeout):
            return False


def check(worker: str, total: int, at_once: int, noticed: Callable[[str], None]) -> None:
    quiet = "accesslog = None\nkeepalive = 30"
    with gunicorn_server(
        APPS / "chance.py", worker=worker, threads=at_once + 4, config_lines=quiet, env=UNTRACED
    ) as server:
        pipelining = pipelines(server)
        clients = Clients(server, total, at_once, pipelining)
        started_at = time.monotonic()
        clients.run(timeout=240)
        took = time.monotonic() - started_at
        assert not clients.faults, clients.faults

        def is_idle() -> bool:
            counts = ask(server, "/counts")
            if any(counts[each] for each in ("streams", "bound", "running", "watched")):
                return False
            second = ask(server, "/canaries")  # is no stream, and comes when one is over
            return bool(second["begun"] == second["ended"])

        wait_until(is_idle, 20.0, lambda: f"what is left over: {ask(server, '/counts')}")
        totals = ask(server, "/totals")
        canaries = ask(server, "/canaries")
        noticed(
            f"{total} streams in {took:.1f} s: {dict(clients.done)}, ends {totals['reasons']},"
            f" {totals['started']} generators started, {canaries['ended']} second requests run"
            f"{'' if pipelining else ', without pipelining'}"
        )
        assert totals["odd"] == {}
        assert totals["notes"] == sum(totals["reasons"].values())
        assert totals["notes"] >= total * 0.5, "most clients left before they were heard at all"
        assert set(totals["reasons"]) == {"finish", "disconnect"}
        assert canaries["begun"] == canaries["ended"] >= clients.done["second request"]
        log = server.log()  # old gunicorns have complaints of their own
        assert "flask_llmstream" not in log, log[-3000:]


def test_ten_thousand_streams_on_gevent(noticed: Callable[[str], None]) -> None:
    check("gevent", 10_000, 40, noticed)


def test_three_thousand_streams_on_threads(noticed: Callable[[str], None]) -> None:
    check("gthread", 3_000, 24, noticed)
