"""Pages with ``<llm-stream>`` under a strict Content-Security-Policy, and the streams that they show."""

from __future__ import annotations

import os
import time
from typing import Any, Iterator

from flask import Flask, Response, request

from flask_llmstream import LLMStream, stream_response
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
app.secret_key = "for cursors and tickets"
LLMStream(app, event_log="memory://", heartbeat_interval=5)

#: Nothing inline, no eval, no image, no style but by the element itself, no HTML but of DOMPurify's making.
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; img-src 'self';"
    " require-trusted-types-for 'script'; trusted-types "
)


@app.route("/page")
def page() -> Any:
    """Show the markup of the query; test code, for 127.0.0.1 alone."""
    body = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Answers</title>
        <main><h1>Answers</h1>{request.args.get("markup", "")}</main>
        <script type="module" src="/llmstream/llmstream.js"></script></html>"""
    response = Response(body)
    response.headers["Content-Security-Policy"] = POLICY + request.args.get("types", "dompurify")
    return response


@app.before_request
def refuse() -> Any:
    """Act like an app that wants a token with each request that changes something."""
    if request.method == "DELETE" and "refuse" in request.cookies:
        return "a token is missing", 400
    return None


@app.route("/chat", methods=["GET", "POST"])
def chat() -> Any:
    """Ask the upstream, whose script the test has written."""
    question = request.get_data(as_text=True)
    source = openai_chat("scripted", [{"role": "user", "content": question}], base_url=os.environ["UPSTREAM"])
    return stream_response(source, resumable=True)


@app.route("/many")
def many() -> Any:
    """Send so many tokens, so many a second."""
    count, rate = int(request.args["count"]), float(request.args["rate"])

    def tokens() -> Iterator[str]:
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            yield "words \n" if number % 40 == 39 else f"tok{number % 10} "

    return stream_response(tokens())
