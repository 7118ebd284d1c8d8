"""An app whose sources have their first word just when the status line can wait no longer."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Callable
from typing import Counter as Counts
from typing import Dict, Iterator

from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, UpstreamError, current_stream, stream_response

#: Seconds for which the status line waits.
HOLD = 0.04

app = Flask(__name__)
LLMStream(app, status_hold=HOLD, heartbeat_interval=0.01, max_delay=HOLD / 2)

#: What has happened, by name of the stream.
begun: Counts[str] = Counter()
cleaned: Counts[str] = Counter()
ended: Counts[str] = Counter()


def _item() -> Iterator[Any]:
    yield "item"


def _two() -> Iterator[Any]:
    yield "item"
    yield " two"


def _send() -> Iterator[Any]:
    current_stream.send("item")
    yield " two"


def _failing(error: Exception) -> Iterator[Any]:
    if error:
        raise error
    yield


def _fail() -> Iterator[Any]:
    details: Any = {"code": "upstream_rate_limited", "retryable": True, "retry_after": 3}
    return _failing(UpstreamError("too many requests", **details))


def _crash() -> Iterator[Any]:
    return _failing(ValueError("nobody may read this"))


def _empty() -> Iterator[Any]:
    yield from ()


def _held() -> Iterator[Any]:
    # A chunker holds it, and max_delay ends when the next item comes.
    yield "it"
    time.sleep(HOLD / 2)
    yield "em\n"


def _held_and_fail() -> Iterator[Any]:
    yield "item"
    yield from _fail()


_OUTCOMES: Dict[str, Callable[[], Iterator[Any]]] = {
    "item": _item, "two": _two, "send": _send, "fail": _fail, "crash": _crash, "empty": _empty, "held": _held,
    "held-and-fail": _held_and_fail,
}


@app.route("/first/<outcome>/<name>")
def first(outcome: str, name: str) -> Any:
    """Wait, then do what *outcome* says."""

    def generate() -> Iterator[Any]:
        begun[name] += 1
        current_stream.on_end(lambda end: ended.update([name]))
        try:
            time.sleep(max(0.0, HOLD + float(request.args["late"])))
            yield from _OUTCOMES[outcome]()
        finally:
            cleaned[name] += 1

    return stream_response(generate(), chunk="line" if "held" in outcome else None)


@app.route("/counts")
def counts() -> Any:
    return jsonify(begun=begun, cleaned=cleaned, ended=ended)
