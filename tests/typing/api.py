"""Never run: mypy reads how a strict user's code sees the public names."""

from __future__ import annotations

from typing import Iterator, Union

import requests
from flask import Flask, request
from flask.typing import ResponseReturnValue

from flask_llmstream import (
    Comment,
    Custom,
    Event,
    LLMStream,
    LLMStreamError,
    StreamCancelled,
    StreamEnd,
    TextDelta,
    UpstreamError,
    Usage,
    current_stream,
    multiplex,
    resume_response,
    stream,
    stream_response,
)
from flask_llmstream.client import StreamClient
from flask_llmstream.upstream import adapt, openai_chat

app = Flask(__name__)
LLMStream(app, heartbeat_interval=5.0)
later = LLMStream()
later.init_app(app)


@app.route("/bare")
@stream
def bare() -> Iterator[Union[str, TextDelta, Event, Comment, Custom]]:
    yield "text"
    yield TextDelta("text")
    yield Event({"any": "json"}, event="name", id="1", retry=1000)
    yield Comment("note")
    yield Custom("name", [1, 2])


@app.route("/options")
@stream(status_hold=0.5, on_disconnect="cancel")
def with_options() -> Iterator[str]:
    def ended(end: StreamEnd) -> None:
        usage: Union[Usage, None] = end.usage
        print(end.reason, end.duration, usage and usage.output_tokens)

    current_stream.on_end(ended)
    with current_stream.shield():
        yield current_stream.id
    try:
        yield "more"
    except StreamCancelled as cancelled:
        print(cancelled.reason)
        raise


@app.route("/response")
def response() -> ResponseReturnValue:
    answer: ResponseReturnValue = stream_response(openai_chat("model", []), headers={"X-Name": "value"})
    return answer


@app.route("/running/<chat>")
def running(chat: str) -> ResponseReturnValue:
    answer: ResponseReturnValue = resume_response(chat, format="ai-sdk", format_options={"version": 7})
    return answer


@app.route("/form")
@stream(schema={"type": "object"}, structured={"cut": "error"}, validate="end")
def form() -> Iterator[str]:
    current_stream.on_end(lambda end: print(end.value))
    yield "{}"


@app.route("/several")
def several() -> ResponseReturnValue:
    sources = {"one": openai_chat("model", []), "more": ["text"]}
    answer: ResponseReturnValue = stream_response(multiplex(sources, max_pending=8), format="frames")
    return answer


@app.route("/adapted")
@stream
def adapted() -> Iterator[object]:
    with requests.post("http://127.0.0.1:1/v1/chat/completions", json=request.json, stream=True) as answer:
        yield from adapt(answer)


def read() -> str:
    try:
        with StreamClient("http://127.0.0.1:1/chat", json={}) as events:
            for event in events:
                name: Union[str, None] = event.event
                print(name, event.data)
        with StreamClient("http://127.0.0.1:1/chat", json={}) as events:
            return "".join(events.text())
    except UpstreamError as error:
        status: Union[int, None] = error.status
        return f"{status} {error.code} {error.retryable}"
    except LLMStreamError as error:
        return str(error)
