"""Counts what one token costs on its way through the library: ``python hot_path.py gevent|threads``.

And what a stream of a single token costs, from its request to its end. Counted are the bytecode instructions
that run in the package itself, and the blocks of memory that are still there afterwards. Both are the same on
every run, however busy the machine is. Prints JSON.
"""

from __future__ import annotations

import sys

if sys.argv[1] == "gevent":
    from gevent import monkey

    monkey.patch_all()

import gc
import itertools
import json
import os
import socket
import statistics
import threading
import time
from typing import Any, Callable, Dict, Iterator, List

from flask import Flask, stream_with_context

import flask_llmstream
from flask_llmstream import LLMStream, stream, stream_response
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder
from flask_llmstream.upstream.framing import ChatEvents

_PACKAGE = os.path.dirname(flask_llmstream.__file__)
_TOKENS = 256  # what is gathered is sent each 32 frames, so a multiple of that
_WARM_UP = 512
_STREAMS, _FIRST_STREAMS, _IDLE_STREAMS = 8, 16, 24


class Counter:
    """Counts instructions in the package while it is entered."""

    def __init__(self) -> None:
        self.instructions = 0

    def __enter__(self) -> Counter:
        sys.settrace(self._called)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        sys.settrace(None)

    def _called(self, frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._inside

    def _inside(self, frame: Any, event: str, arg: Any) -> Any:
        if event == "opcode":
            self.instructions += 1
        return self._inside


def make_app(**settings: Any) -> Flask:
    app = Flask(__name__)
    app.secret_key = "of the tests"
    LLMStream(app, **{"event_log": "memory://", "status_hold": 0.0, "grace": 0.0, **settings})

    @app.route("/paced")
    @stream
    def paced() -> Iterator[str]:
        for token in itertools.cycle(["The", " stream", " of", " tokens"]):
            time.sleep(0.000001)
            yield token

    @app.route("/short")
    @stream
    def short() -> Iterator[str]:
        time.sleep(0.000001)
        yield "The"

    @app.route("/logged")
    def logged() -> Any:
        return stream_response(paced.__wrapped__(), resumable=True)

    @app.route("/words")
    def words() -> Any:
        return stream_response(paced.__wrapped__(), chunk="word")

    @app.route("/hot")
    @stream
    def hot() -> Iterator[str]:
        return itertools.cycle(["The", " stream", " of", " tokens"])

    @app.route("/adopted")
    def adopted() -> Any:
        def events() -> Iterator[bytes]:
            while True:
                time.sleep(0.000001)
                yield b'data: {"text":"The"}\n\n'

        return app.response_class(events(), mimetype="text/event-stream")

    return app


def environ_of(path: str, **more: Any) -> Dict[str, Any]:
    """Return the environ of a request for *path*."""
    return {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "test", "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http", "wsgi.version": (1, 0),
        "wsgi.input": None, "wsgi.errors": sys.stderr, **more,
    }


def of_whole(app: Flask) -> Dict[str, float]:
    """Return what a stream of one token costs, from its request to its end; its client is watched."""
    ours, theirs = socket.socketpair()
    more = {"gunicorn.socket": ours, "HTTP_ACCEPT": "text/event-stream"}

    def run(streams: int) -> int:
        for _ in range(streams):
            body = app(environ_of("/short", **more), lambda *args: lambda data: None)
            sent = b"".join(body)
            body.close()
            assert sent.count(b"data: ") == 2, sent
        gc.collect()
        return streams

    return counted(run, theirs.close, _FIRST_STREAMS, _STREAMS)


def of_idle() -> Dict[str, float]:
    """Return what an idle stream has beyond a generator under stream_with_context(); before a heartbeat."""
    app, gone_silent, go_on = make_app(status_hold=0.02), threading.Semaphore(0), threading.Event()

    def idle() -> Iterator[str]:
        yield "The"
        gone_silent.release()
        go_on.wait()

    app.add_url_rule("/ours", "ours", lambda: stream_response(idle()))
    app.add_url_rule("/bare", "bare", lambda: app.response_class(stream_with_context(idle())))

    def blocks_of(path: str, streams: int) -> int:
        def read() -> None:
            ours, theirs = socket.socketpair()
            body = app(environ_of(path, **{"gunicorn.socket": ours}), lambda *args: lambda data: None)
            for _ in body:
                pass
            body.close()
            theirs.close()

        gc.collect()
        before = sys.getallocatedblocks()
        threads = [threading.Thread(target=read) for _ in range(streams)]
        for thread in threads:
            thread.start()
        for _ in threads:
            gone_silent.acquire()
        time.sleep(0.1)  # each has been looked at
        gc.collect()
        blocks = sys.getallocatedblocks() - before
        go_on.set()
        for thread in threads:
            thread.join()
        go_on.clear()
        return blocks

    for path in ("/ours", "/bare"):
        blocks_of(path, 2)
    # On a busy machine some of one round have not been looked at yet, or some of the last have to end still.
    ours, bare = (
        statistics.median(blocks_of(path, _IDLE_STREAMS) for _ in range(3)) for path in ("/ours", "/bare")
    )
    blocks = ours - bare
    return {"instructions": 0.0, "blocks": round(blocks / _IDLE_STREAMS, 2)}


def of_stream(app: Flask, path: str) -> Dict[str, float]:
    """Return what a token of the stream at *path* costs."""
    body = app(environ_of(path), lambda *args: lambda data: None)
    items = iter(body)
    got = 0

    def read(tokens: int) -> int:
        nonlocal got
        aim = got + tokens
        while got < aim:
            got += next(items).count(b"\n\n")
        return got - aim + tokens

    return counted(read, lambda: body.close())


def counted(
    run: Callable[[int], int],
    close: Callable[[], Any] = lambda: None,
    warm_up: int = _WARM_UP,
    number: int = _TOKENS,
) -> Dict[str, float]:
    """Return what *run* costs for each of the tokens that it says it has had."""
    run(warm_up)
    with Counter() as counter:
        tokens = run(number)
    before = sys.getallocatedblocks()
    more = run(number)
    blocks = sys.getallocatedblocks() - before
    close()
    return {"instructions": round(counter.instructions / tokens, 1), "blocks": round(blocks / more, 2)}


def of_decoder() -> Dict[str, float]:
    """Return what a token of a model's answer costs to read."""
    events = ChatEvents(ChatChunkDecoder())
    choice = {"index": 0, "delta": {"content": " token"}, "finish_reason": None}
    chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    data = f"data: {json.dumps(chunk)}\n\n".encode()

    def run(tokens: int) -> int:
        deltas: List[Any] = []
        for _ in range(tokens):
            events.take(events.decoder.feed(data), deltas)
        return len(deltas)

    return counted(run)


def main() -> None:
    with Counter():
        app = make_app()  # some 3.12 count from the second time on
    found = {path: of_stream(app, f"/{path}") for path in ("paced", "hot", "words", "adopted", "logged")}
    found["read"] = of_decoder()
    measured = make_app(metrics=True)
    found["measured"] = of_stream(measured, "/paced")
    found["whole"] = of_whole(make_app(status_hold=2.0))
    found["whole, measured"] = of_whole(measured)
    found["idle"] = of_idle()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
