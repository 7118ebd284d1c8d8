"""An app with streams that keep a pace, and streams that are held up by their reader."""

from __future__ import annotations

import _socket
import contextlib
import os
import socket
import time
from collections import Counter
from typing import Any, Callable
from typing import Counter as Counts
from typing import Dict, Iterator

from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, current_stream, stream, stream_response
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0.05, status_hold=0, max_delay=0.05)

#: Items taken from the sources, and sources that have ended, by the name of the stream.
taken: Counts[str] = Counter()
ended: Counts[str] = Counter()


@app.route("/steady")
@stream
def steady() -> Iterator[Any]:
    """An item at a time, at a fixed pace."""
    for number in range(int(request.args["count"])):
        yield str(number)
        time.sleep(float(request.args["pause"]))


@app.route("/quiet")
@stream
def quiet() -> Iterator[Any]:
    """Nothing but heartbeats."""
    time.sleep(float(request.args["seconds"]))
    yield "end"


def endless(name: str, text: str) -> Iterator[Any]:
    """As fast as it can."""
    while True:
        taken[name] += 1
        yield text


def sending(name: str, text: str) -> Iterator[Any]:
    """The same, written from inside the generator."""
    while True:
        taken[name] += 1
        current_stream.send(text)
        yield ""


def held(name: str, text: str) -> Iterator[Any]:
    """Much text that a chunker holds, then silence: what is late is written for us."""
    while True:
        for _ in range(8):
            taken[name] += 1
            yield text
        time.sleep(0.2)


def brimful(name: str, text: str) -> Iterator[Any]:
    """Silence behind a connection that takes not one byte more: a heartbeat would have to wait."""
    fd = request.environ["gunicorn.socket"].fileno()
    # The server's socket object, and whatever gevent made of it, is passed over: nothing here may
    # wait, and nobody will read what is put on the connection.
    with contextlib.closing(_socket.socket(fileno=os.dup(fd))) as raw:
        taken[name] += 1
        yield text[:1000]
        while True:
            for size in (65536, 1):
                with contextlib.suppress(BlockingIOError):
                    while raw.send(b"x" * size, socket.MSG_DONTWAIT):
                        pass
            time.sleep(0.02)


_WAYS: Dict[str, Callable[[str, str], Iterator[Any]]] = {
    "endless": endless, "sending": sending, "held": held, "brimful": brimful,
}


@app.route("/slow/<way>/<name>")
def slow(way: str, name: str) -> Any:
    """A stream whose reader does not read."""

    def generate() -> Iterator[Any]:
        try:
            yield from _WAYS[way](name, "x" * int(request.args.get("size", 60000)))
        finally:
            ended[name] += 1

    return stream_response(generate(), chunk="line" if way == "held" else None)


@app.route("/relay")
def relay() -> Any:
    return stream_response(openai_chat(request.args["model"], [], base_url=request.args["upstream"]))


@app.route("/counts")
def counts() -> Any:
    return jsonify(taken=dict(taken), ended=dict(ended))
