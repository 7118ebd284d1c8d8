"""Short streams with pauses by chance, and a plain view that must come to no harm between them."""

from __future__ import annotations

import contextlib
import logging
import random
import socket
import threading
import time
from typing import Any, Dict, Iterator

from flask import Flask, g, jsonify, request
from ledger import blueprint, note_of

from flask_llmstream import LLMStream, current_stream, stream_response

logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
LLMStream(app, status_hold=0.004, heartbeat_interval=0.003)
app.register_blueprint(blueprint)

canaries: Dict[str, int] = {"begun": 0, "ended": 0}


def pause(chance: random.Random) -> None:
    """Block for up to 3 ms, in one of the ways that generators block."""
    seconds = chance.choice([0.0, 0.0005, 0.001, 0.003])
    if chance.random() < 0.5:
        time.sleep(seconds)
        return
    reader, writer = socket.socketpair()
    with reader, writer:
        timer = threading.Timer(seconds, answer, [writer])
        timer.start()
        reader.makefile("rb", buffering=0).read(1)


def answer(writer: socket.socket) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it any more
        writer.send(b"x")


@app.route("/few")
def few() -> Any:
    key = request.args["key"]
    chance = random.Random(key)
    note = note_of(key)

    def say() -> Iterator[str]:
        note.started += 1
        try:
            for number in range(int(request.args["count"])):
                pause(chance)
                yield f"{key}.{number} "
            pause(chance)
        finally:
            with current_stream.shield():
                pause(chance)
                note.cleaned_up += 1

    response = stream_response(say())
    response.llmstream.on_end(note.end)
    return response


@app.route("/canary/<number>")
def canary(number: str) -> str:
    """Block a little: whatever is thrown too late would hit this."""
    assert "number" not in g
    g.number = number
    canaries["begun"] += 1
    pause(random.Random(number))
    canaries["ended"] += 1
    return f"canary {g.number}"


@app.route("/canaries")
def show_canaries() -> Any:
    return jsonify(canaries)
