"""A plain Flask app without the library: what the live server kit is tried with."""

from __future__ import annotations

import os
import time
from typing import Iterator

from flask import Flask, Response, request

app = Flask(__name__)


@app.route("/ticks")
def ticks() -> Response:
    count = int(request.args.get("count", 3))
    pause = float(request.args.get("pause", 0.05))

    def generate() -> Iterator[bytes]:
        try:
            for number in range(count):
                yield b"data: %d\n\n" % number
                time.sleep(pause)
        finally:
            print("ticks ended", flush=True)

    return Response(generate(), mimetype="text/event-stream")


@app.route("/echo", methods=["POST"])
def echo() -> Response:
    return Response(request.get_data(), mimetype="application/octet-stream")


@app.route("/environment/<name>")
def environment(name: str) -> Response:
    return Response(os.environ.get(name, "unset"))


@app.route("/crash")
def crash() -> Response:
    def generate() -> Iterator[bytes]:
        yield b"first"
        raise RuntimeError("told to")

    return Response(generate(), mimetype="text/plain")
