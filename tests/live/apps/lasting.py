"""Streams that outlast their worker, in both styles, with notes in a file that survives it."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any, Iterator

import requests
from flask import Flask, Response, request

from flask_llmstream import LLMStream, current_stream, stream

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
settings = {"heartbeat_interval": 0.5, "status_hold": 0.2}
LLMStream(app, **dict(settings, **json.loads(os.environ.get("SETTINGS", "{}"))))


def note(text: str) -> None:
    with open(os.environ["NOTES"], "a") as notes:
        notes.write(text + "\n")


def produce(how: str) -> Iterator[str]:
    note(f"{how} began in {os.getpid()}")
    try:
        if how == "ticking":
            while True:
                yield "tick"
                time.sleep(0.05)
        response = requests.post(request.args["url"], json={"stream": True}, stream=True)
        for line in response.iter_lines(chunk_size=1):
            yield line.decode()
    finally:
        note(f"{how} cleaned up")


@app.route("/stream/<how>")
@stream
def streaming(how: str) -> Iterator[str]:
    current_stream.on_end(lambda end: note(f"{how} ended: {end.reason}"))
    yield from produce(how)


@app.route("/legacy/<how>")
def legacy(how: str) -> Any:
    url = request.args.get("url", "")

    def generate() -> Iterator[bytes]:
        note(f"legacy {how} began in {os.getpid()}")
        try:
            yield b"data: first\n\n"
            if how == "ticking":
                while True:
                    yield b"data: tick\n\n"
                    time.sleep(0.05)
            requests.post(url, json={"stream": True}).content
        finally:
            note(f"legacy {how} cleaned up")

    return Response(generate(), mimetype="text/event-stream")


@app.route("/flood")
@stream
def flood() -> Iterator[str]:
    """More than the buffers on the way can hold."""
    current_stream.on_end(lambda end: note(f"flood ended: {end.reason} after {end.duration:.1f} s"))
    for _ in range(int(request.args["count"])):
        yield "x" * 10000


@app.route("/legacy-flood")
def legacy_flood() -> Any:
    count = int(request.args["count"])

    def generate() -> Iterator[bytes]:
        try:
            for _ in range(count):
                yield b"data: %s\n\n" % (b"x" * 10000)
        finally:
            note("legacy flood cleaned up")

    return Response(generate(), mimetype="text/event-stream")


@app.route("/short")
@stream
def short() -> Iterator[str]:
    """Over before anybody would have to end it."""
    yield "begun"
    time.sleep(float(request.args["seconds"]))
    yield "over"


@app.route("/pid")
def pid() -> str:
    return str(os.getpid())
