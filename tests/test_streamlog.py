"""What the log says of streams."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from flask_llmstream import LLMStream, stream
from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.middleware import LLMStreamMiddleware
from flask_llmstream.streamlog import log_end, logfmt, stream_logger


@pytest.mark.parametrize("value, written", [
    (True, "true"), (0.12345, "0.123"), (7, "7"), ("a.b-c/d:e", "a.b-c/d:e"), ("<none>", "<none>"),
    ("a b", '"a b"'), ("", '""'), ('a"b', '"a\\"b"'), ("x\r\nstream=2", '"x\\r\\nstream=2"'),
    ("\x1b[2J\u2028é", '"\\u001b[2J\\u2028\\u00e9"'), ("a=b", '"a=b"'), ("x" * 300, "x" * 200),
])
def test_values_stay_on_their_line(value: Any, written: str) -> None:
    assert logfmt({"name": value, "none": None}) == f"name={written}"


def test_line_has_its_fields_on_the_record_too(caplog: Any) -> None:
    caplog.set_level(logging.INFO, "flask_llmstream.streams")
    log_end({"stream": "i1", "route": "100%s\n"})
    (record,) = caplog.records
    assert record.getMessage() == 'stream=i1 route="100%s\\n"'
    assert record.llmstream == {"stream": "i1", "route": "100%s\n"} and record.stream_id == "i1"


def test_records_about_a_stream_have_its_id(caplog: Any) -> None:
    logger = stream_logger("flask_llmstream.test")
    assert stream_logger("flask_llmstream.test") is logger and len(logger.filters) == 1
    logger.warning("stream %s: a thing happened %d times", "i1", 2)
    logger.warning("stream %s", "i2", extra={"other": 1})
    logger.warning("3 streams are ended")
    logger.warning("%(a)s", {"a": 1})
    assert [record.stream_id for record in caplog.records] == ["i1", "i2", "", ""]


def test_nothing_is_logged_at_the_end_unless_asked_for(caplog: Any) -> None:
    from flask import Flask

    for wanted in (False, True):
        app = Flask("logging")
        LLMStream(app, log_streams=wanted)
        app.add_url_rule("/say", "an endpoint", stream(lambda: ["a"]))
        caplog.set_level(logging.INFO, "flask_llmstream.streams")
        app.test_client().get("/say").data
        assert len(caplog.records) == wanted
    assert ' route="an endpoint" ' in caplog.records[0].getMessage()


@pytest.mark.parametrize("name", ["live", "log_streams", "otel"])
def test_needs_a_flask_app(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"LLMSTREAM_{name.upper()}.*outside of a Flask app"):
        LLMStreamMiddleware(lambda environ, start_response: [], **{name: True})
