"""A bare Flask app: generators that yield formatted events; with ``?context=1``, in the request's context."""

from __future__ import annotations

import json
from typing import Any, Iterator

import requests
from flask import Flask, Response, jsonify, request, stream_with_context

from benchmarks.apps.work import FRAMES, UPSTREAM_URL, closings, hot, idle, paced

app = Flask(__name__)
session = requests.Session()


def respond(source: Iterator[str]) -> Response:
    """Answer with *source* as any Flask app does."""
    if "context" in request.args:
        source = stream_with_context(source)
    return Response(source, mimetype="text/event-stream")


@app.route("/paced")
def paced_view() -> Response:
    """Stream at a steady rate for ever, in turns with others."""
    return respond(paced(FRAMES, request.args["clock"]))


@app.route("/hot")
def hot_view() -> Response:
    """Stream as fast as possible."""
    return respond(hot(FRAMES, int(request.args["count"])))


@app.route("/idle")
def idle_view() -> Response:
    """Send one event and go silent."""
    return respond(idle(FRAMES))


@app.route("/relay")
def relay_view() -> Response:
    """Pass on what a model says."""
    return respond(relay(request.query_string.decode()))


def relay(query: str) -> Iterator[str]:
    """Read a chat completion as most code does that uses no SDK."""
    body = {"model": query, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with session.post(UPSTREAM_URL + "/chat/completions", json=body, stream=True) as response:
        for line in response.iter_lines():
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                break
            chunk: Any = json.loads(line[6:])
            text = chunk["choices"][0]["delta"].get("content")
            if text:
                yield f"data: {json.dumps({'text': text})}\n\n"


@app.route("/closings")
def closings_view() -> Response:
    """Tell when idle generators were closed."""
    return jsonify(closings)


@app.route("/hello")
def hello_view() -> str:
    """Answer without a stream."""
    return "hello"
