"""A form that a scripted model fills in, as changes of its JSON."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Dict, List

from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, stream_response
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0.2)

ends: Dict[str, List[Any]] = defaultdict(list)

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "born": {"type": "integer"}},
    "required": ["name", "born"],
}


@app.route("/notes/<key>")
def notes(key: str) -> Any:
    return jsonify(ends=ends[key])


@app.route("/form/<key>", methods=["POST"])
def form(key: str) -> Any:
    asked = request.get_json()
    source = openai_chat("scripted", [{"role": "user", "content": key}], base_url=asked["base_url"])
    response = stream_response(source, **asked["options"])
    response.llmstream.on_end(lambda end: ends[key].append({
        "reason": end.reason, "text": end.text, "value": end.value,
        "errors": getattr(end.error, "errors", None), "output_tokens": end.usage and end.usage.output_tokens,
    }))
    return response


@app.route("/checked/<key>", methods=["POST"])
def checked(key: str) -> Any:
    asked = request.get_json()
    asked["options"]["schema"] = SCHEMA
    return form(key)
