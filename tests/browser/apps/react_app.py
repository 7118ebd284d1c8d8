"""Pages with React, and the routes that they read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List

from flask import Flask, Response, jsonify, request

from flask_llmstream import LLMStream, current_stream, resume_response, stream_response
from flask_llmstream.upstream import openai_chat

app = Flask(__name__)
app.secret_key = "of the tests alone"
LLMStream(app, event_log=os.environ["EVENT_LOG"], grace=30.0)
#: Name -> file, of the pages and the bundles.
PAGES: Dict[str, str] = json.loads(os.environ["PAGES"])
BUNDLES: Dict[str, str] = json.loads(os.environ["BUNDLES"])


@app.route("/page/<name>/<bundle>")
def page(name: str, bundle: str) -> Any:
    text = Path(PAGES[name]).read_text(encoding="utf-8")
    return text.replace("/static/react.js", f"/bundles/{bundle}.js")


@app.route("/bundles/<name>.js")
def bundles(name: str) -> Any:
    return Response(Path(BUNDLES[name]).read_bytes(), content_type="text/javascript")


def ask(messages: List[Any]) -> Any:
    return openai_chat("any", messages, base_url=os.environ["UPSTREAM"])


@app.route("/chat", methods=["GET", "POST"])
def chat() -> Any:
    source = ask([{"role": "user", "content": json.dumps(request.get_json(silent=True))}])
    structured, resumable = "structured" in request.args, "plain" not in request.args
    return stream_response(source, structured=structured, resumable=resumable, on_disconnect="cancel")


def folder_of(chat_id: str) -> Path:
    return Path(os.environ["CHATS"]) / f"{chat_id}.json"


def answer(chat_id: str, messages: List[Any]) -> Any:
    def store(end: Any) -> None:
        parts = [{"type": "text", "text": end.text}]
        said = [*messages, {"id": message_id, "role": "assistant", "parts": parts}]
        folder_of(chat_id).write_text(json.dumps(said))

    message_id = current_stream.id
    current_stream.on_end(store)
    yield from ask([
        {"role": each["role"], "content": "".join(part.get("text", "") for part in each["parts"])}
        for each in messages
    ])


@app.route("/api/chat", methods=["POST"])
def ai_chat() -> Any:
    body = request.get_json()
    folder_of(body["id"]).write_text(json.dumps(body["messages"]))
    return stream_response(
        answer(body["id"], body["messages"]), format="ai-sdk", resumable=True, resume_key=body["id"]
    )


@app.route("/api/chat/<chat_id>/stream")
def running(chat_id: str) -> Any:
    return resume_response(chat_id)


@app.route("/api/chat/<chat_id>")
def stored(chat_id: str) -> Any:
    file = folder_of(chat_id)
    return jsonify(json.loads(file.read_text()) if file.exists() else [])
