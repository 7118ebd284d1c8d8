"""``structured=`` and ``schema=``: what clients get, what the app hears of, and what ends the call."""

from __future__ import annotations

import json
from typing import Any, Dict, Iterator, List

import pytest
from flask import Flask
from serving import Served, events_of
from structuring import Writes, ask, rebuilt

from flask_llmstream import (
    Comment,
    ReasoningDelta,
    TextDelta,
    current_stream,
    json_deltas,
    stream,
    stream_response,
)
from flask_llmstream.exceptions import OutputInvalid
from flask_llmstream.sansio.jsondelta import JsonOptions, JsonStage, make_schema
from flask_llmstream.testing.upstreams import done, silence, tokens

pytest.importorskip("jsonschema")

NAME: Dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


def names_of(data: bytes) -> List[str]:
    return [event.event or "text" for event in events_of(data)]


def test_stage_sends_changes_and_the_end_has_text_and_value(upstream):
    texts = ["Sure:\n```json\n", '{"na', 'me": "A', "da\\ud83d", '\\ude00"', ', "n": [1', "2]}", "\n```"]
    answer = ask(upstream, tokens(*texts), done())
    with Served(answer, chunker=JsonStage(schema=make_schema(NAME))) as served:
        data = served.read()
        document = rebuilt(data)
        end = served.end()
    assert document.value == end.value == {"name": "Ada\U0001f600", "n": [12]} and document.complete
    assert "text" not in names_of(data) and names_of(data)[-1] == "done"
    assert (end.reason, end.text, end.usage) == ("finish", "".join(texts), answer.usage)


def test_burst_behind_the_stage_leaves_in_one_write(upstream):
    writes = Writes(upstream)
    answer = ask(upstream, tokens('["', *"x" * 20, '"]'), done())
    with Served(answer, chunker=JsonStage(), before_write=writes) as served:
        assert rebuilt(served.read()).value == ["x" * 20]
        served.end()
    assert writes.count < 20


def test_what_comes_between_and_waiting_do_not_end_the_text():
    def source() -> Iterator[Any]:
        yield '{"a": "b\\u00'
        yield ReasoningDelta("hm")
        current_stream.flush()
        yield Comment("c")
        current_stream.send(TextDelta('e9", "n": 1'))
        yield {"whole": True}
        yield "2}"

    with Served(source(), chunker=JsonStage(), max_delay=0.01) as served:
        data = served.read()
        end = served.end()
    assert end.value == {"a": "b\u00e9", "n": 12}
    deltas = [json.loads(event.data) for event in events_of(data) if event.event == "json"]
    assert [delta for delta in deltas if delta["path"] != "" or delta["value"] != {"whole": True}] == [
        {"path": delta.path, "op": delta.op, "value": delta.value}
        for delta in json_deltas(['{"a": "b\\u00', 'e9", "n": 1', "2}"])
    ]
    assert "reasoning" in names_of(data)


def test_invalid_field_ends_the_call(upstream):
    answer = ask(upstream, tokens('{"more": [1], ', '"name": 1, ', '"rest": "x'), silence())
    with Served(answer, chunker=JsonStage(schema=make_schema(NAME))) as served:
        data = served.read()
        end = served.end()
    assert rebuilt(data).value == {"more": [1], "name": 1}
    failed = json.loads(events_of(data)[-1].data)
    assert (failed["code"], failed["retryable"]) == ("output_invalid", True)
    assert failed["message"].endswith(": /name")
    assert end.reason == "error" and isinstance(end.error, OutputInvalid) and end.value is None
    assert end.error.errors == [{"path": "/name", "message": "1 is not of type 'string'"}]
    upstream.wait_closed()


def test_fault_at_the_end_comes_behind_the_last_changes():
    with Served(["[1, 2"], chunker=JsonStage(JsonOptions(cut="error"))) as served:
        data = served.read()
        assert served.end().reason == "error"
    assert rebuilt(data).value == [1]
    assert json.loads(events_of(data)[-1].data)["code"] == "upstream_invalid"


@pytest.mark.parametrize(
    "text, reason, value", [('{"name": "Ada"}', "finish", {"name": "Ada"}), ('{"name": "A', "error", None)]
)
def test_answer_that_nobody_reads_any_more_is_checked_all_the_same(text, reason, value):

    def source() -> Iterator[Any]:
        yield "[0] " if value else "Well: "
        served.client.close()
        for character in text + " " * 50:
            yield character

    stage = JsonStage(JsonOptions(max_documents=2, cut="close" if value else "leave"), make_schema({}))
    if not value:
        stage = JsonStage(None, make_schema(NAME), "end")
    served = Served(source(), chunker=stage, on_disconnect="detach")
    with served:
        end = served.end()
    assert (end.reason, end.value) == (reason, value)


# -- stream_response and @stream ---------------------------------------------------------------


@pytest.fixture
def app() -> Flask:
    return Flask(__name__)


def answered(app: Flask, source: Any, accept: str = "", **options: Any) -> Any:
    ends: List[Any] = []

    @app.route("/form")
    @stream(**options)
    def form() -> Iterator[Any]:
        current_stream.on_end(ends.append)
        yield from source

    response = app.test_client().get("/form", headers={"Accept": accept} if accept else {})
    data = response.get_data()
    return response, data, ends[0]


@pytest.mark.parametrize(
    "options",
    [
        {"structured": True}, {"structured": {"cut": "error"}}, {"structured": JsonOptions()},
        {"schema": NAME},
        {"structured": True, "schema": make_schema(NAME), "validate": "end"},
    ],
)
def test_option_turns_text_into_changes(app, options):
    _, data, end = answered(app, ['So: {"name": ', '"Ada"}'], **options)
    assert rebuilt(data).value == end.value == {"name": "Ada"}
    assert end.text == 'So: {"name": "Ada"}'


def test_model_class_is_what_on_end_gets(app):
    pydantic = pytest.importorskip("pydantic")
    model = pydantic.create_model("Model", name=(str, ...), born=(int, ...))
    _, data, end = answered(app, ['{"name": "Ada", ', '"born": "1815"}'], schema=model)
    assert end.value == model(name="Ada", born=1815)
    assert rebuilt(data).value == {"name": "Ada", "born": "1815"}, "the client gets what was written"


@pytest.mark.parametrize(
    "accept", ["text/plain", "format:openai", "format:openai-responses", "format:anthropic"]
)
def test_format_without_a_word_for_changes_gets_the_text(app, accept):
    options: Dict[str, Any] = {"schema": NAME}
    if accept.startswith("format:"):
        options["format"], accept = accept[7:], ""
    _, data, end = answered(app, ['{"name": ', '"Ada"}'], accept, **options)
    assert end.value == {"name": "Ada"} and end.reason == "finish"
    assert b"name" in data and b"Ada" in data


def test_failure_names_the_field_and_not_what_the_model_wrote(app):
    _, data, end = answered(app, ['{"name": ["secret"]', ', "rest": 1}'], schema=NAME)
    failed = json.loads(events_of(data)[-1].data)
    assert failed["message"] == "The model's answer does not have the form that was asked for: /name"
    assert end.reason == "error" and "secret" in end.error.errors[0]["message"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"structured": True, "chunk": "word"}, "chunk is 'word'"),
        ({"schema": NAME, "chunk": "word"}, "chunk is 'word'"),
        ({"structured": "json"}, "structured is 'json'"),
        ({"structured": {"dept": 1}}, "an option that there is not"),
        ({"structured": {"cut": "off"}}, "cut is 'off'"),
        ({"schema": "Name"}, "schema is 'Name'"),
        ({"schema": NAME, "validate": "never"}, "validate is 'never'"),
    ],
)
def test_options_that_cannot_be_are_refused(app, options, message):
    with app.app_context(), pytest.raises(ValueError, match=message):
        stream_response([], **options)


def test_schema_that_is_none_is_refused_where_the_view_is_decorated():
    with pytest.raises(ValueError, match="no valid JSON schema"):
        stream(schema={"type": "no-such-type"})
