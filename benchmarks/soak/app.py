"""The app of the soak: every kind of stream, and notes of each in a file that outlives its worker.

The environment says the rest: ``SOAK`` holds ``folder``, ``upstream``, ``settings`` and ``broken`` as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import time
from typing import Any, Dict, Iterator, List

import requests
from flask import Flask, Response, jsonify, request
from requests.adapters import HTTPAdapter

from benchmarks.soak import broken
from benchmarks.soak.state import serve
from benchmarks.soak.words import read_script, word
from flask_llmstream import LLMStream, current_stream, multiplex, relay, stream, stream_response
from flask_llmstream.eventlog import redis_process
from flask_llmstream.journal import current_journals
from flask_llmstream.signals import stream_finished, stream_started
from flask_llmstream.upstream import openai_chat
from flask_llmstream.upstream.session import shared_session

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
# Else there is a line for each client that leaves.
logging.getLogger("flask_llmstream.stream").setLevel(logging.WARNING)

_SOAK: Dict[str, Any] = json.loads(os.environ["SOAK"])
_UPSTREAM: str = _SOAK["upstream"]
_BROKEN: List[str] = _SOAK["broken"]
_notes = os.open(os.path.join(_SOAK["folder"], "notes"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
_session = requests.Session()
_session.mount("http://", HTTPAdapter(pool_maxsize=128))

# What is remembered of others' streams is bounded; that bound would not be reached in an hour.
redis_process._REMEMBERED = 100

app = Flask(__name__)
app.secret_key = "of the soak"
LLMStream(app, **_SOAK["settings"])


class Provoked(Exception):
    """A failure of a view that the client has asked for."""


def note(what: str, id: str, more: str = "") -> None:
    """Write a line to the notes; it is whole, whichever process it comes from."""
    os.write(_notes, f"{what} {id} {os.getpid()} {more}\n".encode())


def _note_end(end: Any) -> None:
    if not broken.is_turn("on_end", _BROKEN):
        note("end", end.id, end.reason)
    if broken.is_turn("on_end_twice", _BROKEN):
        note("end", end.id, end.reason)


@stream_started.connect
def _note_start(sender: Any, stream: Any) -> None:
    note("started", stream.id)
    broken.break_stream(_BROKEN, _UPSTREAM)
    if broken.is_turn("stream", _BROKEN):
        broken.keep(stream)
    if broken.is_turn("entry", _BROKEN):
        journal = next(iter(current_journals().values()), None)
        if journal is not None:
            writer = journal.begin(secrets.token_hex(8), 1.0, 10, 1000, 0.0)
            broken.keep(writer)


@stream_finished.connect
def _note_finish(sender: Any, stream: Any, end: Any) -> None:
    if not broken.is_turn("finished", _BROKEN):
        note("finished", stream.id)


def _noted(response: Any) -> Any:
    """Note that this response has a stream, and have its end noted."""
    made = getattr(response, "llmstream", None)
    if made is not None and made._state == "new":
        note("made", made.id, request.args.get("life", ""))
        made.on_end(_note_end)
    return response


def _ask(model: str) -> Any:
    source = openai_chat(model, [{"role": "user", "content": "Hello"}], base_url=_UPSTREAM)
    return filter(lambda item: not broken.is_turn("text", _BROKEN), source) if "text" in _BROKEN else source


def _options() -> Dict[str, Any]:
    options: Dict[str, Any] = json.loads(request.args.get("options", "{}"))
    return options


@app.route("/chat", methods=["GET", "POST"])
def chat() -> Any:
    """Stream what the upstream says."""
    return _noted(stream_response(_ask(request.args["model"]), **_options()))


@app.route("/view", methods=["GET", "POST"])
@stream
def view() -> Iterator[Any]:
    """Do the same with a generator, whose clean-up takes its time."""
    note("made", current_stream.id, request.args.get("life", ""))
    current_stream.on_end(_note_end)
    try:
        yield from _ask(request.args["model"])
    finally:
        time.sleep(0.01)


@app.route("/words")
def words() -> Any:
    """Stream the same words without an upstream."""
    wanted = read_script(request.args["model"])
    return _noted(stream_response(_words(wanted), **_options()))


def _words(wanted: Dict[str, str]) -> Iterator[str]:
    for number in range(int(wanted["count"])):
        if number or "hold" in wanted:
            time.sleep(float(wanted["pause"] if number else wanted["hold"]))
        yield word(wanted["key"], number)


@app.route("/raising")
def raising() -> Any:
    """Stream the words, and raise behind them."""
    wanted = read_script(request.args["model"])

    def write() -> Iterator[str]:
        yield from _words(wanted)
        raise Provoked("as was asked for")

    return _noted(stream_response(write(), **_options()))


@app.route("/shielded")
def shielded() -> Any:
    """Stream words, each written inside of a block that is not interrupted."""
    wanted = read_script(request.args["model"])

    def write() -> Iterator[str]:
        for number in range(int(wanted["count"])):
            with current_stream.shield():
                time.sleep(float(wanted["pause"]))
            yield word(wanted["key"], number)

    return _noted(stream_response(write(), **_options()))


@app.route("/flood")
def flood() -> Any:
    """Say more than the buffers on the way can hold."""
    return _noted(stream_response(f"{number:20000d}" for number in range(int(request.args["count"]))))


@app.route("/several")
def several() -> Any:
    """Stream what several upstreams say at the same time."""
    sources = {str(number): _ask(model) for number, model in enumerate(request.args.getlist("model"))}
    return _noted(stream_response(multiplex(sources), **_options()))


def _call() -> requests.Response:
    body = {"model": request.args["model"], "messages": [{"role": "user", "content": "Hello"}]}
    return _session.post(_UPSTREAM + "/chat/completions", json=body, stream=True)


@app.route("/relay")
def relayed() -> Any:
    """Pass the upstream's answer on."""
    return _noted(relay(_call))


@app.route("/legacy")
def legacy() -> Response:
    """Stream as a route does that knows nothing of the library."""
    def generate() -> Iterator[bytes]:
        with answer:
            for line in answer.iter_lines(chunk_size=1):
                if line:
                    yield line + b"\n\n"

    answer = _call()
    return Response(generate(), mimetype="text/event-stream")


@app.route("/hello", methods=["GET", "POST"])
def hello() -> Any:
    """Answer without a stream."""
    return jsonify(hello=request.args.get("name"))


def _let_go() -> None:
    shared_session().close()
    _session.close()


serve(_SOAK["folder"], _let_go)
