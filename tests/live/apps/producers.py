"""Generators of every temper; ``/produce/<name>?key=…&options={…}`` streams one."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time
import weakref
from typing import Any, Callable, Dict, Iterator, List

import requests
from flask import Flask, current_app, g, jsonify, request
from ledger import blueprint, note_of, noted

from flask_llmstream import LLMStream, TextDelta, UpstreamError, current_stream, stream, stream_response
from flask_llmstream.current import running
from flask_llmstream.upstream import openai_chat

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

app = Flask(__name__)
LLMStream(app, cancel_grace=2.0)
app.register_blueprint(blueprint)

PRODUCERS: Dict[str, Callable[[], Any]] = {}
#: Streams that other requests may stop, by key.
stoppable: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()


def producer(make: Callable[[], Any]) -> Callable[[], Any]:
    PRODUCERS[make.__name__] = make
    return make


@app.route("/produce/<name>")
def produce(name: str) -> Any:
    g.view = name
    options = json.loads(request.args.get("options", "{}"))
    response = stream_response(PRODUCERS[name](), **options)
    if "watch_end" in request.args:
        note = note_of(request.args["key"])
        note.id = response.llmstream.id
        response.llmstream.on_end(note.end)
    if "until_left" in request.args:
        until_left(request.environ["gunicorn.socket"])
    if request.args.get("drop") == "closed":
        response.close()
        return "something else"
    return response


def until_left(sock: Any, established: bytes = b"\1") -> None:
    """Wait until the client has broken its connection off."""
    until = time.monotonic() + 10.0
    while sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == established:
        assert time.monotonic() < until, "the client is still there"
        time.sleep(0.005)


@app.route("/stop/<key>")
def stop(key: str) -> Any:
    stoppable[key].cancel("stop")
    return jsonify(stopped=key)


@app.route("/ping")
def ping() -> str:
    return "pong"


@app.route("/outside")
def outside() -> str:
    try:
        current_stream.send("lost")
    except RuntimeError as error:
        return f"{bool(current_stream)}: {error}"
    return "sent"


def block(seconds: float) -> None:
    """Block in a read from a socket, which can be interrupted on threads, too."""
    reader, writer = socket.socketpair()
    with reader, writer:
        reader.settimeout(seconds)
        with contextlib.suppress(socket.timeout):
            reader.makefile("rb", buffering=0).read(1)


def taking_notes() -> Any:
    return noted(request.args["key"])


# -- silence -------------------------------------------------------------------------------


@producer
def silent() -> Iterator[Any]:
    """Say one thing after a long time."""
    with taking_notes():
        time.sleep(float(request.args["seconds"]))
        yield "at last"


@producer
def lone() -> Iterator[Any]:
    """Say every now and then what time it is."""
    with taking_notes():
        for _ in range(int(request.args["count"])):
            yield f"{time.monotonic():.6f} "
            time.sleep(float(request.args["pause"]))


# -- faults --------------------------------------------------------------------------------


@producer
def raising() -> Iterator[Any]:
    with taking_notes():
        yield from ["one ", "two ", "three"]
        raise ValueError("the secret")


@producer
def refused_upstream() -> Iterator[Any]:
    with taking_notes():
        yield from ["one ", "two ", "three"]
        raise UpstreamError("the secret", code="upstream_interrupted", retryable=True)


@producer
def stubborn() -> Iterator[Any]:
    """Ignore being cancelled, twice."""
    with taking_notes() as note:
        yield "begun"
        while len(note.marks) < 2:
            try:
                block(30)
            except BaseException:
                note.marks.append(time.monotonic())
        yield "never seen"


@producer
def hasty() -> Iterator[Any]:
    """Never block, and never say anything that could be sent."""
    with taking_notes():
        until = time.monotonic() + float(request.args["seconds"])
        while time.monotonic() < until:
            yield ""
        yield "done"


# -- leaving -------------------------------------------------------------------------------


@producer
def patient() -> Iterator[Any]:
    """Speak, be silent, and speak again."""
    with taking_notes() as note:
        stoppable[request.args["key"]] = running()
        yield "begun "
        block(float(request.args["seconds"]))
        note.marks.append(current_stream.cancelled)
        yield "ended"


@producer
def unheard() -> Iterator[Any]:
    """Say nothing until it is too late."""
    with taking_notes():
        block(30)
        yield "never"


@producer
def shielded() -> Iterator[Any]:
    with taking_notes() as note:
        yield "begun"
        try:
            with current_stream.shield():
                until = time.monotonic() + 10.0
                while not current_stream.cancelled and time.monotonic() < until:
                    block(0.01)
                block(float(request.args["seconds"]))
                note.marks.append("the block was left alone")
        except BaseException as error:
            note.marks.append(f"{type(error).__name__} at its end")
            block(0.7)
            note.marks.append("clean-up was left alone")
            raise


@producer
def last_words() -> Iterator[Any]:
    """Send something while cleaning up."""
    with taking_notes():
        stoppable[request.args["key"]] = running()
        try:
            while True:
                yield "more "
                time.sleep(0.001)
        finally:
            current_stream.send("last words")


@producer
def binding() -> Iterator[Any]:
    """Read an upstream with nothing of ours but ``bind()``."""
    with taking_notes() as note:
        url = request.args["base_url"] + "/chat/completions"
        response = requests.post(url, json={"stream": True}, stream=True)
        closes: List[str] = []
        note.marks = closes
        current_stream.bind(response)
        current_stream.bind(Closable("bound", closes))
        current_stream.release(current_stream.bind(Closable("released", closes)))
        for line in response.iter_lines():
            yield line.decode() + "\n"


class Closable:
    def __init__(self, name: str, closes: List[str]) -> None:
        self.name = name
        self.closes = closes

    def close(self) -> None:
        self.closes.append(self.name)


# -- bursts --------------------------------------------------------------------------------


@producer
def flood() -> Iterator[Any]:
    """Say a great deal without ever blocking."""
    with taking_notes():
        for number in range(int(request.args["count"])):
            yield f"{number} "


class Burst:
    """Has all its items at once, and says so."""

    def __init__(self, count: int) -> None:
        self.ready = count

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self.ready:
            raise StopIteration
        self.ready -= 1
        return TextDelta("x")


@producer
def burst() -> Any:
    return Burst(int(request.args["count"]))


@producer
def delegated_burst() -> Iterator[Any]:
    with taking_notes():
        yield from Burst(int(request.args["count"]))


@producer
def upstream_burst() -> Iterator[Any]:
    with taking_notes():
        yield from openai_chat("any", [], base_url=request.args["base_url"])


# -- current_stream ------------------------------------------------------------------------


@producer
def sending() -> Iterator[Any]:
    with taking_notes():
        current_stream.send("first ")
        time.sleep(float(request.args["seconds"]))
        yield "second"


@producer
def flushing() -> Iterator[Any]:
    with taking_notes():
        yield "half a li"
        current_stream.flush()
        time.sleep(float(request.args["seconds"]))
        yield "ne\n"


@producer
def holding() -> Iterator[Any]:
    with taking_notes():
        yield "half a li"
        time.sleep(float(request.args["seconds"]))
        yield "ne\n"


# -- contexts ------------------------------------------------------------------------------


order: List[str] = []


@app.teardown_request
def tear_request(error: Any) -> None:
    if request.path == "/contexts":
        order.append("teardown_request")


@app.teardown_appcontext
def tear_app(error: Any) -> None:
    if "teardown_noted" in g:
        order.append("teardown_appcontext")


@app.route("/contexts")
@stream
def contexts() -> Iterator[Any]:
    del order[:]
    assert "count" not in g, "g of an earlier request is still here"
    g.count = 0
    g.teardown_noted = True
    current_stream.on_end(lambda end: order.append(f"on_end with {current_app.name}"))
    try:
        for _ in range(3):
            g.count += 1
            yield f"{request.args['word']} {g.count} {current_app.name}\n"
            time.sleep(0.01)
    finally:
        order.append(f"finally with {request.args['word']} {g.count}")


@app.route("/order")
def show_order() -> Any:
    return jsonify(order=order, leftover=sorted(each for each in g))
