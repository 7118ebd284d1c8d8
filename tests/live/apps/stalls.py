"""Routes that stall: for want of a model, of the worker's loop, or of a reader."""

from __future__ import annotations

import os
import sys
import time

import requests
from flask import Flask, request

from flask_llmstream import LLMStream, stream, stream_response

app = Flask(__name__)
LLMStream(app, stall_warning=float(os.environ.get("STALL_WARNING", "0.5")), slow_reader_timeout=2.0)


def listen_to_the_model():
    """Pass on what a model says, which may be nothing."""
    with requests.get(os.environ["UPSTREAM"] + request.args["path"], stream=True) as answer:
        for data in answer.iter_content(16):
            yield data.decode()


@app.route("/silent")
@stream
def silent():
    yield "asked"
    yield from listen_to_the_model()


def hold_the_loop(seconds):
    """Wait as a library in C would."""
    try:
        from gevent.monkey import get_original

        get_original("time", "sleep")(seconds)
    except ImportError:
        time.sleep(seconds)


@app.route("/hold")
@stream
def hold():
    yield "before"
    hold_the_loop(float(request.args["seconds"]))
    yield "after"


@app.route("/lively")
@stream
def lively():
    for _ in range(int(request.args["count"])):
        time.sleep(0.05)
        yield "x"


@app.route("/much")
def much():
    def write():
        try:
            for _ in range(100000):
                yield "x" * 4000
        finally:
            sys.stderr.write("much is over\n")

    return stream_response(write())
