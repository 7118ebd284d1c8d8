"""An app whose streams are seen: on the live page, in the log and in traces that a file gets."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, Iterator, Sequence

from flask import Flask, Response, jsonify, request
from opentelemetry import trace
from opentelemetry.propagate import set_global_textmap
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flask_llmstream import LLMStream, current_stream, multiplex, stream, stream_response
from flask_llmstream.upstream import openai_chat


class ToFile(SpanExporter):
    """Writes a line for each span that has ended."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        for span in spans:
            line = json.dumps({
                "name": span.name, "kind": span.kind.name, "status": span.status.status_code.name,
                "attributes": dict(span.attributes or {}), "events": [each.name for each in span.events],
                "trace": format(span.context.trace_id, "032x"), "id": format(span.context.span_id, "016x"),
                "parent": format(span.parent.span_id, "016x") if span.parent else None,
            })
            with open(os.environ["SPANS"], "a", encoding="utf-8") as file:
                file.write(line + "\n")
        return SpanExportResult.SUCCESS


class Lines(logging.Handler):
    """Writes what a record says, and what a formatter for JSON would find on it."""

    def emit(self, record: logging.LogRecord) -> None:
        found = {"name": record.name, "message": record.getMessage()}
        for name in ("stream_id", "llmstream"):
            found[name] = getattr(record, name, None)
        sys.stderr.write("LOGGED " + json.dumps(found) + "\n")


logging.getLogger("flask_llmstream").addHandler(Lines())
logging.getLogger("flask_llmstream").setLevel(logging.INFO)

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ToFile()))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("app")

app = Flask(__name__)
app.secret_key = "a secret of the tests"
settings = {
    "heartbeat_interval": 0, "status_hold": 0.2, "grace": 30.0, "live": True, "log_streams": True,
    "otel": True, "metrics": True,
}
settings.update(json.loads(os.environ["SETTINGS"]))
LLMStream(app, authorize=lambda what: what == "metrics" or request.args.get("who") == "operator", **settings)
set_global_textmap(TraceContextTextMapPropagator())  # chosen by the app


@app.before_request
def begin_span() -> None:
    """As an instrumentation of Flask does: current while the view runs, and not when its generator does."""
    request.environ["a.span"] = tracer.start_as_current_span("request", kind=trace.SpanKind.SERVER)
    request.environ["a.span"].__enter__()


@app.after_request
def name_worker(response: Any) -> Any:
    response.headers["X-Worker"] = str(os.getpid())
    return response


@app.teardown_request
def end_span(error: Any) -> None:
    span = request.environ.pop("a.span", None)
    if span is not None:
        span.__exit__(None, None, None)


def slowly() -> Iterator[str]:
    yield "A word that is nobody's business. "
    while True:
        time.sleep(0.02)
        yield "x"


@app.route("/slow/<who>")
@stream
def slow(who: str) -> Any:
    return slowly()


@app.route("/held")
def held() -> Any:
    return stream_response(slowly(), resumable=True)


@app.route("/thinking")
@stream
def thinking() -> Iterator[str]:
    yield "a"
    while True:
        time.sleep(0.05)
        yield ""


@app.route("/left")
@stream
def left() -> Any:
    return thinking.__wrapped__()  # type: ignore[attr-defined]


@app.route("/say")
@stream(padding=100)
def say() -> Iterator[str]:
    """On gevent half of it is sent by the hub, when this blocks."""
    for _ in range(5):
        yield "piece "
        yield "and "
        time.sleep(0.01)


@app.route("/half")
@stream(padding=100, chunk="sentence", max_delay=0.02)
def half() -> Iterator[str]:
    """The ticker sends what is held, behind the padding."""
    yield "half a"
    time.sleep(0.2)


@app.route("/fails")
@stream
def fails() -> Iterator[str]:
    yield "half"
    raise ValueError("the prompt was: secret")


@app.route("/old")
def old() -> Any:
    def lines() -> Iterator[bytes]:
        for number in range(3):
            time.sleep(0.01)
            yield b"data: %d\n\n" % number

    return Response(lines(), content_type="text/event-stream")


def call() -> Any:
    url = request.get_json()["url"]
    return openai_chat(
        base_url=url, api_key="k", model="m-1", messages=[{"role": "user", "content": "a secret question"}]
    )


@app.route("/ask", methods=["POST"])
@stream
def ask() -> Iterator[Any]:
    yield from call()


@app.route("/nested", methods=["POST"])
@stream
def nested() -> Iterator[Any]:
    with tracer.start_as_current_span("step"):
        yield from call()


@app.route("/both", methods=["POST"])
def both() -> Any:
    return stream_response(multiplex({"a": call(), "b": call()}))


@app.route("/id")
@stream
def id() -> Iterator[str]:
    yield current_stream.id


@app.route("/pid")
def pid() -> Any:
    return jsonify(pid=os.getpid())
