"""``release``: when it runs, for which responses, and what becomes of its errors."""

from __future__ import annotations

import logging
from typing import Any, Iterator, List, Optional

import pytest
from flask import Flask, Response, request, stream_with_context

from flask_llmstream import LLMStream, stream
from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.middleware import LLMStreamMiddleware

ROUTES = ["/stream", "/legacy"]
each_route = pytest.mark.parametrize("route", ROUTES)


def make_app(order: List[str], setting: Any, option: Any = None, extension: Optional[Any] = None) -> Flask:
    """Return an app that notes in *order* what happens when."""
    app = Flask(__name__)
    app.config["LLMSTREAM_RELEASE"] = setting
    LLMStream(app, heartbeat_interval=0)
    if extension is not None:
        app.extensions["sqlalchemy"] = extension

    @app.before_request
    def before() -> None:
        order.append("before")

    @app.after_request
    def after(response: Any) -> Any:
        order.append("after")
        return response

    def produce() -> Iterator[str]:
        order.append("item")
        yield "data: one\n\n"

    app.add_url_rule("/stream", "own", stream(produce, release=option))

    @app.route("/legacy")
    def legacy() -> Response:
        return Response(stream_with_context(produce()), mimetype="text/event-stream")

    @app.route("/plain")
    def plain() -> str:
        return "plain"

    return app


def body_of(app: Flask, route: str) -> bytes:
    body: bytes = app.test_client().get(route).get_data()
    return body


@each_route
def test_it_runs_in_the_request_between_the_last_hook_and_the_first_item(route: str) -> None:
    order: List[str] = []
    app = make_app(order, lambda: order.append(f"release {request.path}"))
    assert b"one" in body_of(app, route)
    assert order == ["before", "after", f"release {route}", "item"]


def test_it_does_not_run_for_what_does_not_stream() -> None:
    order: List[str] = []
    app = make_app(order, lambda: order.append("release"))
    assert body_of(app, "/plain") == b"plain"
    app.test_client().head("/stream")
    assert "release" not in order


@pytest.mark.parametrize("setting", [None, False])
@each_route
def test_nothing_is_released_unless_it_is_wanted(route: str, setting: Any) -> None:
    app = make_app([], setting, extension=object())
    assert b"one" in body_of(app, route)


def test_option_of_a_stream_wins_over_the_setting() -> None:
    order: List[str] = []
    app = make_app(order, lambda: order.append("setting"), option=lambda: order.append("option"))
    body_of(app, "/stream")
    assert order == ["before", "after", "option", "item"]
    del order[:]
    body_of(make_app(order, lambda: order.append("setting"), option=False), "/stream")
    assert order == ["before", "after", "item"]


@each_route
def test_error_of_it_is_logged_and_the_stream_goes_on(route: str, caplog: Any) -> None:
    def fail() -> None:
        raise RuntimeError("told to fail")

    app = make_app([], fail)
    with caplog.at_level(logging.ERROR):
        assert b"one" in body_of(app, route)
    (record,) = [each for each in caplog.records if each.name == "flask_llmstream.release"]
    assert "could not be given back" in record.getMessage() and "told to fail" in caplog.text


@each_route
def test_true_without_flask_sqlalchemy_says_what_to_do(route: str, caplog: Any) -> None:
    app = make_app([], True)
    with caplog.at_level(logging.ERROR):
        assert b"one" in body_of(app, route)
    assert "the remove of your scoped_session" in caplog.text


@pytest.mark.parametrize("value", [1, "yes", [print]])
def test_impossible_value_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationError, match="LLMSTREAM_RELEASE"):
        LLMStream(Flask(__name__), release=value)


def test_other_frameworks_give_a_callable() -> None:
    order: List[str] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/event-stream")])
        order.append("app")
        return iter([b"data: one\n\n"])

    def ask(wrapped: Any) -> bytes:
        environ = {"REQUEST_METHOD": "GET"}
        return b"".join(wrapped(environ, lambda status, headers: order.append("start")))

    assert b"one" in ask(LLMStreamMiddleware(app, release=lambda: order.append("release")))
    assert order == ["app", "release", "start"]
    with pytest.raises(ConfigurationError, match="callable"):
        LLMStreamMiddleware(app, release=True)
