"""Streams the local model, and tells what the library thinks it has sent."""

from __future__ import annotations

import os
from typing import Any, Dict, Iterator, List

from flask import Flask, jsonify, request

from flask_llmstream import LLMStream, StreamEnd, current_stream, stream
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
LLMStream(app)

ended: List[Dict[str, Any]] = []


def record(end: StreamEnd) -> None:
    usage = end.usage and {"input": end.usage.input_tokens, "output": end.usage.output_tokens}
    ended.append({"reason": end.reason, "text": end.text, "usage": usage})


@app.route("/chat", methods=["POST"])
@stream
def chat() -> Iterator[Any]:
    current_stream.on_end(record)
    call = request.get_json()
    yield from openai_chat("local", base_url=os.environ["LLMSTREAM_UPSTREAM_URL"], **call)


@app.route("/ended")
def show_ended() -> Any:
    return jsonify(ended)
