"""An app whose streams and other requests share one Redis connection."""

from __future__ import annotations

import hashlib
import os
import time
from collections import Counter
from typing import Any
from typing import Counter as Counts
from typing import Iterator

import redis
from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, cancellation, stream_response

if os.environ.get("UNPROTECTED"):
    # What cancelling without regard for pooled connections would do.
    setattr(cancellation, "pooled_client", lambda *frame, **names: None)

app = Flask(__name__)
LLMStream(app, status_hold=0)

pool = redis.ConnectionPool(host="127.0.0.1", port=int(os.environ["REDIS_PORT"]), max_connections=1)
client = redis.Redis(connection_pool=pool)

#: How often the source of a stream has ended, by its key.
ended: Counts[str] = Counter()


def _get(key: str) -> Any:
    return client.get(key)


def _pipeline(key: str) -> Any:
    pipeline = client.pipeline()
    pipeline.get(key)
    pipeline.ping()
    pipeline.get(key)
    return pipeline.execute()


def _blpop(key: str) -> Any:
    return client.blpop("empty:" + key, timeout=int(request.args["seconds"]))


def _xread(key: str) -> Any:
    return client.xread({"nothing:" + key: "$"}, block=int(float(request.args["seconds"]) * 1000))


_COMMANDS = {"get": _get, "pipeline": _pipeline, "blpop": _blpop, "xread": _xread}


@app.route("/stream/<command>/<key>")
def streaming(command: str, key: str) -> Any:
    def generate() -> Iterator[Any]:
        try:
            yield "begin"
            while True:
                _COMMANDS[command](key)
                yield "more"
        finally:
            ended[key] += 1

    return stream_response(generate())


@app.route("/digest/<key>")
def digest(key: str) -> Any:
    """The ordinary request that comes after: what the connection answers to *it*."""
    try:
        value = client.get(key)
    except redis.ConnectionError as error:
        if "too many connections" not in str(error).lower():
            raise
        return jsonify(busy=True), 503
    sha256 = hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
    return jsonify(sha256=sha256, ended=ended, at=time.time(), version=redis.__version__)
