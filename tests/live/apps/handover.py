"""Resumable streams of a model, for whoever says who they are."""

from __future__ import annotations

import json
import logging
import os
from typing import Any, Iterator

from flask import Flask, request

from flask_llmstream import LLMStream, stream_response
from flask_llmstream.upstream import openai_chat

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
app.secret_key = "of the tests alone"
settings = {"heartbeat_interval": 0.5, "event_log": os.environ["LOG"]}
LLMStream(app, **dict(settings, **json.loads(os.environ.get("SETTINGS", "{}"))))


@app.route("/chat", methods=["GET", "POST"])
def chat() -> Any:
    number = request.args.get("number", "0")
    answer = openai_chat("any", [{"role": "user", "content": number}], base_url=request.args["url"])
    return stream_response(answer, resumable=True)


@app.route("/echo/<how>", methods=["POST"])
def echo(how: str) -> Any:
    """Say what was sent; it is read in one of the ways in which views read, mostly when it is late."""
    early = request.files["a"].read().decode() if how == "eager" else ""

    def read() -> Iterator[str]:
        if how == "json":
            yield request.get_json()["text"]
        elif how == "eager":
            yield early
        elif how == "form":
            yield request.form["text"]
            for name in request.files:
                yield request.files[name].read().decode()
        elif how == "data":
            yield request.get_data(as_text=True)
        elif how == "length":
            yield str(len(request.stream.read()))
        else:
            yield request.stream.read().decode()

    return stream_response(read(), resumable=True)


@app.route("/plain")
def plain() -> Any:
    return stream_response(openai_chat("any", [], base_url=request.args["url"]))


@app.route("/pid")
def pid() -> str:
    return str(os.getpid())


@app.after_request
def say_who(response: Any) -> Any:
    response.headers["Worker"] = str(os.getpid())
    return response
