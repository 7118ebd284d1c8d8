"""A Flask app that Sentry watches, with a transport that keeps the events here.

``SENTRY_BY`` says how: ``flask`` by its integration, ``wsgi`` by its middleware alone.
"""

from __future__ import annotations

import os
import time
from typing import Any, Dict, Iterator, List

import requests
import sentry_sdk
from flask import Flask, Response, jsonify, request, stream_with_context
from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware
from sentry_sdk.transport import Transport

from flask_llmstream import LLMStream, stream

events: List[Any] = []


class Keeping(Transport):
    """Sends nothing."""

    def capture_event(self, event: Any) -> None:
        events.append(event)

    def capture_envelope(self, envelope: Any) -> None:
        event = envelope.get_event()
        if event is not None:
            events.append(event)


by_wsgi = os.environ["SENTRY_BY"] == "wsgi"
# The default integrations take log records for events too, and drop what they have seen.
sentry_sdk.init("http://key@127.0.0.1/1", transport=Keeping, auto_enabling_integrations=not by_wsgi)

app = Flask(__name__)
LLMStream(app, heartbeat_interval=0.2)
if by_wsgi:
    app.wsgi_app = SentryWsgiMiddleware(app.wsgi_app)  # type: ignore[method-assign]

#: How often the generator of each key was cleaned up.
ended: Dict[str, int] = {}


def produce() -> Iterator[str]:
    how = request.args["how"]
    try:
        if how != "first":
            yield "data: one\n\n"
        if how == "silent":
            requests.get(request.args["url"])
        while how == "talking":
            time.sleep(0.002)
            yield "data: more\n\n"
        raise RuntimeError(f"told to fail: {how}")
    finally:
        key = request.args["key"]
        ended[key] = ended.get(key, 0) + 1


app.add_url_rule("/stream", "own", stream(produce))


@app.route("/legacy")
def legacy() -> Response:
    return Response(stream_with_context(produce()), mimetype="text/event-stream")


@app.route("/facts/<key>")
def facts(key: str) -> Any:
    seen = [
        [each.get("type") for each in event.get("exception", {}).get("values", [])] or event.get("logentry")
        for event in events
    ]
    del events[:]
    return jsonify(events=seen, ended=ended.get(key, 0))
