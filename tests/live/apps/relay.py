"""Passes on what a scripted upstream says, by each of the ways that an app may call it."""

from __future__ import annotations

import functools
import logging
from typing import Any, Iterator

import requests
from flask import Flask, request
from ledger import blueprint, noted

from flask_llmstream import LLMStream, stream
from flask_llmstream.upstream import adapt, openai_chat

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
LLMStream(app)
app.register_blueprint(blueprint)


@functools.lru_cache(maxsize=None)
def sdk(base_url: str) -> Any:
    from openai import OpenAI

    return OpenAI(base_url=base_url, api_key="none")


def call(how: str, base_url: str, prompt: str) -> Iterator[Any]:
    messages = [{"role": "user", "content": prompt}]
    if how == "openai_chat":
        return openai_chat("scripted", messages, base_url=base_url)
    if how == "requests":
        body = {"model": "scripted", "messages": messages, "stream": True}
        return adapt(requests.post(base_url + "/chat/completions", json=body, stream=True))
    chunks = sdk(base_url).chat.completions.create(model="scripted", messages=messages, stream=True)
    return adapt(chunks)


@app.route("/relay/<how>", methods=["POST"])
@stream(status_hold=0.5)
def relay(how: str) -> Iterator[Any]:
    asked = request.get_json()
    with noted(asked["key"]):
        yield from call(how, asked["base_url"], asked["key"])
