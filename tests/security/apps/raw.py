"""Every kind of answer that the library gives, on the server that is named: ``python raw.py pywsgi``."""

from __future__ import annotations

import sys

if __name__ == "__main__" and sys.argv[1] == "pywsgi":
    from gevent import monkey

    monkey.patch_all()

import time
from typing import Any, Iterator

from flask import Flask, jsonify

from flask_llmstream import LLMStream, UpstreamError, stream_response

app = Flask(__name__)
app.secret_key = "of the tests alone"
LLMStream(app, event_log="memory://raw", status_hold=5.0, heartbeat_interval=0.05)


def words() -> Iterator[str]:
    for number in range(3):
        yield f"word {number} "
        time.sleep(0.02)


def broken() -> Iterator[str]:
    yield "half of an answer"
    time.sleep(0.1)
    raise ValueError("on purpose")


def refused() -> Iterator[str]:
    raise UpstreamError("on purpose", code="upstream_rate_limited", retry_after=3.0)
    yield ""


def slow() -> Iterator[str]:
    for number in range(400):
        yield f"word {number} "
        time.sleep(0.05)


@app.route("/words/<format>")
def say(format: str) -> Any:
    return stream_response(words(), format=format)


@app.route("/kept")
def kept() -> Any:
    return stream_response(words(), format="sse", resumable=True)


@app.route("/slow")
def say_slowly() -> Any:
    return stream_response(slow(), format="sse", resumable=True)


@app.route("/broken/<format>")
def break_off(format: str) -> Any:
    return stream_response(broken(), format=format)


@app.route("/refused")
def refuse() -> Any:
    return stream_response(refused())


@app.route("/plain")
def plain() -> Any:
    return jsonify(plain=True)


def serve(name: str) -> None:
    if name == "pywsgi":
        from gevent.pywsgi import WSGIServer

        server = WSGIServer(("127.0.0.1", 0), app, log=None)
        server.start()
        print(server.server_port, flush=True)
        server.serve_forever()
    else:
        from waitress import create_server

        running = create_server(app, host="127.0.0.1", port=0, threads=8)
        print(running.effective_port, flush=True)
        running.run()


if __name__ == "__main__":
    serve(sys.argv[1])
