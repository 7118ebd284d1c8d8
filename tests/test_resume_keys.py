"""What may be a key of a stream, and what becomes of it where the log cannot be asked."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask

from flask_llmstream import LLMStream, resume_response, stream_response
from flask_llmstream.eventlog import EventLog
from flask_llmstream.eventlog.memory import MemoryEventLog
from flask_llmstream.exceptions import LogUnavailable

ME = {"Authorization": "Bearer me"}


def make_app(log: str, **options: Any) -> Any:
    app = Flask(__name__)
    app.secret_key = "of the tests alone"
    app.testing = True
    LLMStream(app, event_log=log)

    @app.route("/ask")
    def ask() -> Any:
        return stream_response(["a"], **dict({"resumable": True, "resume_key": "chat"}, **options))

    @app.route("/running")
    def running() -> Any:
        return resume_response("chat")

    return app.test_client()


@pytest.mark.parametrize(
    "options, error, message",
    [
        pytest.param({"resumable": False}, ValueError, "set resumable=True", id="not resumable"),
        pytest.param({"resume_key": ""}, TypeError, "not empty, got ''", id="empty"),
        pytest.param({"resume_key": 7}, TypeError, r"got 7; use str\(\)", id="number"),
    ],
)
def test_what_cannot_be_a_key_is_refused(options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make_app("memory://no-keys", **options).get("/ask", headers=ME)


def test_log_that_knows_no_keys_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_app("memory://old")
    monkeypatch.setattr(MemoryEventLog, "bind", EventLog.bind)
    monkeypatch.setattr(MemoryEventLog, "bound", EventLog.bound)
    for path, method in (("/ask", r"bind\(key, stream, keep\)"), ("/running", r"bound\(key\)")):
        expected = f"MemoryEventLog cannot be asked .* add {method} to it"
        with pytest.raises(NotImplementedError, match=expected):
            client.get(path, headers=ME)


def test_stream_goes_on_where_its_key_cannot_be_noted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: Any) -> None:
        raise LogUnavailable("the log", "it is full")

    client = make_app("memory://full")
    monkeypatch.setattr(MemoryEventLog, "bind", fail)
    answer = client.get("/ask", headers=ME)
    assert b'{"text":"a"}' in answer.data
    assert "a stream cannot be found by its key" in caplog.text
    assert client.get("/running", headers=ME).status_code == 204


def test_reader_is_sent_away_while_the_log_cannot_be_read() -> None:
    answer = make_app("sqlite:////nowhere/log.db").get("/running", headers=ME)
    assert answer.status_code == 503 and answer.headers["Retry-After"] == "2"


def test_head_starts_nothing() -> None:
    client = make_app("memory://head")
    assert client.head("/ask", headers=ME).status_code == 200
    assert client.head("/running", headers=ME).status_code == 204
