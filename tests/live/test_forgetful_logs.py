"""Resumable streams whose log forgets them: a Redis without persistence, a file that is removed."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Callable

import pytest
from asking import events_of, text_of
from coming_back import end_of, words_of
from redis_servers import Server as RedisServer
from resumed import begin, last_id, read_all, serving

from flask_llmstream.testing import LiveServer, ScriptedUpstream, wait_until

pytestmark = [pytest.mark.live, pytest.mark.slow]

MODEL = "forgotten-70-50"


def words_in(data: bytes) -> str:
    return "".join(json.loads(event.data)["text"] for event in events_of(data) if event.event is None)


def check(server: LiveServer, forget: Callable[[], None], noticed: Callable[[str], None]) -> None:
    """Have a log forget a stream with a reader and followers: its reader gets all, nobody waits for ever."""
    reader, place, data = begin(server, MODEL, on_disconnect="detach")
    with contextlib.ExitStack() as stack:
        stack.enter_context(reader)
        followers = [stack.enter_context(server.request(place, timeout=20)) for _ in range(4)]
        heads = [b"".join(piece for _, piece in each.read_until(b'{"text"')) for each in followers]
        forget()
        began = time.monotonic()
        whole = data + reader.read()
        assert reader.complete and words_in(whole) == "".join(words_of(MODEL))
        assert end_of(events_of(whole))[0] == "done"
        took = time.monotonic() - began
        ends = []
        for head, follower in zip(heads, followers):
            body = head + follower.read()
            assert "".join(words_of(MODEL)).startswith(words_in(body))
            name, said = end_of(events_of(body))
            ends.append(said.get("code", name))
            assert ends[-1] in ("interrupted", "done")
        noticed(
            f"the reader's rest took {took:.1f} s, its followers ended {time.monotonic() - began:.1f} s"
            f" after the loss with {sorted(set(ends))}"
        )
        with server.request(place, headers={"Last-Event-ID": last_id(data)}) as again:
            assert again.status in (200, 410)
            if again.status == 200:
                assert end_of(events_of(again.read()))
    # What begins now is none the worse for it.
    reader, place, data = begin(server, "remembered-10-20")
    reader.close()
    rest = read_all(server, place, headers={"Last-Event-ID": last_id(data)})
    assert text_of(data.partition(b"\n\n")[2]) + words_in(rest) == "".join(words_of("remembered-10-20"))


def test_redis_that_keeps_nothing_is_restarted(
    talker: ScriptedUpstream, tmp_path: Path, noticed: Callable[[str], None]
) -> None:
    redis = RedisServer(tmp_path)
    redis.start()
    try:
        with serving(talker, redis.url, 2) as server:

            def restart() -> None:
                redis.kill()
                redis.start()

            check(server, restart, noticed)
            wait_until(lambda: "cannot be resumed any more" in server.log(), 5, "a word in the log")
    finally:
        redis.kill()


def test_file_of_the_log_is_removed(
    talker: ScriptedUpstream, tmp_path: Path, noticed: Callable[[str], None]
) -> None:
    path = tmp_path / "streams.db"
    with serving(talker, f"sqlite:///{path}", 2) as server:

        def remove() -> None:
            for name in os.listdir(tmp_path):
                if name.startswith(path.name):
                    os.unlink(tmp_path / name)

        check(server, remove, noticed)
