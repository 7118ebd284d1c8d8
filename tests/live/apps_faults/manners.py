"""An app of short streams, for clients with habits of their own."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any
from typing import Counter as Counts
from typing import Iterator

from flask import Flask, jsonify

from flask_llmstream import LLMStream, UpstreamError, current_stream, stream

app = Flask(__name__)
LLMStream(app, status_hold=5, heartbeat_interval=0.01)

begun: Counts[str] = Counter()
ended: Counts[str] = Counter()


@app.route("/short/<name>")
@stream
def short(name: str) -> Iterator[Any]:
    begun[name] += 1
    current_stream.on_end(lambda end: ended.update([end.reason]))
    for number in range(3):
        yield f"{name} {number} "
        time.sleep(0.03)


def _refuse(item: str) -> str:
    raise UpstreamError(f"not {item}", code="upstream_auth")


@app.route("/refused")
@stream
def refused() -> Iterator[Any]:
    return map(_refuse, ["any"])


@app.route("/broken")
@stream
def broken() -> Iterator[Any]:
    yield "begin"
    raise UpstreamError("no", code="upstream_invalid")


@app.route("/silent")
@stream
def silent() -> Iterator[Any]:
    current_stream.on_end(lambda end: ended.update([end.reason]))
    yield "begin"
    time.sleep(60)


@app.route("/plain/<name>")
def plain(name: str) -> Any:
    return jsonify(name=name)


@app.route("/counts")
def counts() -> Any:
    return jsonify(begun=begun, ended=ended)
