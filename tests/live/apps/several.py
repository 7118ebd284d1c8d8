"""Several sources in one response: ``/several?options={…}`` and what the tests ask of them."""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from typing import Any, Dict, Iterator

from flask import Flask, current_app, g, jsonify, request, session
from ledger import blueprint, note_of, noted

from flask_llmstream import LLMStream, Usage, current_stream, multiplex, stream, stream_response
from flask_llmstream.upstream import openai_chat

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
app.secret_key = "for the session's cookie"
LLMStream(app, cancel_grace=2.0)
app.register_blueprint(blueprint)

#: What was torn down, in order.
torn_down: Any = []


@app.teardown_request
def note_teardown(error: Any) -> None:
    if request.path == "/contexts":
        torn_down.append(g.mark)


def chat(key: str, base_url: str) -> Iterator[Any]:
    messages = [{"role": "user", "content": key}]
    with noted(key):
        yield from openai_chat("scripted", messages, base_url=base_url)


@app.route("/upstreams", methods=["POST"])
def upstreams() -> Any:
    """Ask one upstream per channel."""
    asked = request.get_json()
    sources = {name: chat(f"{asked['key']}-{name}", url) for name, url in asked["upstreams"].items()}
    response = stream_response(multiplex(sources), **asked.get("options", {}))
    response.llmstream.on_end(note_of(asked["key"]).end)
    return response


@app.route("/contexts")
def contexts() -> Any:
    g.mark = request.args["key"]
    session["who"] = "me"

    def tell(name: str) -> Iterator[Any]:
        for _ in range(3):
            time.sleep(0.01)
            seen = [request.args["key"], g.mark, session["who"], current_app.name, current_stream.id]
            yield {"seen": seen, "torn_down": g.mark in torn_down}
        g.last = name

    answer = stream_response(multiplex({"a": tell("a"), "b": tell("b")}))
    answer.headers["X-Stream"] = answer.llmstream.id
    return answer


@app.route("/torn")
def torn() -> Any:
    return jsonify(torn_down)


@app.route("/fairness")
@stream
def fairness() -> Any:
    """One source that never waits beside one that says when it was to go on, and when it did."""

    def hot() -> Iterator[str]:
        for number in range(int(request.args["count"])):
            yield f"{number} "

    def slow() -> Iterator[Any]:
        for _ in range(20):
            due = time.monotonic() + 0.01
            time.sleep(0.01)
            yield {"late": time.monotonic() - due}

    return multiplex({"hot": hot(), "slow": slow()})


@app.route("/stubborn")
@stream
def stubborn() -> Any:
    """One source that is shielded for a while, beside one that is silent."""
    key = request.args["key"]

    def shielded() -> Iterator[str]:
        note = note_of(key)
        with noted(f"{key}-shielded"):
            yield "begun"
            with current_stream.shield():
                time.sleep(0.3)
                note.marks.append("whole")
            yield "lost"

    def silent() -> Iterator[str]:
        with noted(f"{key}-silent"):
            if "gevent" in sys.modules:
                time.sleep(30)
            while not current_stream.cancelled:
                time.sleep(0.01)
            yield "lost"

    return multiplex({"shielded": shielded(), "silent": silent()})


@app.route("/channels")
def channels() -> Any:
    """Name the threads that run sources."""
    return jsonify([each.name for each in threading.enumerate() if each.name.startswith("llmstream-channel")])


def texts(name: str, count: int) -> Iterator[Any]:
    for number in range(count):
        if number % 7 == 0:
            time.sleep(0.05 if number % 140 == 70 else 0.004)  # at times nobody says anything
        yield f"{name}{number} "
    yield Usage(1, count)


@app.route("/texts")
def many_texts() -> Any:
    options: Dict[str, Any] = json.loads(request.args.get("options", "{}"))
    sources = {name: texts(name, int(request.args["count"])) for name in "abc"}
    return stream_response(multiplex(sources), **options)
