"""One answer in whatever format the client asks for, which goes on when it is told to."""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import Any, DefaultDict, Dict, Iterator, List

from flask import Flask, jsonify

from flask_llmstream import LLMStream, UpstreamError, current_stream, stream

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0.2, status_hold=0.1)

go: DefaultDict[str, threading.Event] = defaultdict(threading.Event)
ends: Dict[str, List[str]] = defaultdict(list)


@app.route("/go/<key>")
def release(key: str) -> Any:
    go[key].set()
    return jsonify(ok=True)


@app.route("/notes/<key>")
def notes(key: str) -> Any:
    return jsonify(ends=ends[key])


@app.route("/answer/<key>")
@stream
def answer(key: str) -> Iterator[str]:
    """Nothing at first, then an answer."""
    current_stream.on_end(lambda end: ends[key].append(end.reason))
    go[key].wait(30)
    yield "a"
    yield "b"


@app.route("/quiet/<key>")
@stream
def quiet(key: str) -> Iterator[str]:
    """A beginning, and nothing behind it."""
    current_stream.on_end(lambda end: ends[key].append(end.reason))
    yield "a"
    while not go[key].wait(0.05):
        yield ""  # a thread that waits for a lock cannot be woken


@app.route("/fails/<key>")
@stream
def fails(key: str) -> Iterator[str]:
    """A beginning, and a failure behind it."""
    yield "half"
    go[key].wait(30)
    raise UpstreamError("busy", code="upstream_timeout", retryable=True)
