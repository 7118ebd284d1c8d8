"""Streams that can be resumed, for ``test_resuming.py``; everything is said by the environment and the query.

``EVENT_LOG``, ``UPSTREAM``, ``SECRET`` and ``FALLBACKS`` (separated by spaces), ``SETTINGS`` (JSON).
"""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any, Dict, Iterator

from flask import Flask, request, session
from werkzeug.exceptions import ServiceUnavailable

from flask_llmstream import LLMStream, multiplex, stream_response
from flask_llmstream.upstream import openai_chat

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET", "for cookies, cursors and tickets")
app.config["SECRET_KEY_FALLBACKS"] = os.environ.get("FALLBACKS", "").split()
LLMStream(app, event_log=os.environ["EVENT_LOG"], **json.loads(os.environ.get("SETTINGS", "{}")))


def source(model: str) -> Any:
    """Ask the upstream, whose script is chosen by the name of the model."""
    return openai_chat(model, [{"role": "user", "content": "Hello"}], base_url=os.environ["UPSTREAM"])


def respond(items: Any) -> Any:
    options: Dict[str, Any] = {"resumable": True}
    options.update(json.loads(request.args.get("options", "{}")))
    response = stream_response(items, **options)
    response.headers["X-Worker"] = str(os.getpid())
    return response


@app.route("/chat", methods=["GET", "POST"])
def chat() -> Any:
    return respond(source(request.args["model"]))


@app.route("/several", methods=["GET", "POST"])
def several() -> Any:
    return respond(multiplex({name: source(name) for name in request.args["models"].split(",")}))


@app.route("/json")
def structured() -> Any:
    """Write a list of numbers, one after the other."""

    def write() -> Iterator[str]:
        yield '{"numbers": ['
        for number in range(int(request.args["count"])):
            yield f"{', ' if number else ''}{number}"
            time.sleep(0.03)
        yield "]}"

    return stream_response(write(), structured=True, resumable=True)


@app.route("/failing")
def failing() -> Any:
    def write() -> Iterator[str]:
        yield from "ab"
        time.sleep(0.5)
        raise ServiceUnavailable("The model rests.")

    return stream_response(write(), resumable=True)


@app.route("/flood")
def flood() -> Any:
    """Say more than the buffers on the way can hold."""
    count = int(request.args["count"])
    return stream_response((f"{number:20000d}" for number in range(count)), resumable=True)


@app.route("/times")
def times() -> Any:
    """Say what time it is, on the clock that all processes of the machine share."""
    pause = float(request.args["pause"])

    def say() -> Iterator[str]:
        for _ in range(int(request.args["count"])):
            time.sleep(pause)
            yield f"<{time.monotonic():.6f}>"

    return stream_response(say(), resumable="resumable" in request.args)


@app.route("/login/<user>")
def login(user: str) -> str:
    session["user_id"] = user
    return user


@app.route("/page")
def page() -> str:
    """Read a stream with the browser's own EventSource."""
    return """<!doctype html><title>stream</title><script>
        var text = "", ends = [], errors = 0
        var source = new EventSource("/chat" + location.search)
        source.onmessage = event => { text += JSON.parse(event.data).text }
        source.addEventListener("done", event => ends.push(event.data))
        source.onerror = () => { errors += 1 }
    </script>"""
