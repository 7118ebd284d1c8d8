"""The app whose streams are counted for docs/scaling.md: everything at its default."""

from __future__ import annotations

import itertools
import os
from typing import Any, Iterator

from flask import Flask, request

from benchmarks.apps.work import TOKENS, UPSTREAM_URL, hot, idle, steady
from flask_llmstream import LLMStream, stream_response
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
app.secret_key = "of the benchmarks"
LLMStream(app, event_log=os.environ.get("BENCHMARK_EVENT_LOG", "memory://"))


def _answer(source: Iterator[Any]) -> Any:
    interval = request.args.get("heartbeat", None, float)
    return stream_response(source, resumable="resumable" in request.args, heartbeat_interval=interval)


@app.route("/steady")
def steady_view() -> Any:
    """Stream so many tokens at a steady rate."""
    tokens = steady(TOKENS, request.args["clock"])
    return _answer(itertools.islice(tokens, int(request.args["count"])))


@app.route("/hot")
def hot_view() -> Any:
    """Stream so many tokens as fast as possible."""
    return _answer(hot(TOKENS, int(request.args["count"])))


@app.route("/idle")
def idle_view() -> Any:
    """Send one event and go silent."""
    return _answer(idle(TOKENS))


@app.route("/relay")
def relay_view() -> Any:
    """Stream what a model says; the query is its name."""
    return _answer(openai_chat(
        request.query_string.decode(), [{"role": "user", "content": "Hello"}], base_url=UPSTREAM_URL
    ))
