"""Time limits of streams that go on without their client, and of who reads them in the log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterator

import pytest
from asking import events_of, text_of

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until

pytestmark = pytest.mark.live

APP = """
import os, time
from flask import Flask, request
from flask_llmstream import Comment, LLMStream, stream_response

app = Flask(__name__)
app.secret_key = "of the tests"
# A machine that stalls for half a second must not make a silence of a pause.
LLMStream(app, idle_timeout=1.0, event_log="memory://", stall_warning=1.3)


def write(count, pause):
    for number in range(count):
        time.sleep(pause)
        yield "word "


def think():
    for number in range(10):
        time.sleep(0.15)
        yield Comment("thinks") if number else "begun"
    yield ", over"


def fall_silent():
    yield "begun"
    time.sleep(30)


@app.route("/silent")
def silent():
    response = stream_response(fall_silent(), resumable=True)
    response.llmstream.on_end(lambda end: print("callback:", end.reason, flush=True))
    seal = response.llmstream.seal
    response.llmstream.seal = lambda end, code: (print("sealing:", code, flush=True), seal(end, code))
    return response


@app.route("/thinking")
def thinking():
    return stream_response(think(), resumable=True)


@app.route("/words")
def words():
    response = stream_response(write(14, 0.15), on_disconnect="detach", resumable="resumable" in request.args)
    response.llmstream.on_end(lambda end: print("ended:", end.reason, len(end.text), flush=True))
    return response
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    app = tmp_path_factory.mktemp("gone_on") / "gone_on.py"
    Path(app).write_text(APP)
    with gunicorn_server(app) as running:
        yield running


def test_source_that_goes_on_without_its_client_is_not_taken_for_silent(server: LiveServer) -> None:
    """``idle_timeout`` counts from its last item, not from when the client left."""
    with server.request("/words") as plain, server.request("/words?resumable=1") as resumable:
        url = resumable.headers["content-location"]
        for reader in (plain, resumable):
            reader.read_until(b"word")
    with server.request(url) as follower:
        body = follower.read()
    assert text_of(body) == "word " * 14
    assert json.loads(events_of(body)[-1].data)["reason"] == "stop", body[-200:]
    wait_until(lambda: server.log().count("ended: ") == 2, 10.0, server.log)
    assert server.log().count("ended: finish 70") == 2, server.log()
    assert "nothing has come from its source" not in server.log()


def test_who_follows_a_stream_is_not_told_that_its_model_is_silent(server: LiveServer) -> None:
    """Not all that it says is in the log; whether it has gone silent is the affair of its own stream."""
    with server.request("/thinking") as first:
        first.read_until(b"begun")
        with server.request(first.headers["content-location"]) as follower:
            body = follower.read()
        assert first.read().count(b": thinks") == 9
    assert text_of(body) == "begun, over", body[-200:]


def test_stream_that_falls_silent_without_its_client_says_so_in_the_log_too(server: LiveServer) -> None:
    """As its client would have been told; and the app hears of it before the log, which may take its time."""
    with server.request("/silent") as reader:
        url = reader.headers["content-location"]
        reader.read_until(b"begun")
    with server.request(url) as follower:
        last = events_of(follower.read())[-1]
    assert (last.event, json.loads(last.data)["code"]) == ("failed", "upstream_timeout")
    wait_until(lambda: "sealing: upstream_timeout" in server.log(), 10.0, server.log)
    assert server.log().index("callback: timeout") < server.log().index("sealing: ")
