"""Chats as the Vercel AI SDK asks for them: one route that answers, one that a page comes back to."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from flask import Flask, request, session

from flask_llmstream import LLMStream, resume_response, stream_response
from flask_llmstream.upstream import openai_chat

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
app.secret_key = "of the tests alone"
LLMStream(app, event_log=os.environ["LOG"], **json.loads(os.environ.get("SETTINGS", "{}")))


@app.route("/login/<user>")
def login(user: str) -> str:
    session["user_id"] = user
    return user


@app.route("/api/chat", methods=["POST"])
def chat() -> Any:
    body = request.get_json()
    answer = openai_chat("any", [{"role": "user", "content": "?"}], base_url=os.environ["UPSTREAM"])
    return stream_response(answer, format="ai-sdk", resumable=True, resume_key=body["id"])


@app.route("/api/chat/<chat_id>/stream")
def running(chat_id: str) -> Any:
    return resume_response(chat_id)


@app.route("/events/<chat_id>")
def events(chat_id: str) -> Any:
    return resume_response(chat_id, format="sse")


@app.after_request
def say_who(response: Any) -> Any:
    response.headers["Worker"] = str(os.getpid())
    return response
