"""Relays what a scripted upstream says, called in each of the ways that there are."""

from __future__ import annotations

from functools import partial
from typing import Any

import ledger
import requests
from flask import Flask, request

from flask_llmstream import LLMStream, relay

app = Flask(__name__)
app.register_blueprint(ledger.blueprint)
# So long that whatever a provider says at once comes within it.
LLMStream(app, status_hold=5.0)

session = requests.Session()


def by_requests(url: str) -> Any:
    headers = {"Authorization": "Bearer sk-live-0123456789abcdef"}
    return session.post(
        url, data=request.get_data(), headers=headers, stream=True, timeout=(5, 30), allow_redirects=False
    )


def by_httpx(url: str) -> Any:
    import httpx

    client = httpx.Client(timeout=30)
    return client.send(client.build_request("POST", url, content=request.get_data()), stream=True)


WAYS = {"requests": by_requests, "httpx": by_httpx}


@app.route("/relay/<way>", methods=["GET", "POST"])
@app.route("/relay/<way>/<path:path>", methods=["GET", "POST"])
def relayed(way: str, path: str = "") -> Any:
    """``opened`` makes the call in the view; the others make it when the stream begins."""
    note = ledger.note_of(request.args["key"])
    names = ("heartbeat_interval", "max_duration", "status_hold")
    options = {name: float(value) for name, value in request.args.items() if name in names}
    url = request.args["url"]
    upstream = by_requests(url) if way == "opened" else partial(WAYS[way], url)
    return relay(
        upstream, on_end=note.end, hide_usage="hide" in request.args, headers={"X-Mine": "kept"}, **options
    )


@app.route("/wrong")
def wrong() -> Any:
    return relay(lambda: ["tokens"])
