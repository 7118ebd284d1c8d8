"""Streams that end in every way there is, and are measured."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import Any, Iterator

from flask import Flask, Response, jsonify, request

from flask_llmstream import LLMStream, UpstreamError, current_stream, multiplex, stream, stream_response
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
app.secret_key = "a secret of the tests"
settings = {"heartbeat_interval": 0, "status_hold": 0.2, "metrics": True, "grace": 0.1}
settings.update(json.loads(os.environ["SETTINGS"]))
LLMStream(app, authorize=lambda what: request.headers.get("X-Role") != "guest", **settings)
leaked = []


@app.after_request
def name_worker(response: Any) -> Any:
    response.headers["X-Worker"] = str(os.getpid())
    return response


def pieces(number: int, pause: float) -> Iterator[str]:
    for each in range(number):
        time.sleep(pause)
        yield "piece %d " % each


@app.route("/say/<int:number>")
@stream
def say(number: int) -> Any:
    return pieces(number, 0.01)


@app.route("/padded/<int:number>")
@stream(padding=100, status_hold=0.0)
def padded(number: int) -> Any:
    return pieces(number, 0.01)


@app.route("/burst/<int:number>")
@stream
def burst(number: int) -> Any:
    return ["x"] * number


@app.route("/quiet")
@stream
def quiet() -> Iterator[str]:
    yield "a"
    while True:
        time.sleep(0.02)
        yield ""  # a thread that waits for nothing cannot be woken


@app.route("/fails")
@stream
def fails() -> Iterator[str]:
    yield "half"
    raise UpstreamError("busy", code="upstream_timeout", retryable=True)


@app.route("/refused")
@stream
def refused() -> Iterator[str]:
    raise UpstreamError("busy", code="upstream_timeout", retryable=True)
    yield ""


@app.route("/late")
@stream(max_duration=0.2)
def late() -> Iterator[str]:
    return quiet.__wrapped__()  # type: ignore[attr-defined, no-any-return]


@app.route("/held")
def held() -> Any:
    return stream_response(quiet.__wrapped__(), resumable=True)  # type: ignore[attr-defined]


@app.route("/one")
@stream(max_streams=1)
def one() -> Any:
    return quiet.__wrapped__()  # type: ignore[attr-defined]


@app.route("/ask", methods=["POST"])
@stream
def ask() -> Any:
    return openai_chat(base_url=request.get_json()["url"], api_key="k", model="m", messages=[])


@app.route("/both", methods=["POST"])
def both() -> Any:
    url = request.get_json()["url"]
    calls = {name: openai_chat(base_url=url, api_key="k", model="m", messages=[]) for name in "ab"}
    return stream_response(multiplex(calls))


@app.route("/old")
def old() -> Any:
    return Response((b"data: %d\n\n" % each for each in range(4)), content_type="text/event-stream")


@app.route("/leaky")
@stream
def leaky() -> Iterator[str]:
    class Stubborn:
        closed = False

        def close(self) -> None:
            """Stay open."""

    leaked.append(current_stream.bind(Stubborn()))
    yield "a"


@app.route("/mend")
def mend() -> Any:
    del leaked[:]
    return jsonify(pid=os.getpid(), threads=threading.active_count())


@app.route("/exported")
def exported() -> Any:
    """The metrics as an app shows them that uses the library's multiprocess mode."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    return Response(generate_latest(registry), content_type="text/plain")
