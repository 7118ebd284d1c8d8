"""How late a token is for a thousand who follow one stream, and for a thousand who have one each."""

from __future__ import annotations

import contextlib
import re
import selectors
import time
from typing import Any, Callable, Dict, List

import pytest
from resumed import serving

from flask_llmstream.testing import LiveServer, ScriptedUpstream, send_request

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timing, pytest.mark.timeout(180)]

READERS, TOKENS, PAUSE = 1000, 20, 0.25
_TIME = re.compile(rb"<([0-9.]+)>")


def delays(server: LiveServer, paths: List[str], settle: float) -> List[float]:
    """Read all *paths* at once; return how old each token was when it came, in seconds.

    :param settle: seconds after the last reader's request whose tokens are not counted.
    """
    found: List[float] = []
    with contextlib.ExitStack() as stack:
        reading = stack.enter_context(selectors.DefaultSelector())
        held: Dict[Any, bytes] = {}
        for path in paths:
            sock = stack.enter_context(contextlib.closing(server.connect()))
            send_request(sock, path, headers={"Accept": "text/plain"})
            reading.register(sock, selectors.EVENT_READ)
            held[sock] = b""
        since = time.monotonic() + settle
        deadline = time.monotonic() + 60
        while held:
            assert time.monotonic() < deadline, f"{len(held)} are not done"
            for key, _ in reading.select(1.0):
                sock: Any = key.fileobj
                data = held[sock] + sock.recv(65536)
                now = time.monotonic()
                found += [now - sent for sent in map(float, _TIME.findall(data)) if sent > since]
                held[sock] = data[data.rfind(b">") + 1 :]
                if held[sock].endswith(b"\r\n0\r\n\r\n") or not data:
                    reading.unregister(sock)
                    del held[sock]
    return found


def test_nobody_among_a_thousand_followers_is_late(
    talker: ScriptedUpstream, log_urls: Callable[[str], str], measured: Any
) -> None:
    with serving(
        talker, log_urls("sqlite"), 1, config_lines="worker_connections = 3000\naccesslog = None"
    ) as server:
        own = delays(server, [f"/times?count={TOKENS}&pause={PAUSE}"] * READERS, 0.5)
        with server.request(f"/times?count={TOKENS + 6}&pause={PAUSE}&resumable=1") as reader:
            place = reader.headers["content-location"]
            follow = delays(server, [place] * READERS, 0.5)
    measured(f"{READERS} streams", own)
    measured(f"{READERS} followers of one stream", follow)
    assert len(own) > READERS and len(follow) > READERS * 10
    # All are woken in one moment, and the last of them has waited for all others.
    assert sorted(follow)[len(follow) // 2] < 1.0 and sorted(follow)[len(follow) * 99 // 100] < 2.0
