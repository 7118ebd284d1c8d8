"""What the tests of faults serve: a relayed model, texts of its own, and what is known of both.

``SETTINGS`` (JSON) are the settings of the extension.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import Counter
from typing import Any
from typing import Counter as Counts
from typing import Dict, Iterator, List

from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, current_stream, stream_response
from flask_llmstream.ticker import current_ticker
from flask_llmstream.upstream import openai_chat

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
app.secret_key = "for cursors and tickets"
LLMStream(app, **json.loads(os.environ.get("SETTINGS", "{}")))

begun: Counts[str] = Counter()
#: The reasons with which the streams of a key have ended.
ends: Dict[str, List[str]] = {}


def respond(key: str, items: Any) -> Any:
    """Stream *items*, and take notes under *key*."""

    def noted() -> Iterator[Any]:
        begun[key] += 1
        current_stream.on_end(lambda end: ends.setdefault(key, []).append(end.reason))
        yield from items

    response = stream_response(noted(), **json.loads(request.args.get("options", "{}")))
    response.headers["X-Worker"] = str(os.getpid())
    return response


@app.route("/chat/<key>", methods=["GET", "POST"])
def chat(key: str) -> Any:
    """Relay the upstream; ``timeouts`` are (connect, read)."""
    asked = request.get_json() if request.method == "POST" else request.args
    timeouts = json.loads(request.args.get("timeouts", "[5, 30]"))
    source = openai_chat(
        asked["model"],
        [{"role": "user", "content": "what the patient told the doctor"}],
        base_url=request.args["upstream"],
        api_key="sk-live-0123456789abcdef",
        timeout=(timeouts[0], timeouts[1]),
    )
    return respond(key, source)


@app.route("/words/<key>")
def words(key: str) -> Any:
    """Say numbers, ``pause`` seconds apart; ``size`` pads each."""
    count, pause = int(request.args["count"]), float(request.args.get("pause", 0))
    padding = " " * int(request.args.get("size", 1))

    def say() -> Iterator[str]:
        for number in range(count):
            if number and pause:
                time.sleep(pause)
            yield f"{number}{padding}"

    return respond(key, say())


@app.route("/notes/<key>")
def notes(key: str) -> Any:
    """Say what is known of a key, and of this worker."""
    return jsonify(
        begun=begun[key], ends=ends.get(key, []), running=len(current_ticker()), worker=os.getpid(),
        fds=len(os.listdir("/proc/self/fd")), threads=threading.active_count(), wall=time.time(),
    )


@app.route("/plain")
def plain() -> Any:
    return jsonify(alive=True)
