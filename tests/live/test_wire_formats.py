"""Each wire format over a real connection: its head, its silences, its ends."""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest
import requests
from asking import APPS, ask, ended, leaving, new_key

from flask_llmstream.sansio.frames import FrameDecoder, FramesFormat
from flask_llmstream.testing import LiveServer, gunicorn_server

pytestmark = pytest.mark.live

FRAMES = "application/vnd.llmstream.frames"
HEARTBEATS = {"application/x-ndjson": b'{"type":"comment","text":"hb"}\n', FRAMES: FramesFormat.heartbeat}


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    config = "accesslog = None"
    with gunicorn_server(APPS / "answers.py", request.param, threads=8, config_lines=config) as server:
        yield server


def read_lines(body: bytes) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in body.decode().splitlines()]


def read_frames(body: bytes) -> List[Dict[str, Any]]:
    decoder = FrameDecoder()
    frames = [
        {"type": each.kind, **(each.data if isinstance(each.data, dict) else {"text": each.data})}
        for each in decoder.feed(body)
    ]
    decoder.flush()
    return frames


@pytest.mark.parametrize("accept, read", [("application/x-ndjson", read_lines), (FRAMES, read_frames)])
def test_head_heartbeats_and_items_come_in_their_time(
    server: LiveServer, accept: str, read: Callable[[bytes], List[Dict[str, Any]]]
) -> None:
    key = new_key()
    reader = server.request(f"/answer/{key}", headers={"Accept": accept})
    with leaving(reader):
        assert (reader.status, reader.headers["content-type"]) == (200, accept)
        silence = b"".join(data for _, data in reader.read_until(HEARTBEATS[accept] * 2))
        assert all(each["type"] == "comment" for each in read(silence))
        ask(server, f"/go/{key}")
        said = [each for each in read(reader.read()) if each["type"] != "comment"]
        assert reader.complete
    assert said == [
        {"type": "text", "text": "a"}, {"type": "text", "text": "b"},
        {"type": "done", "reason": "stop", "usage": None},
    ]
    assert ended(server, key)["ends"] == ["finish"]


def test_text_is_silent_until_there_is_some(server: LiveServer) -> None:
    """Its head comes all the same, and many heartbeat intervals harm nobody."""
    key = new_key()
    reader = server.request(f"/answer/{key}", headers={"Accept": "text/plain"})
    with leaving(reader):
        assert (reader.status, reader.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        time.sleep(0.6)  # three intervals: that nothing comes cannot be waited for
        ask(server, f"/go/{key}")
        assert reader.read() == b"ab" and reader.complete
    assert ended(server, key)["ends"] == ["finish"]


@pytest.mark.parametrize("accept", ["application/x-ndjson", FRAMES, "text/plain"])
def test_client_that_leaves_is_noticed_in_every_format(server: LiveServer, accept: str) -> None:
    key = new_key()
    reader = server.request(f"/quiet/{key}", headers={"Accept": accept})
    reader.read_until(b"a")
    reader.close()
    assert ended(server, key)["ends"] == ["disconnect"]


@pytest.mark.parametrize("accept, read", [("application/x-ndjson", read_lines), (FRAMES, read_frames)])
def test_failure_is_said_and_the_body_ends(
    server: LiveServer, accept: str, read: Callable[[bytes], List[Dict[str, Any]]]
) -> None:
    key = new_key()
    reader = server.request(f"/fails/{key}", headers={"Accept": accept})
    with leaving(reader):
        start = b"".join(data for _, data in reader.read_until(b"half"))
        ask(server, f"/go/{key}")
        last = read(start + reader.read())[-1]
        assert reader.complete
    assert (last["type"], last["code"], last["retryable"]) == ("failed", "upstream_timeout", True)


def test_failed_text_is_broken_off(server: LiveServer) -> None:
    """Plain text has no words for a failure, and half an answer must not look like a whole one."""
    key = new_key()
    reader = server.request(f"/fails/{key}", headers={"Accept": "text/plain"})
    with leaving(reader):
        reader.read_until(b"half")
        ask(server, f"/go/{key}")
        assert reader.read() == b"" and not reader.complete
    key = new_key()
    ask(server, f"/go/{key}")
    with requests.get(f"{server.url}/fails/{key}", headers={"Accept": "text/plain"}, stream=True) as answer:
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            answer.content
    curl = subprocess.run(
        ["curl", "-sN", "-H", "Accept: text/plain", f"{server.url}/fails/{key}"],
        stdout=subprocess.PIPE, timeout=30,
    )
    assert (curl.returncode, curl.stdout) == (18, b"half")
