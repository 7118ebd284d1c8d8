"""A bare Flask app: generators that yield formatted events; with ``?context=1``, in the request's context."""

from __future__ import annotations

import json
import socket
from typing import Any, Iterator, List
from urllib.parse import urlsplit

import requests
from flask import Flask, Response, jsonify, request, stream_with_context

from benchmarks.apps.work import FRAMES, UPSTREAM_URL, closings, hot, idle, paced, steady

app = Flask(__name__)
app.secret_key = "of the benchmarks"  # or Flask leaves out the sessions that the other app has
session = requests.Session()


def respond(source: Iterator[str]) -> Response:
    """Answer with *source* as any Flask app does."""
    if "context" in request.args:
        source = stream_with_context(source)
    return Response(source, mimetype="text/event-stream")


@app.route("/paced")
def paced_view() -> Response:
    """Stream at a steady rate for ever, in turns with others."""
    return respond(paced(FRAMES, request.args["clock"]))


@app.route("/steady")
def steady_view() -> Response:
    """Stream at a steady rate for ever."""
    return respond(steady(FRAMES, request.args["clock"]))


@app.route("/hot")
def hot_view() -> Response:
    """Stream as fast as possible."""
    return respond(hot(FRAMES, int(request.args["count"])))


@app.route("/idle")
def idle_view() -> Response:
    """Send one event and go silent."""
    return respond(idle(FRAMES))


@app.route("/relay")
def relay_view() -> Response:
    """Pass on what a model says."""
    return respond(relay(request.query_string.decode()))


def relay(query: str) -> Iterator[str]:
    """Read a chat completion as most code does that uses no SDK."""
    body = {"model": query, "messages": [{"role": "user", "content": "Hello"}], "stream": True}
    with session.post(UPSTREAM_URL + "/chat/completions", json=body, stream=True) as response:
        for line in response.iter_lines():
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                break
            chunk: Any = json.loads(line[6:])
            text = chunk["choices"][0]["delta"].get("content")
            if text:
                yield f"data: {json.dumps({'text': text})}\n\n"


@app.route("/copy")
def copy_view() -> Response:
    """Start a server that only copies bytes, and tell its port: the least that a relay can do."""
    from gevent.server import StreamServer

    server = StreamServer(("127.0.0.1", 0), copy)
    server.start()
    copiers.append(server)
    return jsonify(server.server_port)


#: The servers that :func:`copy_view` has started.
copiers: List[Any] = []


def copy(client: socket.socket, address: Any) -> None:
    """Answer one request with the bytes of the model's answer, its framing included."""
    copy_answer(client, client.recv(65536).split(b" ")[1].partition(b"?")[2].decode())


def copy_answer(client: socket.socket, query: str) -> None:
    """Ask the model that *query* describes, and copy the bytes of its answer."""
    body = json.dumps({"model": query, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    upstream = urlsplit(UPSTREAM_URL)
    with socket.create_connection((upstream.hostname, upstream.port)) as model:
        for sock in (client, model):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        model.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: model\r\nContent-Length: %d\r\n\r\n" % len(body)
            + body
        )
        data = b""
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data = model.recv(65536)
            if not data:
                break
            client.sendall(data)


@app.route("/closings")
def closings_view() -> Response:
    """Tell when idle generators were closed."""
    return jsonify(closings)


@app.route("/hello")
def hello_view() -> str:
    """Answer without a stream."""
    return "hello"
