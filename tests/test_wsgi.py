"""The Flask side: what views may return, which headers go out, and what hooks cannot break."""

from __future__ import annotations

import gc
import importlib.util
import json
import weakref
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple
from wsgiref.util import is_hop_by_hop, setup_testing_defaults
from wsgiref.validate import validator

import flask
import pytest
from flask import Flask, Response, abort, got_request_exception, request
from serving import events_of

from flask_llmstream import LLMStream, UpstreamError, current_stream, signals, stream, stream_response
from flask_llmstream.exceptions import ConfigurationError

Headers = List[Tuple[str, str]]


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__)
    LLMStream(app)
    return app


class Answer:
    """What a WSGI app has answered."""

    def __init__(
        self, app: Any, path: str = "/", method: str = "GET", strict: bool = True, query: str = ""
    ) -> None:
        self.status = ""
        self.headers: Headers = []
        self.started = 0
        environ: Dict[str, Any] = {
            "SCRIPT_NAME": "", "PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": query
        }
        setup_testing_defaults(environ)
        called = (validator(app) if strict else app)(environ, self._start)
        try:
            self.body = b"".join(called)
        finally:
            close = getattr(called, "close", None)
            if close is not None:
                close()

    def _start(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], None]:
        self.started += 1
        self.status, self.headers = status, headers

        def write(data: bytes) -> None:
            raise AssertionError("a server whose write() we do not know must not be written to")

        return write

    def header(self, name: str) -> Optional[str]:
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) <= 1, f"{name} comes {len(found)} times"
        return found[0] if found else None


def check_stream(answer: Answer) -> None:
    """Check what holds for the head of every stream."""
    assert answer.started == 1
    for name, value in answer.headers:
        assert type(name) is str and type(value) is str
        assert not is_hop_by_hop(name), name
    assert answer.header("Content-Length") is None and answer.header("ETag") is None
    assert answer.header("Content-Type") == "text/event-stream; charset=utf-8"
    assert answer.header("Cache-Control") == "no-cache, no-transform"
    assert answer.header("X-Accel-Buffering") == "no"


# -- a stream as PEP 3333 wants it ---------------------------------------------------------


def test_stream_obeys_pep_3333(app: Flask) -> None:
    @app.route("/")
    @stream
    def view() -> Iterator[str]:
        yield "a"
        yield request.path

    answer = Answer(app)
    check_stream(answer)
    assert answer.status == "200 OK"
    assert [event.data for event in events_of(answer.body)] == [
        '{"text":"a"}', '{"text":"/"}', '{"reason":"stop","usage":null}'
    ]


def test_status_and_headers_of_the_callers_go_out(app: Flask) -> None:
    @app.route("/")
    def view() -> Any:
        return stream_response(["a"], status=202, headers={"X-Model": "m", "Cache-Control": "no-store"})

    answer = Answer(app)
    assert answer.status == "202 ACCEPTED" and answer.header("X-Model") == "m"
    assert answer.header("Cache-Control") == "no-store"


def test_head_has_the_headers_of_get_and_starts_nothing(app: Flask) -> None:
    started: List[str] = []
    closed: List[str] = []

    @app.route("/")
    def view() -> Any:
        def source() -> Iterator[str]:
            started.append("source")
            yield "a"

        response = stream_response(source())
        response.call_on_close(lambda: closed.append("response"))
        return response

    ends: List[Any] = []

    def receiver(sender: Any, stream: Any, end: Any) -> None:
        ends.append(end)

    if importlib.util.find_spec("blinker"):  # Flask brings it from 2.3 on
        signals.stream_finished.connect(receiver)
    answer = Answer(app, method="HEAD")
    check_stream(answer)
    assert answer.body == b"" and started == [] and closed == ["response"] and ends == []
    assert dict(answer.headers) == dict(Answer(app).headers) and started == ["source"]


def test_failure_before_the_first_item_is_an_answer_of_its_own(app: Flask) -> None:
    @app.route("/<kind>")
    @stream
    def view(kind: str) -> Iterator[str]:
        if kind == "busy":
            raise UpstreamError("secret", code="upstream_rate_limited", retryable=True, retry_after=7)
        if kind == "abort":
            abort(403)
        raise ValueError("secret")
        yield ""

    busy, refused, broken = Answer(app, "/busy"), Answer(app, "/abort"), Answer(app, "/broken")
    assert (busy.status, busy.header("Retry-After")) == ("429 Too Many Requests", "7")
    assert refused.status == "403 Forbidden"
    assert broken.status == "500 Internal Server Error"
    codes = [json.loads(each.body.decode())["error"]["code"] for each in (busy, refused, broken)]
    assert codes == ["upstream_rate_limited", "forbidden", "internal_error"]
    for each in (busy, refused, broken):
        assert each.started == 1 and b"secret" not in each.body
        assert each.header("Content-Length") == str(len(each.body))
        assert each.header("Content-Type") == "application/json"
        assert not any(is_hop_by_hop(name) for name, _ in each.headers)


@pytest.mark.skipif(
    importlib.util.find_spec("blinker") is None, reason="Flask before 2.3 comes without blinker"
)
def test_error_that_nobody_expected_is_told_to_error_trackers(app: Flask) -> None:
    heard: List[BaseException] = []

    def listen(sender: Any, exception: BaseException) -> None:
        heard.append(exception)

    @app.route("/<kind>")
    @stream
    def view(kind: str) -> Iterator[str]:
        yield "a"
        raise UpstreamError("busy") if kind == "upstream" else ValueError("a fault of the app's")

    got_request_exception.connect(listen, app)
    assert b"failed" in Answer(app, "/upstream").body and heard == []
    assert b"failed" in Answer(app, "/other").body
    assert [type(error) for error in heard] == [ValueError]


def test_errors_are_shown_where_the_app_wants_it() -> None:
    app = Flask(__name__)
    LLMStream(app, expose_errors=True)

    @app.route("/")
    @stream
    def view() -> Iterator[str]:
        yield "a"
        raise ValueError("the details")

    event = events_of(Answer(app).body)[-1]
    assert event.event == "failed" and json.loads(event.data)["message"] == "ValueError: the details"


def test_stream_without_the_extension_has_the_settings_of_the_config() -> None:
    app = Flask(__name__)
    app.config["LLMSTREAM_PADDING"] = 512

    @app.route("/")
    @stream
    def view() -> Iterator[str]:
        yield "a"

    assert 512 <= Answer(app).body.index(b"data:") < 2048


def test_answer_can_be_read_with_the_test_client(app: Flask) -> None:
    @app.route("/")
    @stream
    def view() -> Iterator[str]:
        yield "a"

    response = app.test_client().get("/")
    assert response.status_code == 200 and b'"a"' in response.data
    response.close()


# -- hooks ---------------------------------------------------------------------------------


def reading(response: Any) -> Any:
    assert response.data == b"" and response.get_data() == b""
    assert list(response.response) == []
    return response


def measuring(response: Any) -> Any:
    response.content_length = len(response.data)
    response.headers["Content-Length"] = "5"
    response.calculate_content_length()
    return response


def tagging(response: Any) -> Any:
    response.add_etag()
    response.headers["ETag"] = '"abc"'
    response.freeze()
    return response.make_conditional(request)


def compressing(response: Any) -> Any:
    assert response.is_streamed and not response.is_sequence
    response.headers["Content-Encoding"] = "gzip"
    response.direct_passthrough = False
    return response


def joining(response: Any) -> Any:
    response.make_sequence()
    response.set_data(b"a body of the hook's own")
    return response


@pytest.mark.parametrize("hook", [reading, measuring, tagging, compressing, joining])
def test_hook_cannot_hold_the_stream_back(app: Flask, hook: Callable[[Any], Any]) -> None:
    finished: List[str] = []

    @app.route("/")
    @stream
    def view() -> Iterator[str]:
        yield "a"
        finished.append("source")

    app.after_request(hook)
    answer = Answer(app)
    check_stream(answer)
    assert answer.header("Content-Encoding") is None
    assert [event.event for event in events_of(answer.body)] == [None, "done"]
    assert finished == ["source"]


def test_header_of_a_hook_goes_out(app: Flask) -> None:
    @app.route("/")
    @stream
    def view() -> Iterator[str]:
        yield "a"

    @app.after_request
    def hook(response: Any) -> Any:
        response.headers["Access-Control-Allow-Origin"] = "*"
        response.set_cookie("seen", "yes")
        return response

    answer = Answer(app)
    assert answer.header("Access-Control-Allow-Origin") == "*"
    assert (answer.header("Set-Cookie") or "").startswith("seen=yes")


def test_hook_that_replaces_the_response_releases_its_source(app: Flask) -> None:
    started: List[str] = []

    @app.route("/")
    @stream
    def view() -> Iterator[str]:
        started.append("source")
        yield "a"

    @app.after_request
    def hook(response: Any) -> Any:
        response.close()
        return Response("instead")

    answer = Answer(app)
    assert answer.body == b"instead" and started == []


def test_class_of_the_app_is_kept(app: Flask) -> None:
    class Own(flask.Response):
        """As an app has one for its JSON or its cookies."""

    app.response_class = Own

    @app.route("/")
    def view() -> Any:
        response = stream_response(["a"])
        assert isinstance(response, Own) and type(stream_response([])) is type(response)
        return response

    seen: List[Any] = []
    app.after_request(lambda response: seen.append(type(response)) or response)
    check_stream(Answer(app))
    assert issubclass(seen[0], Own), "make_response would have rewritten it"


@pytest.mark.parametrize(
    "change",
    [
        lambda response: response,
        lambda response: response.headers.set("Location", "/elsewhere") or response,
        lambda response: response.headers.set("Content-Location", "/é") or response,
        lambda response: response.headers.add("ETag", '"a"') or response,
        lambda response: setattr(response, "status_code", 206) or response,
    ],
    ids=["as it is", "location", "content location", "etag", "status"],
)
def test_headers_are_those_that_werkzeug_makes(app: Flask, change: Callable[[Any], Any]) -> None:
    made: List[Headers] = []

    @app.route("/")
    def view() -> Any:
        response = change(stream_response(["a"], headers={"X-A": "b"}))
        made.append(list(response.get_wsgi_headers(request.environ)))
        return response

    answer = Answer(app)
    assert answer.headers == made[0] and answer.header("X-A") == "b"
    assert answer.header("Content-Encoding") is answer.header("ETag") is None


def test_class_of_the_app_makes_its_headers_and_closes_in_its_own_way(app: Flask) -> None:
    closed: List[str] = []

    class Own(flask.Response):
        def get_wsgi_headers(self, environ: Any) -> Any:
            headers = super().get_wsgi_headers(environ)
            headers["X-Own"] = "yes"
            return headers

        def close(self) -> None:
            closed.append("own")
            super().close()

    app.response_class = Own
    app.add_url_rule("/", "view", lambda: stream_response(["a"]))
    assert Answer(app).header("X-Own") == "yes" and closed == ["own"]


def test_response_that_somebody_keeps_is_closed_and_others_are_not_kept(app: Flask) -> None:
    called: List[str] = []
    kept: List[Any] = []

    def items() -> Iterator[str]:
        gc.collect()
        called.append("gone" if found[-1]() is None else "there")
        if kept:
            kept[-1].call_on_close(lambda: called.append("closed"))
        yield "a"

    found: List[Any] = []

    @app.route("/")
    def view() -> Any:
        response = stream_response(items())
        found.append(weakref.ref(response))
        if "keep" in request.args:
            kept.append(response)
        return response

    Answer(app)
    Answer(app, query="keep")
    assert called == ["gone", "there", "closed"]


# -- the decorator -------------------------------------------------------------------------


def test_decorator_takes_options_or_none(app: Flask) -> None:
    @app.route("/plain")
    @stream
    def plain() -> Iterator[str]:
        """Say something."""
        yield "a"

    @app.route("/called")
    @stream()
    def called() -> Iterator[str]:
        yield "a"

    @app.route("/options")
    @stream(padding=300, headers={"X-Own": "1"})
    def options() -> Iterator[str]:
        yield "a"

    @app.route("/list")
    @stream
    def a_list() -> Any:
        return ["a", {"k": 1}]

    assert plain.__name__ == "plain" and plain.__doc__ == "Say something."
    for path in ("/plain", "/called", "/options", "/list"):
        check_stream(Answer(app, path))
    answer = Answer(app, "/options")
    assert answer.header("X-Own") == "1" and answer.body.index(b"data") >= 300


@pytest.mark.parametrize(
    "answer, status, body",
    [
        (("no", 403), "403 FORBIDDEN", b"no"),
        ("text", "200 OK", b"text"),
        (b"bytes", "200 OK", b"bytes"),
        (Response("ready", 201), "201 CREATED", b"ready"),
    ],
)
def test_answer_of_its_own_is_passed_on(app: Flask, answer: Any, status: str, body: bytes) -> None:
    @app.route("/")
    @stream
    def view() -> Any:
        return answer

    found = Answer(app)
    assert (found.status, found.body) == (status, body)


def test_stream_response_of_the_view_is_passed_on(app: Flask) -> None:
    @app.route("/")
    @stream
    def view() -> Any:
        return stream_response(["a"])

    check_stream(Answer(app))


@pytest.mark.skipif(not hasattr(Flask, "ensure_sync"), reason="Flask before 2.0 takes no dict as an answer")
def test_dict_is_an_answer_of_its_own(app: Flask) -> None:
    @app.route("/")
    @stream
    def view() -> Any:
        return {"error": "no"}, 400

    found = Answer(app)
    assert found.status == "400 BAD REQUEST" and json.loads(found.body.decode()) == {"error": "no"}


async def _numbers() -> Any:
    yield "a"


async def _number() -> Any:
    return "a"


@pytest.mark.parametrize("make, kind", [(_numbers, "async_generator"), (_number, "coroutine")])
def test_asynchronous_view_is_refused(app: Flask, make: Callable[[], Any], kind: str) -> None:
    app.testing = True
    app.add_url_rule("/", "view", stream(make))
    with pytest.raises(TypeError, match=f"cannot iterate {kind}; yield from a plain generator"):
        app.test_client().get("/")


def test_decorator_of_something_else_says_so() -> None:
    with pytest.raises(TypeError, match="decorates a view, got str"):
        stream("/chat")  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["text", b"bytes", {"a": 1}, ("a", 400), 5, None])
def test_source_that_is_no_source_is_refused(app: Flask, source: Any) -> None:
    with app.test_request_context(), pytest.raises(TypeError, match="expected an iterable of items"):
        stream_response(source)


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"format": "morse"}, ValueError, "no wire format 'morse'; there are: .*sse"),
        ({"chunk": "sentences"}, ValueError, "chunk is 'sentences', expected"),
        ({"status": 404}, ValueError, "2xx that may have a body, got 404"),
        ({"status": 204}, ValueError, "got 204"),
        ({"status": "200"}, ValueError, "got '200'"),
        ({"resumable": True}, RuntimeError, "app.secret_key"),
        ({"headers": {"Connection": "keep-alive"}}, ValueError, "Connection is hop-by-hop"),
        ({"headers": {"Content-Length": "5"}}, ValueError, "whole body beforehand"),
        ({"headers": {"X-A": "a\r\nSet-Cookie: b"}}, ValueError, "may not contain CR"),
        ({"heartbeat_interval": -1}, ConfigurationError, "LLMSTREAM_HEARTBEAT_INTERVAL is -1"),
        ({"on_disconnect": "ignore"}, ConfigurationError, "'cancel', 'detach' or a number"),
        ({"padding": "2k"}, ConfigurationError, "LLMSTREAM_PADDING is '2k'"),
        ({"max_bytes": 1.5}, ConfigurationError, "LLMSTREAM_MAX_BYTES is 1.5, expected a number of bytes"),
        ({"max_duration": "1h"}, ConfigurationError, "LLMSTREAM_MAX_DURATION is '1h'"),
        ({"no_such_option": 1}, TypeError, "no_such_option"),
    ],
)
def test_option_that_cannot_be_is_refused_and_nothing_starts(
    app: Flask, options: Any, error: Any, message: str
) -> None:
    class Source:
        """Has a connection, maybe; and is not asked."""

        closed = 0

        def __iter__(self) -> Iterator[str]:
            return self

        def __next__(self) -> str:
            raise AssertionError("started")

        def close(self) -> None:
            self.closed += 1

    source = Source()
    with app.test_request_context(), pytest.raises(error, match=message):
        stream_response(source, **options)
    assert source.closed


def test_stream_outside_of_an_app_says_so() -> None:
    with pytest.raises(RuntimeError, match="application context"):
        stream_response(["a"])


def test_stream_is_possible_without_a_request(app: Flask) -> None:
    with app.app_context():
        response = stream_response(["a"])
    assert response.llmstream is not None
    response.close()


# -- the extension -------------------------------------------------------------------------


def test_extension_says_what_is_wrong_where_it_was_written() -> None:
    with pytest.raises(TypeError, match="no setting 'hartbeat_interval'"):
        LLMStream(hartbeat_interval=1)
    with pytest.raises(ConfigurationError, match="LLMSTREAM_STATUS_HOLD is 'x'"):
        LLMStream(Flask(__name__), status_hold="x")
    app = Flask(__name__)
    app.config["LLMSTREAM_STATUS_HOLD"] = "x"
    with pytest.raises(ConfigurationError, match="LLMSTREAM_STATUS_HOLD is 'x'"):
        LLMStream(app)


def test_one_extension_serves_several_apps_with_their_own_settings() -> None:
    extension = LLMStream(padding=100)
    apps = [Flask("first"), Flask("second")]
    apps[0].config["LLMSTREAM_HEARTBEAT_INTERVAL"] = 7
    for app in apps:
        extension.init_app(app)
    found = [app.extensions["llmstream"].settings for app in apps]
    assert [each.heartbeat_interval for each in found] == [7, 15.0]
    assert [each.padding for each in found] == [100, 100]


def test_command_shows_every_setting(app: Flask) -> None:
    LLMStream(app, padding=64)
    result = app.test_cli_runner().invoke(args=["llmstream", "settings"])
    assert result.exit_code == 0, result.output
    assert "LLMSTREAM_PADDING = 64  (set)" in result.output
    assert "LLMSTREAM_HEARTBEAT_INTERVAL = 15.0  (default)" in result.output


# -- contexts ------------------------------------------------------------------------------


def test_generator_has_the_contexts_of_its_request_and_callbacks_that_of_the_app(app: Flask) -> None:
    seen: List[Any] = []

    @app.route("/<word>")
    @stream
    def view(word: str) -> Iterator[str]:
        flask.g.word = word
        current_stream.on_end(
            lambda end: seen.append((flask.current_app.name, flask.has_request_context()))
        )
        try:
            yield flask.url_for("view", word="x")
        finally:
            seen.append((request.path, flask.g.word))

    assert b"/x" in Answer(app, "/hello").body
    assert seen == [("/hello", "hello"), (app.name, False)]
    assert not flask.has_request_context() and not flask.has_app_context()
