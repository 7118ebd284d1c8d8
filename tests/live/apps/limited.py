"""Streams in every form, some of which are not to begin."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
from typing import Any, Iterator

import requests
from flask import Flask, Response, jsonify, request, stream_with_context

from flask_llmstream import LLMStream, relay, stream, stream_response
from flask_llmstream.limits import current_limits
from flask_llmstream.signals import stream_refused, stream_started

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
app.secret_key = "a secret of the tests"
LLMStream(app, **dict({"heartbeat_interval": 0.2, "status_hold": 0.2}, **json.loads(os.environ["SETTINGS"])))
seen = {"started": 0, "began": 0, "worker": 0, "owner": 0, "route": 0}


def count_start(sender: Any, stream: Any) -> None:
    seen["started"] += 1


def count_refusal(sender: Any, limit: str, retry_after: float) -> None:
    assert sender is app and 2 <= retry_after <= 6
    seen[limit] += 1


if importlib.util.find_spec("blinker"):  # Flask before 2.3 comes without
    stream_started.connect(count_start)
    stream_refused.connect(count_refusal)


def produce() -> Iterator[str]:
    seen["began"] += 1
    how = request.args.get("how", "")
    yield f"<{os.getpid()}>"
    if how == "error":
        raise ValueError("told to")
    end = time.monotonic() + float(request.args.get("seconds", "60"))
    while how != "short" and time.monotonic() < end:
        yield "tick"
        time.sleep(0.02)


@app.route("/plain", methods=["GET", "POST"])
@stream
def plain() -> Any:
    return produce()


@app.route("/detached")
@stream(on_disconnect="detach")
def detached() -> Any:
    return produce()


@app.route("/route")
@stream(max_streams=2)
def limited() -> Any:
    return produce()


@app.route("/kept", methods=["GET", "POST"])
@stream(resumable=True, on_disconnect=5)
def kept() -> Any:
    return produce()


@app.route("/legacy")
def legacy() -> Any:
    def body() -> Iterator[bytes]:
        for text in inner:
            yield f"data: {text}\n\n".encode()

    inner = produce()
    response = Response(stream_with_context(body()), mimetype="text/event-stream")
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.headers["Cache-Control"] = "no-cache"
    return response


@app.route("/relayed")
def relayed() -> Any:
    def call() -> Any:
        seen["began"] += 1
        return requests.post(request.args["url"], json={"stream": True}, stream=True)

    return relay(call)


@app.route("/thrown/<how>")
def thrown(how: str) -> str:
    """Make streams, one after the other, and send none of them."""
    return " ".join(
        str(stream_response(produce(), resumable=how == "resumable").status_code) for _ in range(4)
    )


@app.route("/counts")
def counts() -> Any:
    return jsonify(dict(seen, running=current_limits().running(), pid=os.getpid()))
