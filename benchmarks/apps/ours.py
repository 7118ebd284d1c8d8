"""The same app with flask-llmstream, everything switched on."""

from __future__ import annotations

import os
from typing import Any

import requests
from flask import Flask, Response, jsonify, request
from requests.adapters import HTTPAdapter

from benchmarks.apps.work import TOKENS, UPSTREAM_URL, closings, hot, idle, paced, steady
from flask_llmstream import LLMStream, relay, stream, stream_response
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
app.secret_key = "of the benchmarks"
LLMStream(app, event_log=os.environ.get("BENCHMARK_EVENT_LOG", "memory://"))
session = requests.Session()
session.mount("http://", HTTPAdapter(pool_maxsize=1000))


@app.route("/paced")
def paced_view() -> Any:
    """Stream at a steady rate for ever, in turns with others."""
    tokens = paced(TOKENS, request.args["clock"])
    return stream_response(tokens, resumable="resumable" in request.args)


@app.route("/steady")
@stream
def steady_view() -> Any:
    """Stream at a steady rate for ever."""
    return steady(TOKENS, request.args["clock"])


@app.route("/hot")
@stream
def hot_view() -> Any:
    """Stream as fast as possible."""
    return hot(TOKENS, int(request.args["count"]))


@app.route("/idle")
@stream
def idle_view() -> Any:
    """Send one event and go silent."""
    return idle(TOKENS)


@app.route("/relay")
@stream
def relay_view() -> Any:
    """Pass on what a model says."""
    yield from openai_chat(
        request.query_string.decode(),
        [{"role": "user", "content": "Hello"}],
        base_url=UPSTREAM_URL,
    )


@app.route("/bytes")
def bytes_view() -> Response:
    """Pass on what a model says, byte for byte."""
    body = {"model": request.query_string.decode(), "messages": [{"role": "user", "content": "Hello"}]}
    answer: Response = relay(
        lambda: session.post(UPSTREAM_URL + "/chat/completions", json=body, stream=True)
    )
    return answer


@app.route("/closings")
def closings_view() -> Response:
    """Tell when idle generators were closed."""
    return jsonify(closings)


@app.route("/hello")
def hello_view() -> str:
    """Answer without a stream."""
    return "hello"
