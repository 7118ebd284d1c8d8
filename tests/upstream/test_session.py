"""The shared session: one per process, without a memory of cookies."""

from __future__ import annotations

import os

from flask_llmstream.sansio.events import TextDelta
from flask_llmstream.testing.upstreams import close_delimited, done, tokens
from flask_llmstream.upstream import openai_chat
from flask_llmstream.upstream.session import shared_session


def test_one_session_for_all_calls():
    assert shared_session() is shared_session()


def test_nothing_is_retried():
    for prefix in ("http://host/", "https://host/"):
        assert shared_session().get_adapter(prefix).max_retries.total == 0


def test_a_forked_process_has_connections_of_its_own(ask, upstream):
    """Two processes that read from one socket would each get half of both answers."""
    assert next(ask(tokens("a"), done())) == TextDelta("a")
    list(ask(tokens("a"), done()))
    before = upstream.connections
    ours = shared_session()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover - measured in the parent only
        outcome = b"failed"
        try:
            text = "".join(d.text for d in openai_chat("m", [], base_url=upstream.url) if hasattr(d, "text"))
            if shared_session() is not ours and text == "a":
                outcome = b"passed"
        finally:
            os.write(writing, outcome)
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"passed"
    os.waitpid(child, 0)
    assert upstream.connections == before + 1
    assert shared_session() is ours
    list(ask(tokens("a"), done()))
    assert upstream.connections == before + 1, "the parent's connection is as good as before"


def test_a_proxy_of_the_environment_is_used(ask, upstream, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{upstream.port}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for _ in range(2):
        call = ask(tokens("a"), done(), base_url="http://model.example/v1")
        assert next(call) == TextDelta("a")
        list(call)
    assert upstream.exchanges[0].path == "http://model.example/v1/chat/completions"
    assert upstream.connections == 1


def test_a_connection_that_the_server_ends_is_not_kept(ask, upstream):
    for _ in range(2):
        list(ask(close_delimited, tokens("a"), done()))
    assert upstream.connections == 2
    upstream.wait_closed()
