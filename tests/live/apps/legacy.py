"""A Flask app as it was before: routes that stream by old recipes, and one added line."""

from __future__ import annotations

import http.client
import json
import logging
import threading
from typing import Any, Callable, Dict, Iterator
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import requests
import urllib3
from flask import Flask, Response, g, jsonify, request, stream_with_context

from flask_llmstream import LLMStream

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0.3, status_hold=0.3)

notes: Dict[str, Dict[str, Any]] = {}
local = threading.local()
BODY = json.dumps({"model": "scripted", "messages": [], "stream": True})
JSON = {"Content-Type": "application/json"}


def by_requests(url: str) -> Iterator[bytes]:
    response = requests.post(url, data=BODY, headers=JSON, stream=True)
    for line in response.iter_lines(chunk_size=1):
        if line:
            yield line + b"\n\n"


def by_requests_json(url: str) -> Iterator[bytes]:
    """Ask without streaming: blocked until the whole answer is there."""
    yield b"data: %s\n\n" % requests.post(url, data=BODY, headers=JSON).content


def by_session(url: str) -> Iterator[bytes]:
    with requests.Session() as session:
        with session.post(url, data=BODY, headers=JSON, stream=True) as response:
            for line in response.iter_lines(chunk_size=1):
                if line:
                    yield line + b"\n\n"


def by_urllib3(url: str) -> Iterator[bytes]:
    pool = urllib3.PoolManager()
    response = pool.request("POST", url, body=BODY, headers=JSON, preload_content=False)
    for line in iter(response._fp.readline, b""):  # what a file object over it comes to
        if line.strip():
            yield line + b"\n"


def by_http_client(url: str) -> Iterator[bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
    connection.request("POST", parts.path, BODY, JSON)
    for line in iter(connection.getresponse().readline, b""):
        if line.strip():
            yield line + b"\n"


def by_urllib(url: str) -> Iterator[bytes]:
    with urlopen(Request(url, BODY.encode(), JSON)) as response:
        for line in response:
            if line.strip():
                yield line + b"\n"


def by_httpx(url: str) -> Iterator[bytes]:
    import httpx

    with httpx.stream("POST", url, content=BODY, headers=JSON, timeout=60) as response:
        for line in response.iter_lines():
            if line:
                yield line.encode() + b"\n\n"


def by_openai(url: str) -> Iterator[str]:
    import openai

    client = openai.OpenAI(base_url=url.rpartition("/chat/")[0], api_key="none")
    messages: Any = [{"role": "user", "content": "hi"}]
    for chunk in client.chat.completions.create(model="scripted", messages=messages, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            yield "data: " + json.dumps(chunk.choices[0].delta.content) + "\n\n"


def by_anthropic(url: str) -> Iterator[str]:
    import anthropic

    client = anthropic.Anthropic(base_url=url.rpartition("/v1/")[0], api_key="none")
    messages: Any = [{"role": "user", "content": "hi"}]
    with client.messages.stream(model="scripted", max_tokens=9, messages=messages) as stream:
        for text in stream.text_stream:
            yield "data: " + json.dumps(text) + "\n\n"


WAYS: Dict[str, Callable[[str], Iterator[Any]]] = {
    name[3:]: value for name, value in list(globals().items()) if name.startswith("by_")
}


@app.route("/legacy/<way>")
def legacy(way: str) -> Response:
    url, key = request.args["url"], request.args["key"]
    note = notes[key] = {"raised": [], "cleaned_up": 0, "same": None}
    g.key = local.key = key

    def generate() -> Iterator[Any]:
        try:
            for piece in WAYS[way](url):
                note["same"] = [g.key == key, local.key == key, request.args["key"] == key]
                yield piece
        except BaseException as error:
            note["raised"].append(type(error).__name__)
            raise
        finally:
            note["cleaned_up"] += 1

    response = Response(stream_with_context(generate()), mimetype="text/event-stream")
    # As old recipes say; the first is forbidden to an app.
    response.headers["Connection"] = "keep-alive"
    response.headers["Cache-Control"] = "no-cache"
    response.call_on_close(lambda: note.update(closed=note.get("closed", 0) + 1))
    return response


@app.route("/early/<key>")
def early(key: str) -> Response:
    """Call the model in the view, before there is a response."""
    answer = requests.post(request.args["url"], data=BODY, headers=JSON, stream=True)
    note = notes[key] = {"raised": [], "cleaned_up": 0, "same": None}

    def generate() -> Iterator[bytes]:
        try:
            for line in answer.iter_lines(chunk_size=1):
                if line:
                    yield line + b"\n\n"
        finally:
            note["cleaned_up"] += 1

    return Response(generate(), mimetype="text/event-stream")


@app.route("/lines/<key>")
def lines(key: str) -> Response:
    """NDJSON: nothing may be added to it."""
    note = notes[key] = {"raised": [], "cleaned_up": 0, "same": None}

    def generate() -> Iterator[str]:
        try:
            for piece in WAYS["requests"](request.args["url"]):
                yield json.dumps(piece.decode()) + "\n"
        finally:
            note["cleaned_up"] += 1

    return Response(stream_with_context(generate()), mimetype="application/x-ndjson")


@app.route("/broken")
def broken() -> Response:
    def generate() -> Iterator[str]:
        if "first" not in request.args:
            yield "data: 1\n\n"
        raise RuntimeError("told to")

    return Response(stream_with_context(generate()), mimetype="text/event-stream")


@app.route("/hello")
def hello() -> str:
    return "hello"


@app.route("/notes/<key>")
def show_notes(key: str) -> Any:
    return jsonify(notes.get(key, {"ends": [], "cleaned_up": 0}))
