"""A stream for clients that know nothing of us: heartbeats in it, text of all kinds, and pauses."""

from __future__ import annotations

import os
import time
from typing import Any, Iterator

from flask import Flask, request

from flask_llmstream import LLMStream, Usage, stream_response

app = Flask(__name__)
app.secret_key = "for cookies, cursors and tickets"
LLMStream(app, event_log="memory://", heartbeat_interval=0.05, status_hold=0.05)

WORDS = [
    "Hello ", "w\u00f6rld,\n", "data: ", "\n\n", "\u2028\u0085\x0b", "\U0001f600", "\r\n", " : hb\n",
    " end", " ",
]


def words() -> Iterator[Any]:
    time.sleep(0.2)
    for number, word in enumerate(WORDS * 5):
        yield word
        if number % 12 == 0:
            time.sleep(0.12)
    yield Usage(1, 50)


@app.route("/plain", methods=["GET", "POST"])
def plain() -> Any:
    return stream_response(words())


@app.route("/resumable", methods=["GET", "POST"])
def resumable() -> Any:
    return stream_response(words(), resumable=True)


@app.route("/padded")
def padded() -> Any:
    return stream_response(words(), padding="auto")


def apart() -> Iterator[str]:
    """Say words that come apart; with a folder ``SEEN``, until it has a file with the number of the last."""
    seen = os.environ.get("SEEN")
    for number, word in enumerate(("one ", "tw\u00f6 ", "three")):
        yield word
        if seen is None:
            time.sleep(0.3)
        while seen is not None and not os.path.exists(os.path.join(seen, str(number))):
            time.sleep(0.01)


@app.route("/answer", methods=["POST"])
def answer() -> Any:
    """What the page of docs/old-clients.md asks for."""

    def said() -> Iterator[str]:
        yield request.form["question"]
        for word in apart():
            yield word
        if request.form["question"] == "fail? ":
            raise LookupError

    return stream_response(said(), format="text")


@app.route("/slow")
def slow() -> Any:
    """Words that come apart, in the format that is asked for."""
    padding = int(request.args.get("padding", "0"))
    return stream_response(apart(), format=request.args["format"], padding=padding)


@app.route("/page")
def page() -> str:
    return "<!doctype html><title>old</title>"
