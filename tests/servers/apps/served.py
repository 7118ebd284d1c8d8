"""What every server and every proxy in these tests serves.

``LLMSTREAM_TEST_NOTES`` names a file to which each generator adds a line at its end.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from typing import Any, Iterator

import requests
from flask import Flask, Response, jsonify, request

from flask_llmstream import LLMStream, StreamEnd, current_stream, stream
from flask_llmstream.disconnect import find_peer

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0.5, status_hold=0.3)


def note(key: str, what: str, **facts: Any) -> None:
    """Add a line to the notes; one short write, so that lines of several processes stay whole."""
    path = os.environ.get("LLMSTREAM_TEST_NOTES")
    if path:
        facts.update(key=key, what=what, at=time.monotonic(), pid=os.getpid())
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, (json.dumps(facts) + "\n").encode())
        finally:
            os.close(fd)


def produce_tokens(key: str, count: int, interval: float) -> Iterator[str]:
    """Yield *count* tokens, one every *interval* seconds by a clock that does not drift."""
    try:
        due = time.monotonic()
        for number in range(count):
            yield f"t{number} "
            due += interval
            time.sleep(max(0.0, due - time.monotonic()))
    finally:
        note(key, "finally")


def produce_relayed(key: str, upstream: str) -> Iterator[str]:
    """Yield what the scripted upstream sends, called as an app of 2019 would."""
    try:
        answer = requests.get(upstream, stream=True)
        for line in answer.iter_lines():
            if line.startswith(b"data: {"):
                yield json.loads(line[6:].decode())["choices"][0]["delta"].get("content", "")
    finally:
        note(key, "finally")


def ended(key: str) -> Any:
    def note_end(end: StreamEnd) -> None:
        note(key, "end", reason=end.reason)

    return note_end


@app.route("/hello", methods=["GET", "POST"])
def hello() -> str:
    return "hello"


@app.route("/peer")
def peer() -> Any:
    """What the table of servers finds: the row, and whether small packets leave at once."""
    found, at_once = find_peer(request.environ, None), None
    if found.fd is not None:
        with socket.socket(fileno=os.dup(found.fd)) as sock:
            if sock.family != socket.AF_UNIX:
                at_once = bool(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
    return jsonify(server=found.server, at_once=at_once)


@app.route("/tokens")
@stream
def tokens() -> Iterator[Any]:
    key = request.args.get("key", "")
    current_stream.on_end(ended(key))
    count, interval = int(request.args.get("n", 8)), float(request.args.get("interval", 0.1))
    yield from produce_tokens(key, count, interval)


@app.route("/crowded")
@stream(heartbeat_interval=0.01)
def crowded() -> Iterator[Any]:
    """Pieces of all sizes, so close to heartbeats that the two would meet if they could."""
    for number in range(60):
        time.sleep(number % 4 * 0.006)
        yield crowded_text(number)


def crowded_text(number: int) -> str:
    return f"<{number}" + "x" * (200000 if number % 20 == 19 else number * 37 % 3000) + ">"


@app.route("/silent")
@app.route("/silent-first")
@stream
def silent() -> Iterator[Any]:
    key = request.args["key"]
    current_stream.on_end(ended(key))
    yield from produce_relayed(key, request.args["upstream"])


def legacy(texts: Iterator[str]) -> Iterator[str]:
    for text in texts:
        yield "data: " + json.dumps({"text": text}) + "\n\n"
    yield "data: [DONE]\n\n"


@app.route("/legacy-tokens")
def legacy_tokens() -> Any:
    count, interval = int(request.args.get("n", 8)), float(request.args.get("interval", 0.1))
    source = produce_tokens(request.args.get("key", ""), count, interval)
    return Response(legacy(source), mimetype="text/event-stream")


@app.route("/legacy-silent")
def legacy_silent() -> Any:
    source = produce_relayed(request.args["key"], request.args["upstream"])
    return Response(legacy(source), mimetype="text/event-stream")
