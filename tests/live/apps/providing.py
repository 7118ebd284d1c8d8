"""Asks a scripted upstream as each provider is asked: by our call, or by its official SDK."""

from __future__ import annotations

import functools
import logging
from typing import Any, Callable, Dict, Iterator

from flask import Flask, request
from ledger import blueprint, noted

from flask_llmstream import LLMStream, stream
from flask_llmstream.upstream import (
    adapt,
    anthropic_messages,
    gemini_chat,
    ollama_chat,
    openai_chat,
    openai_responses,
)

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
LLMStream(app)
app.register_blueprint(blueprint)

MESSAGES = [{"role": "user", "content": "Hello"}]

OURS: Dict[str, Callable[[str], Any]] = {
    "openai": lambda origin: openai_chat("m", MESSAGES, base_url=origin + "/v1"),
    "openai-responses": lambda origin: openai_responses("m", "Hello", base_url=origin + "/v1"),
    "anthropic": lambda origin: anthropic_messages("m", MESSAGES, max_tokens=9, base_url=origin),
    "ollama": lambda origin: ollama_chat("m", MESSAGES, base_url=origin),
    "gemini": lambda origin: gemini_chat("m", "Hello", base_url=origin),
}


@functools.lru_cache(maxsize=None)
def client(name: str, origin: str) -> Any:
    if name == "openai":
        import openai

        return openai.OpenAI(base_url=origin + "/v1", api_key="none")
    if name == "anthropic":
        import anthropic

        return anthropic.Anthropic(base_url=origin, api_key="none")
    if name == "ollama":
        import ollama

        return ollama.Client(origin)
    if name == "langchain":
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(model="m", base_url=origin + "/v1", api_key="none")
    from google import genai

    return genai.Client(api_key="none", http_options={"base_url": origin})


SDKS: Dict[str, Callable[[str], Any]] = {
    "openai": lambda origin: client("openai", origin).chat.completions.create(
        model="m", messages=MESSAGES, stream=True
    ),
    "openai-responses": lambda origin: client("openai", origin).responses.create(
        model="m", input="Hello", stream=True
    ),
    "anthropic": lambda origin: client("anthropic", origin).messages.create(
        model="m", messages=MESSAGES, max_tokens=9, stream=True
    ),
    "ollama": lambda origin: client("ollama", origin).chat("m", MESSAGES, stream=True),
    "gemini": lambda origin: client("gemini", origin).models.generate_content_stream(
        model="m", contents="Hello"
    ),
    "langchain": lambda origin: client("langchain", origin).stream("Hello"),
}


@app.route("/ask/<way>/<provider>", methods=["POST"])
@stream(status_hold=0.5)
def ask(way: str, provider: str) -> Iterator[Any]:
    asked = request.get_json()
    with noted(asked["key"]):
        origin = asked["origin"]
        yield from OURS[provider](origin) if way == "ours" else adapt(SDKS[provider](origin))
