r"""A gateway in front of an LLM's provider: hides the key, counts what each team uses.

    export LLMSTREAM_UPSTREAM_URL=https://api.openai.com/v1 LLMSTREAM_UPSTREAM_KEY=...
    export GATEWAY_KEYS=search:gw-one,support:gw-two
    gunicorn -c gunicorn.conf.py --chdir examples/gateway app:app

    curl -N http://127.0.0.1:8000/v1/chat/completions -H 'Authorization: Bearer gw-one' \
         -H 'Content-Type: application/json' \
         -d '{"model": "default", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'

Clients of the provider need its address and a key of the gateway's, and nothing else::

    client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="gw-one")
"""

import functools
import hmac
import json
import os
import sqlite3

import requests
from flask import Flask, jsonify, request
from requests.adapters import HTTPAdapter

from flask_llmstream import LLMStream, relay

UPSTREAM_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1")
UPSTREAM_KEY = os.environ.get("LLMSTREAM_UPSTREAM_KEY", "none")
TEAMS = dict(pair.split(":", 1) for pair in os.environ.get("GATEWAY_KEYS", "demo:gw-demo").split(","))
LEDGER = os.environ.get("GATEWAY_LEDGER", "usage.sqlite3")

app = Flask(__name__)
LLMStream(app)

# Connections that are kept for the next call: a new one costs a TLS handshake.
session = requests.Session()
session.mount("https://", HTTPAdapter(pool_maxsize=100))
session.mount("http://", HTTPAdapter(pool_maxsize=100))


@app.route("/v1/chat/completions", methods=["POST"])
def chat_completions():
    team = team_of_caller()
    if team is None:
        return refuse("This key is not known here; ask for one.", 401)
    call = request.get_json(silent=True)
    if not isinstance(call, dict):
        return refuse("The body must be a JSON object.", 400)
    asked = (call.get("stream_options") or {}).get("include_usage", False)
    if call.get("stream"):
        call["stream_options"] = {**(call.get("stream_options") or {}), "include_usage": True}
    return relay(
        functools.partial(post, "/chat/completions", call),
        on_end=functools.partial(record, team, str(call.get("model"))),
        hide_usage=not asked,
    )


@app.route("/usage")
def usage():
    if team_of_caller() is None:
        return refuse("This key is not known here; ask for one.", 401)
    rows = ledger().execute(
        "SELECT team, count(*), sum(input), sum(output), sum(estimated) FROM calls GROUP BY team"
    )
    names = ("team", "calls", "input_tokens", "output_tokens", "estimated_calls")
    return jsonify([dict(zip(names, row)) for row in rows])


def post(path, call):
    headers = {"Authorization": "Bearer " + UPSTREAM_KEY, "Accept-Encoding": "identity"}
    return session.post(
        UPSTREAM_URL + path, json=call, headers=headers, stream=True, timeout=(5, 120), allow_redirects=False
    )


def record(team, model, end):
    """Write down what a call has cost, however it has ended."""
    if end.usage is not None:
        with ledger() as connection:
            connection.execute(
                "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?)",
                (team, model, end.usage.input_tokens or 0, end.usage.output_tokens or 0, end.estimated,
                 end.reason),
            )


def ledger():
    connection = sqlite3.connect(LEDGER, timeout=10)
    connection.execute(
        "CREATE TABLE IF NOT EXISTS calls (team, model, input INTEGER, output INTEGER, estimated, reason)"
    )
    return connection


def team_of_caller():
    key = request.headers.get("Authorization", "")[len("Bearer "):].encode()
    for team, known in TEAMS.items():
        if hmac.compare_digest(key, known.encode()):
            return team
    return None


def refuse(message, status):
    """Answer as the provider does, so that its clients understand."""
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return app.response_class(json.dumps(error), status=status, mimetype="application/json")
