"""An app that relays a model and tells its key and prompt to nobody."""

from __future__ import annotations

from typing import Any, Iterator

import requests
from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, stream_response
from flask_llmstream.upstream import adapt, openai_chat

#: What must never reach a client.
KEY = "sk-live-0123456789abcdef0123456789"
PROMPT = "what the patient told the doctor in confidence"

app = Flask(__name__)
LLMStream(app)


def _messages() -> Any:
    return [{"role": "user", "content": PROMPT}]


@app.route("/chat/<script>")
def chat(script: str) -> Any:
    source = openai_chat(
        script,
        _messages(),
        base_url=request.args["upstream"],
        api_key=KEY,
        timeout=(2.0, float(request.args.get("timeout", 10))),
    )
    return stream_response(source, status_hold=float(request.args.get("hold", 5)))


@app.route("/adapted/<script>")
def adapted(script: str) -> Any:
    """The same through the application's own call."""
    url = request.args["upstream"] + "/chat/completions"
    timeout = float(request.args.get("timeout", 10))

    def generate() -> Iterator[Any]:
        response = requests.post(
            url,
            json={"model": script, "messages": _messages(), "stream": True},
            headers={"Authorization": "Bearer " + KEY},
            timeout=(2.0, timeout),
            stream=True,
        )
        yield from adapt(response)

    return stream_response(generate(), status_hold=float(request.args.get("hold", 5)))


@app.route("/alive")
def alive() -> Any:
    return jsonify(alive=True)
