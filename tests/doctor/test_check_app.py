"""``flask llmstream check``: each fault of an app is found by its code, and nothing without it."""

from __future__ import annotations

import gzip
from typing import Any, Callable, Dict, FrozenSet, List

import pytest
from flask import Flask, Response, flash, request, session, stream_with_context

from flask_llmstream import LLMStream, stream, stream_response
from flask_llmstream.doctor.checks import check
from flask_llmstream.doctor.collect import collect
from flask_llmstream.doctor.findings import Finding

Make = Callable[[Flask], Any]


def build(*parts: Make, before: Make = lambda app: None, **settings: Any) -> Flask:
    """Return an app with a legacy route of events and one of text, with *parts* after LLMStream."""
    app = Flask("checked")
    before(app)
    LLMStream(app, **settings)
    for part in parts:
        part(app)

    @app.route("/events")
    def events() -> Response:
        return Response(stream_with_context(iter_items()), mimetype="text/event-stream")

    @app.route("/text/<name>")
    def text(name: str) -> Response:
        return Response((item for item in ("a", "b")), content_type="text/plain; charset=utf-8")

    @app.route("/page")
    def page() -> Response:
        return Response("no stream", mimetype="text/plain")

    return app


def iter_items() -> Any:
    yield "data: one\n\n"


def findings(app: Flask, **options: Any) -> List[Finding]:
    return check(collect(app, **options))


def codes(app: Flask, **options: Any) -> FrozenSet[str]:
    """Return the codes found, but for the note on text that nobody has opted in."""
    return frozenset(each.code for each in findings(app, **options)) - {"stream-not-adopted"}


def hooked(function: Callable[[Any], Any]) -> Make:
    return lambda app: app.after_request(function) and None


# -- hooks -----------------------------------------------------------------------------------------


def reads(response: Any) -> Any:
    assert response.get_data() is not None
    return response


def joins(response: Any) -> Any:
    response.response = [b"".join(response.response)]
    return response


def asks_a_helper(response: Any) -> Any:
    helper(response)
    return response


def helper(answer: Any) -> None:
    answer.data


def fails(response: Any) -> Any:
    from flask import g

    g.started + len(response.data)
    return response


class Queue:
    """Stands for a broker."""

    def __init__(self) -> None:
        self.items: List[bytes] = []

    def publish(self, item: bytes) -> None:
        self.items.append(item)


queue = Queue()


def leaves_traces(response: Any) -> Any:
    queue.publish(response.get_data())
    return response


def sets_length(response: Any) -> Any:
    response.headers["Content-Length"] = "10"
    return response


def computes_length(response: Any) -> Any:
    response.content_length = len(response.data)
    return response


def adds_etag(response: Any) -> Any:
    response.add_etag()
    return response


def keeps_alive(response: Any) -> Any:
    response.headers.set("Connection", "keep-alive")
    return response


def compresses(response: Any) -> Any:
    response.response = map(gzip.compress, response.response)
    response.headers["Content-Encoding"] = "gzip"
    return response


def looks_first(response: Any) -> Any:
    if not response.is_streamed:
        response.headers["X-Length"] = str(len(response.get_data()))
    return response


def looks_at_the_type(response: Any) -> Any:
    if response.mimetype == "application/json":
        open("/nowhere/at/all").write(response.get_data(as_text=True))
    return response


def looks_at_the_path(response: Any) -> Any:
    return reads(response) if request.path == "/page" else response


def wraps(response: Any) -> Any:
    response.response = map(bytes.upper, response.response)
    return response


class Extension:
    """Hooks as extensions have them."""

    def __init__(self, app: Flask) -> None:
        app.after_request(self.read)

    def read(self, response: Any) -> Any:
        response.freeze()
        return response


HOOKS: Dict[str, Any] = {
    "reads": (hooked(reads), {"hook-reads-body"}),
    "joins": (hooked(joins), {"hook-reads-body"}),
    "asks a helper": (hooked(asks_a_helper), {"hook-reads-body"}),
    "fails when it is tried": (hooked(fails), {"hook-reads-body"}),
    "is not tried": (hooked(leaves_traces), {"hook-reads-body"}),
    "of an extension": (Extension, {"hook-reads-body"}),
    "sets a length": (hooked(sets_length), {"hook-sets-length"}),
    "computes a length": (hooked(computes_length), {"hook-reads-body", "hook-sets-length"}),
    "etag": (hooked(adds_etag), {"hook-adds-etag"}),
    "connection": (hooked(keeps_alive), {"hop-by-hop-header"}),
    "compresses": (hooked(compresses), {"hook-compresses"}),
    "looks first": (hooked(looks_first), set()),
    "looks at the type": (hooked(looks_at_the_type), set()),
    "looks at the path": (hooked(looks_at_the_path), set()),
    "wraps": (hooked(wraps), set()),
}


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_judged_by_what_it_does(name: str) -> None:
    part, expected = HOOKS[name]
    assert codes(build(part)) == expected


def test_hook_that_leaves_traces_is_not_called() -> None:
    collect(build(hooked(leaves_traces), hooked(wraps)))
    assert queue.items == []


def test_hook_is_named_with_its_line_and_the_types_that_it_harms() -> None:
    (finding,) = [each for each in findings(build(hooked(reads))) if each.code == "hook-reads-body"]
    line = reads.__code__.co_firstlineno + 1
    assert finding.where is not None and finding.where.endswith(f"test_check_app.py:{line}")
    assert "response.get_data()" in finding.seen and finding.why.endswith("text/plain")
    assert finding.severity == "problem" and finding.subject.endswith("reads")


def test_hook_that_the_retrofit_keeps_out_is_a_note() -> None:
    everything = findings(build(hooked(reads), retrofit=["text/event-stream", "text/plain"]))
    assert [(each.code, each.severity) for each in everything] == [("hook-reads-body", "note")]


def test_streams_of_ours_keep_their_body_to_themselves() -> None:
    app = Flask("ours")
    LLMStream(app, retrofit=[])
    app.after_request(reads)
    app.add_url_rule("/own", "own", stream(iter_items))
    assert [(each.code, each.severity) for each in findings(app)] == [("hook-reads-body", "note")]


def test_route_that_nobody_looks_after_is_found() -> None:
    found = {each.severity for each in findings(build()) if each.code == "stream-not-adopted"}
    assert found == {"note"}
    found = {each.severity for each in findings(build(retrofit=[])) if each.code == "stream-not-adopted"}
    assert found == {"note", "warning"}


def test_nothing_is_called_where_that_is_not_wanted() -> None:
    called = []

    def remembers(response: Any) -> Any:
        called.append(response)
        return response

    assert codes(build(hooked(remembers), hooked(reads)), call=False) == {"hook-reads-body"}
    assert called == []


# -- WSGI middleware -------------------------------------------------------------------------------


def around(layer: Callable[[Any], Any]) -> Make:
    def part(app: Any) -> None:
        app.wsgi_app = layer(app.wsgi_app)

    return part


def joining(inner: Any) -> Any:
    return lambda environ, start_response: [b"".join(inner(environ, start_response))]


def passing(inner: Any) -> Any:
    return lambda environ, start_response: inner(environ, start_response)


def forgetting(inner: Any) -> Any:
    def application(environ: Any, start_response: Any) -> Any:
        for item in inner(environ, start_response):
            yield item

    return application


class Hiding:
    """Has a ``write()`` of its own."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            start_response(status, headers, exc_info)
            return lambda data: None

        return self.inner(environ, start)


class Slotted:
    """Cannot be given something else to wrap in a copy."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, environ: Any, start_response: Any) -> Any:
        raise ValueError("not with this environ")


class Zipping(Hiding):
    """Compresses each item."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            return start_response(status, headers + [("Content-Encoding", "gzip")], exc_info)

        body = self.inner(environ, start)

        class Answer:
            def __iter__(self) -> Any:
                return map(gzip.compress, body)

            close = body.close

        return Answer()


LAYERS: Dict[str, Any] = {
    "joining": (joining, {"middleware-collects"}),
    "passing": (passing, set()),
    "forgetting": (forgetting, {"middleware-drops-close"}),
    "hiding": (Hiding, {"middleware-hides-write"}),
    "a method": (lambda inner: Hiding(inner).__call__, {"middleware-hides-write"}),
    "zipping": (Zipping, {"middleware-compresses"}),
    "not tried": (Slotted, {"middleware-not-tried"}),
    "two": (lambda inner: passing(joining(inner)), {"middleware-collects"}),
    "ours is lost": (lambda inner: lambda environ, start_response: [], {"middleware-lost"}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_middleware_is_judged_by_what_it_does(name: str) -> None:
    layer, expected = LAYERS[name]
    assert codes(build(around(layer))) == expected


def test_middleware_inside_of_ours_may_hide_write() -> None:
    assert codes(build(before=around(Hiding))) == set()
    assert codes(build(before=around(joining))) == {"middleware-collects"}


def test_profiler_is_known_and_not_tried(capsys: Any) -> None:
    from werkzeug.middleware.profiler import ProfilerMiddleware

    assert codes(build(around(ProfilerMiddleware))) == {"middleware-collects"}
    assert capsys.readouterr().out == ""


# -- sessions, routes ------------------------------------------------------------------------------


def writes_session(app: Flask) -> None:
    @app.route("/late")
    def late() -> Response:
        session["before"] = 1

        def generate() -> Any:
            yield "data: 1\n\n"
            session["after"] = 2

        return Response(generate(), mimetype="text/event-stream")


def pops_session(app: Flask) -> None:
    @app.route("/late")
    @stream
    def late() -> Any:
        yield "one"
        session.pop("cart", None)


def flashes(app: Flask) -> None:
    @app.route("/late")
    @stream()
    def late() -> Any:
        yield "one"
        flash("done")


def another_session(app: Flask) -> None:
    import requests

    session: Any = requests.Session()

    @app.route("/late")
    @stream
    def late() -> Any:
        session.headers.update({"Connection": "close"})
        session.clear()
        yield "one"


def reads_session(app: Flask) -> None:
    @app.route("/late")
    @stream
    def late() -> Any:
        yield session["name"]


def permanent(app: Flask) -> None:
    @app.before_request
    def remember() -> None:
        session.permanent = True


def old_recipe(app: Flask) -> None:
    @app.route("/old")
    def old() -> Response:
        return Response(iter_items(), mimetype="text/event-stream", headers={"Connection": "keep-alive"})


def asks_the_model(app: Flask) -> None:
    @app.route("/model")
    @stream
    def model() -> Any:
        import requests

        yield from requests.get("http://127.0.0.1:1/", headers={"Connection": "close"})


def resumes(app: Flask) -> None:
    app.add_url_rule("/r", "r", lambda: stream_response(iter_items(), resumable=True))


def resumes_decorated(app: Flask) -> None:
    app.add_url_rule("/r", "r", stream(resumable=True)(iter_items))


def with_secret(part: Make) -> Make:
    def both(app: Flask) -> None:
        app.secret_key = "not secret"
        part(app)

    return both


def collides(app: Flask) -> None:
    app.add_url_rule("/llmstream/mine", "mine", lambda: "mine")


def config(**values: Any) -> Make:
    return lambda app: app.config.update(values)


PARTS: Dict[str, Any] = {
    "writes the session": (writes_session, {"session-written-late"}),
    "pops from the session": (pops_session, {"session-written-late"}),
    "flashes": (flashes, {"session-written-late"}),
    "another session": (another_session, set()),
    "reads the session": (reads_session, set()),
    "permanent": (permanent, {"session-sent-with-streams"}),
    "permanent, not refreshed": (
        lambda app: [permanent(app), config(SESSION_REFRESH_EACH_REQUEST=False)(app)], set(),
    ),
    "old recipe": (old_recipe, {"hop-by-hop-header"}),
    "headers for the model": (asks_the_model, set()),
    "resumable": (resumes_decorated, {"no-secret-key"}),
    "resumable, secret": (with_secret(resumes_decorated), set()),
    "collides": (collides, {"prefix-collides"}),
    "too late": (config(LLMSTREAM_PADDING=-1), {"setting-impossible"}),
    "later": (config(LLMSTREAM_PADDING=10), {"setting-not-in-force"}),
    "unknown": (config(LLMSTREAM_HEARTBEAT_INTERVALL=10), {"setting-unknown"}),
    "of somebody else": (config(LLMSTREAM_UPSTREAM_URL="http://127.0.0.1:1/"), set()),
}


@pytest.mark.parametrize("name", PARTS)
def test_route_and_setting_is_judged(name: str) -> None:
    part, expected = PARTS[name]
    assert codes(build(part)) == expected


def test_lambda_that_streams_is_a_route() -> None:
    assert "r" in {route.endpoint for route in collect(build(with_secret(resumes))).routes}


def numbers() -> Any:
    yield from range(3)


CSV = "text/csv; charset=utf-8"


def variable(app: Flask) -> Any:
    body = (str(each) for each in range(3))
    return Response(body, content_type=CSV)


def attribute(app: Flask) -> Any:
    response = app.response_class(app.tokens())  # type: ignore[attr-defined]
    response.mimetype = "application/x-ndjson"
    return response


def returned(app: Flask) -> Any:
    return numbers(), 200, {"Content-Type": "text/csv"}


def joined(app: Flask) -> Any:
    return Response(", ".join(str(each) for each in numbers()), mimetype="text/plain")


def listed(app: Flask) -> Any:
    found = list(numbers())
    return Response(str(found), mimetype="text/plain")


def checked_first(app: Flask) -> Any:
    if request.mimetype == "application/json":
        return Response("no"), 415
    return Response(numbers(), mimetype="text/event-stream")


@pytest.mark.parametrize(
    "view, types",
    [
        (variable, ("text/csv",)), (attribute, ("application/x-ndjson",)),
        (returned, ("text/csv",)), (joined, None), (listed, None), (checked_first, ("text/event-stream",)),
    ],
)
def test_view_streams_where_its_response_gets_a_generator(view: Any, types: Any) -> None:
    app = build()
    app.add_url_rule("/view", "view", view)
    found = {route.endpoint: route.types for route in collect(app).routes}
    assert found.get("view") == types


def test_class_of_views_is_looked_into() -> None:
    from flask.views import MethodView

    class Late(MethodView):
        def get(self) -> Any:
            def generate() -> Any:
                yield "one"
                session["late"] = 1

            return Response(generate(), mimetype="text/event-stream")

    app = build(lambda app: app.add_url_rule("/class", view_func=Late.as_view("late")))
    assert codes(app) == {"session-written-late"}


def test_app_without_llmstream_can_be_looked_at() -> None:
    app = Flask("bare")
    app.after_request(reads)
    app.add_url_rule("/s", "s", lambda: Response(iter_items(), mimetype="text/event-stream"))
    (finding,) = [each for each in findings(app) if each.code == "hook-reads-body"]
    assert finding.severity == "problem"
