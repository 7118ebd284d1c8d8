"""``Accept`` and ``format=``: which wire format a request gets, and what its head says of it."""

from __future__ import annotations

import functools
import json
import time
from typing import Any, Dict, Iterator, List, Optional
from wsgiref.util import is_hop_by_hop

import pytest
from flask import Flask, Response, abort, request
from serving import events_of

from flask_llmstream import LLMStream, UpstreamError, current_stream, stream, stream_response
from flask_llmstream.sansio.frames import Frame, FrameDecoder
from flask_llmstream.sansio.openai_format import OpenAIFormat

TYPES = {
    "sse": "text/event-stream; charset=utf-8",
    "ndjson": "application/x-ndjson",
    "text": "text/plain; charset=utf-8",
    "frames": "application/vnd.llmstream.frames",
}


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    LLMStream(app)

    @app.route("/")
    @stream
    def negotiated() -> Iterator[Any]:
        yield "a"
        yield {"b": 1}

    @app.route("/named/<name>")
    def named(name: str) -> Any:
        return stream_response(["a", {"b": 1}], format=name)

    return app


def ask(app: Flask, path: str = "/", accept: Optional[str] = None, method: str = "GET") -> Response:
    """Return the answer, read to its end."""
    headers: Dict[str, str] = {} if accept is None else {"Accept": accept}
    response: Any = app.test_client().open(path, method=method, headers=headers)
    response.get_data()
    response.close()
    for name, _ in response.headers:
        assert not is_hop_by_hop(name)
    return response  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "accept, name",
    [
        (None, "sse"), ("*/*", "sse"), ("application/json", "sse"), ("image/png;q=x", "sse"),
        ("text/event-stream", "sse"), ("application/x-ndjson", "ndjson"), ("text/plain", "text"),
        ("application/vnd.llmstream.frames, */*;q=0.1", "frames"),
    ],
)
def test_client_gets_what_it_asks_for(app: Flask, accept: Optional[str], name: str) -> None:
    answer = ask(app, accept=accept)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == TYPES[name]
    assert answer.headers.getlist("Vary") == ["Accept"]
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    assert answer.headers["X-Accel-Buffering"] == "no"
    assert answer.data == ask(app, f"/named/{name}").data


def test_each_format_says_its_own(app: Flask) -> None:
    value = {"path": "", "op": "replace", "value": {"b": 1}}
    end = {"reason": "stop", "usage": None}
    assert ask(app, "/named/text").data == b"a"
    assert [json.loads(line) for line in ask(app, "/named/ndjson").data.decode().splitlines()] == [
        {"type": "text", "text": "a"}, {"type": "json", **value}, {"type": "done", **end}
    ]
    assert FrameDecoder().feed(ask(app, "/named/frames").data) == [
        Frame("text", "a"), Frame("json", value), Frame("done", end)
    ]


def test_several_fields_count_as_one(app: Flask) -> None:
    """As WSGI servers join them."""
    answer = ask(app, accept="text/event-stream;q=0.2,application/x-ndjson")
    assert answer.headers["Content-Type"] == TYPES["ndjson"]


@pytest.mark.parametrize("name", sorted(TYPES))
def test_named_format_does_not_depend_on_accept(app: Flask, name: str) -> None:
    answer = ask(app, f"/named/{name}", accept="text/plain, application/x-ndjson;q=0.5")
    assert answer.headers["Content-Type"] == TYPES[name]
    assert "Vary" not in answer.headers


@pytest.mark.parametrize("name", ["jsonl", "SSE", ""])
def test_unknown_name_is_refused_with_those_that_exist(app: Flask, name: str) -> None:
    closed: List[str] = []

    def source() -> Iterator[str]:
        try:
            yield "a"
        finally:
            closed.append("source")

    with app.test_request_context():
        with pytest.raises(ValueError, match=f"no wire format '{name}'; there are: .*ndjson, .*sse, text"):
            stream_response(source(), format=name)
    assert closed == []  # it never began


def test_format_may_be_made_by_the_caller(app: Flask) -> None:
    @app.route("/made")
    @stream(format=functools.partial(OpenAIFormat, model="mine"))
    def view() -> Iterator[str]:
        yield "a"

    first, second = ask(app, "/made", accept="text/plain"), ask(app, "/made")
    assert first.data == second.data and b'"model":"mine"' in first.data
    assert first.headers["Content-Type"] == TYPES["sse"] and "Vary" not in first.headers


def test_format_says_of_itself_what_it_is_given(app: Flask) -> None:
    @app.route("/agent")
    def agent() -> Any:
        options = {"thread_id": "t7", "run_id": "r9"}
        return stream_response(["a"], format="ag-ui", format_options=options)

    assert b'"threadId":"t7","runId":"r9"' in ask(app, "/agent").data


@pytest.mark.parametrize("format, expected", [
    ("openai", "has no option 'thread_id'"), (None, "for a format that is named, got format=None"),
])
def test_options_that_a_format_does_not_have_are_refused(app: Flask, format: Any, expected: str) -> None:
    with app.test_request_context(), pytest.raises(ValueError, match=expected):
        stream_response(["a"], format=format, format_options={"thread_id": "t7"})


def test_dialect_names_the_stream_and_the_time(app: Flask) -> None:
    @app.route("/openai")
    @stream(format="openai")
    def view() -> Iterator[str]:
        yield current_stream.id

    before = int(time.time())
    chunks = [event.data for event in events_of(ask(app, "/openai").data)]
    first = json.loads(chunks[0])
    assert before <= first["created"] <= time.time()
    assert first["id"] == "chatcmpl-" + json.loads(chunks[1])["choices"][0]["delta"]["content"]
    assert json.loads(events_of(ask(app, "/openai").data)[0].data)["id"] != first["id"]


def test_header_of_a_format_goes_out_unless_the_caller_has_it(app: Flask) -> None:
    @app.route("/own")
    def view() -> Any:
        return stream_response(["a"], format="ai-sdk", headers={"X-Vercel-AI-UI-Message-Stream": "v2"})

    name = "x-vercel-ai-ui-message-stream"
    assert ask(app, "/named/ai-sdk").headers.getlist(name) == ["v1"]
    assert ask(app, "/own").headers.getlist(name) == ["v2"]
    assert name not in ask(app).headers


def test_without_a_request_the_default_is_sent(app: Flask) -> None:
    with app.app_context():
        response = stream_response(["a"])
    assert response.headers["Content-Type"] == TYPES["sse"]
    response.close()


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("Origin", "Origin, Accept"), ("Cookie, Origin", "Cookie, Origin, Accept"), ("*", "*"),
        ("accept", "accept"),
        ("Origin,ACCEPT", "Origin,ACCEPT"), ("", "Accept"), ("Accept-Encoding", "Accept-Encoding, Accept"),
    ],
)
def test_vary_of_the_callers_is_kept(app: Flask, theirs: str, ours: str) -> None:
    @app.route("/vary")
    def view() -> Any:
        return stream_response(["a"], headers={"Vary": theirs})

    assert ask(app, "/vary").headers.getlist("Vary") == [ours]


def test_vary_of_hooks_is_kept_beside_ours(app: Flask) -> None:
    @app.after_request
    def hook(response: Any) -> Any:
        response.vary.add("Cookie")
        return response

    assert ask(app).headers.getlist("Vary") == ["Accept, Cookie"]


def test_head_has_the_headers_of_get(app: Flask) -> None:
    for accept in TYPES.values():
        head, get = ask(app, accept=accept, method="HEAD"), ask(app, accept=accept)
        assert head.data == b"" and get.data
        assert dict(head.headers) == dict(get.headers)


@pytest.mark.parametrize("accept", list(TYPES.values()))
def test_failure_before_the_first_item_is_the_same_in_every_format(app: Flask, accept: str) -> None:
    @app.route("/<kind>")
    @stream
    def view(kind: str) -> Iterator[str]:
        if kind == "busy":
            raise UpstreamError("secret", code="upstream_rate_limited", retryable=True, retry_after=7)
        abort(403)
        yield ""

    busy, refused = ask(app, "/busy", accept), ask(app, "/refused", accept)
    assert (busy.status_code, busy.headers["Retry-After"], refused.status_code) == (429, "7", 403)
    for each in (busy, refused):
        assert each.headers["Content-Type"] == "application/json"
        assert set(json.loads(each.data.decode())) == {"error"}


@pytest.mark.parametrize(
    "accept, wanted",
    [(TYPES["ndjson"], b'{"type":"failed","message":'), (TYPES["frames"], b'\x09\0{"message":')],
)
def test_failure_after_the_first_item_is_said(app: Flask, accept: str, wanted: bytes) -> None:
    @app.route("/late")
    @stream
    def view() -> Iterator[str]:
        yield request.path
        raise UpstreamError("secret")

    answer = ask(app, "/late", accept)
    assert answer.status_code == 200 and wanted in answer.data and b"secret" not in answer.data
    assert b"/late" in answer.data


def test_chunker_and_padding_serve_every_format(app: Flask) -> None:
    @app.route("/padded")
    @stream(chunk="word", padding=100)
    def view() -> Iterator[str]:
        yield from ["one t", "wo"]

    lines = ask(app, "/padded", "application/x-ndjson").data
    assert len(lines.split(b"\n")[0]) >= 99
    texts = [json.loads(line.decode()) for line in lines.splitlines()]
    assert [each["text"] for each in texts if each["type"] == "text"] == ["one ", "two"]
    assert ask(app, "/padded", "text/plain").data == b"one two"
    frames = FrameDecoder().feed(ask(app, "/padded", TYPES["frames"]).data)
    assert [each.data for each in frames if each.kind == "text"] == ["one ", "two"]
