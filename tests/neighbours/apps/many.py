"""One Flask app for each neighbour, all in one process: ``/<neighbour>/<order>/<route>``.

*order* says whether the line ``LLMStream(app)`` stands before or after the neighbour's.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from typing import Any, Callable, Dict, Iterator

from flask import Flask, Response, after_this_request, g, jsonify, request, session, stream_with_context
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.profiler import ProfilerMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_llmstream import LLMStream, stream

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")

FOLDER = tempfile.mkdtemp(prefix="neighbours-")

#: A generator waits for its own before its second item, which a test opens when it has the first.
gates: Dict[str, threading.Event] = {}

Setup = Callable[[Flask], None]
SETUPS: Dict[str, Setup] = {}
#: What the apps have in their settings, by neighbour.
SETTINGS: Dict[str, Dict[str, Any]] = {}
#: Words for the first item, looked up inside the generator.
WORDS: Dict[str, Callable[[], Any]] = {}


def neighbour(function: Setup) -> Setup:
    SETUPS[function.__name__] = function
    return function


# -- extensions ----------------------------------------------------------------------------------


@neighbour
def nothing(app: Flask) -> None:
    """What the others are compared with."""


@neighbour
def compress(app: Flask) -> None:
    from flask_compress import Compress

    app.config["COMPRESS_MIN_SIZE"] = 0
    Compress(app)


SETTINGS["compress"] = {"retrofit": ["text/event-stream", "text/plain"]}


@neighbour
def compress_events(app: Flask) -> None:
    from flask_compress import Compress

    app.config["COMPRESS_MIMETYPES"] = ["text/html", "text/event-stream", "text/plain"]
    app.config["COMPRESS_MIN_SIZE"] = 0
    Compress(app)


SETTINGS["compress_events"] = SETTINGS["compress"]


@neighbour
def cors(app: Flask) -> None:
    from flask_cors import CORS

    CORS(app)


@neighbour
def server_session(app: Flask) -> None:
    import flask_session
    from cachelib.file import FileSystemCache

    folder = os.path.join(FOLDER, "sessions-" + app.name)
    if hasattr(flask_session, "cachelib"):
        app.config.update(SESSION_TYPE="cachelib", SESSION_CACHELIB=FileSystemCache(folder))
    else:
        app.config.update(SESSION_TYPE="filesystem", SESSION_FILE_DIR=folder)
    flask_session.Session(app)

    @app.before_request
    def remember() -> None:
        if "name" in request.args:
            session["name"] = request.args["name"]


WORDS["server_session"] = lambda: session.get("name")


@neighbour
def login(app: Flask) -> None:
    import flask_login

    manager = flask_login.LoginManager(app)

    class User(flask_login.UserMixin):  # type: ignore[misc,name-defined]
        def __init__(self, key: str) -> None:
            self.id = key

    @manager.request_loader
    def load(request: Any) -> Any:
        return User(request.args["user"]) if "user" in request.args else None


def _current_user() -> Any:
    from flask_login import current_user

    return current_user.get_id()


WORDS["login"] = _current_user


@neighbour
def limiter(app: Flask) -> None:
    from flask_limiter import Limiter
    from flask_limiter.util import get_remote_address

    app.config.update(RATELIMIT_STORAGE_URI="memory://", RATELIMIT_HEADERS_ENABLED=True)
    Limiter(key_func=get_remote_address, default_limits=["3 per hour"]).init_app(app)


@neighbour
def talisman(app: Flask) -> None:
    from flask_talisman import Talisman

    Talisman(app, force_https=False)


@neighbour
def sqlalchemy(app: Flask) -> None:
    from flask_sqlalchemy import SQLAlchemy

    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///" + os.path.join(FOLDER, app.name + ".db")
    app.config["SQLALCHEMY_TRACK_MODIFICATIONS"] = False
    db: Any = SQLAlchemy(app)

    class Note(db.Model):  # type: ignore[misc,name-defined]
        id = db.Column(db.Integer, primary_key=True)
        text = db.Column(db.String)

    with app.app_context():
        db.create_all()
        db.session.add(Note(text="noted"))
        db.session.commit()

    @app.before_request
    def find() -> None:
        g.note = db.session.query(Note).first()

    app.config["WORD"] = lambda: db.session.query(Note).first().text


@neighbour
def csrf(app: Flask) -> None:
    from flask_wtf.csrf import CSRFProtect, generate_csrf

    CSRFProtect(app)
    app.add_url_rule("/token", "token", generate_csrf)


@neighbour
def prometheus(app: Flask) -> None:
    from prometheus_client import CollectorRegistry
    from prometheus_flask_exporter import PrometheusMetrics

    PrometheusMetrics(app, registry=CollectorRegistry())


# -- WSGI middleware -----------------------------------------------------------------------------


@neighbour
def whitenoise(app: Flask) -> None:
    from whitenoise import WhiteNoise

    root = os.path.join(FOLDER, "static")
    os.makedirs(root, exist_ok=True)
    with open(os.path.join(root, "hello.txt"), "w") as file:
        file.write("hello")
    app.wsgi_app = WhiteNoise(app.wsgi_app, root=root)  # type: ignore[method-assign]


@neighbour
def proxy_fix(app: Flask) -> None:
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=1, x_proto=1)  # type: ignore[method-assign]


WORDS["proxy_fix"] = lambda: request.remote_addr


@neighbour
def profiler(app: Flask) -> None:
    sink = open(os.devnull, "w")
    app.wsgi_app = ProfilerMiddleware(app.wsgi_app, stream=sink)  # type: ignore[method-assign]


@neighbour
def joining(app: Flask) -> None:
    inner = app.wsgi_app

    # Two functions: each is named once.
    def joining_before(environ: Any, start_response: Any) -> Any:
        return [b"".join(inner(environ, start_response))]

    def joining_after(environ: Any, start_response: Any) -> Any:
        return [b"".join(inner(environ, start_response))]

    joins: Any = joining_before if app.name.endswith("before") else joining_after
    app.wsgi_app = joins  # type: ignore[method-assign]


# -- after_request hooks -------------------------------------------------------------------------


def hook(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    SETUPS[function.__name__] = lambda app: app.after_request(function) and None
    return function


@hook
def hook_data(response: Any) -> Any:
    g.body = response.data
    return response


@hook
def hook_get_data(response: Any) -> Any:
    g.body = response.get_data(as_text=True)
    return response


@hook
def hook_set_length(response: Any) -> Any:
    response.headers["Content-Length"] = len(response.data)
    return response


@hook
def hook_content_length(response: Any) -> Any:
    response.content_length = response.calculate_content_length()
    return response


@hook
def hook_add_etag(response: Any) -> Any:
    response.add_etag()
    return response


@hook
def hook_make_conditional(response: Any) -> Any:
    response.add_etag()
    return response.make_conditional(request)


@hook
def hook_only_conditional(response: Any) -> Any:
    return response.make_conditional(request)


@hook
def hook_join_encoded(response: Any) -> Any:
    response.response = [b"".join(response.iter_encoded())]
    return response


@hook
def hook_join_body(response: Any) -> Any:
    response.response = ["".join(str(item) for item in response.response)]
    return response


@hook
def hook_make_sequence(response: Any) -> Any:
    response.make_sequence()
    return response


@hook
def hook_freeze(response: Any) -> Any:
    response.freeze()
    return response


@hook
def hook_replace_data(response: Any) -> Any:
    response.set_data(response.get_data().replace(b"one", b"eins"))
    return response


@neighbour
def hook_of_this_request(app: Flask) -> None:
    """Registered for one request only, before anything else."""

    def hook_of_this_request(response: Any) -> Any:
        g.body = response.data
        return response

    @app.before_request
    def register() -> None:
        after_this_request(hook_of_this_request)


@neighbour
def hook_before_the_view(app: Flask) -> None:
    """Streams that never reach a view."""
    app.after_request(hook_before_the_view_data)

    @app.before_request
    def answer() -> Any:
        if request.endpoint == "legacy":
            return app.view_functions["legacy"]()


def hook_before_the_view_data(response: Any) -> Any:
    g.body = response.data
    return response


@hook
def wrap(response: Any) -> Any:
    """Do something to each item as it passes, as one may."""
    body = response.response

    def wrapped() -> Iterator[Any]:
        for item in body:
            yield item.replace("one", "ONE")
        yield "data: wrapped\n\n"

    if response.is_streamed:
        response.response = wrapped()
    return response


@hook
def wrap_iterator(response: Any) -> Any:
    """The same by an object, over the encoded body."""
    if response.is_streamed:
        response.response = map(lambda item: item.replace(b"one", b"ONE"), response.iter_encoded())
    return response


# -- the apps ------------------------------------------------------------------------------------


def build(name: str, order: str) -> Flask:
    app = Flask(f"{name}_{order}")
    app.secret_key = "not secret"
    settings = dict(SETTINGS.get(name, {}), heartbeat_interval=0, status_hold=0.0)
    if order == "before":
        LLMStream(app, **settings)
    SETUPS[name](app)
    if order == "after":
        LLMStream(app, **settings)
    word = app.config.get("WORD") or WORDS.get(name)

    def said() -> str:
        return "one" if word is None else f"one {word()}"

    def wait() -> None:
        assert gates.setdefault(request.args["key"], threading.Event()).wait(10), "the gate stayed closed"

    @app.route("/stream", methods=["GET", "POST"])
    @stream
    def own() -> Iterator[str]:
        yield said()
        wait()
        yield "two"

    @app.route("/legacy", methods=["GET", "POST"])
    def legacy() -> Response:
        def generate() -> Iterator[str]:
            yield f"data: {said()}\n\n"
            wait()
            yield "data: two\n\n"

        return Response(stream_with_context(generate()), mimetype="text/event-stream")

    @app.route("/text")
    def text() -> Response:
        def generate() -> Iterator[str]:
            yield said() + "\n"
            wait()
            yield "two\n"

        return Response(stream_with_context(generate()), mimetype="text/plain")

    @app.route("/plain")
    def plain() -> str:
        return "plain " * 200

    return app


root = Flask("root")


@root.route("/open/<key>")
def open_gate(key: str) -> Any:
    gates.setdefault(key, threading.Event()).set()
    return jsonify({})


@root.route("/missing")
def show_missing() -> Any:
    return jsonify(missing)


mounts: Dict[str, Any] = {}
#: Neighbours that this stack does not have, and why.
missing: Dict[str, str] = {}
for each in SETUPS:
    try:
        for when in ("before", "after"):
            mounts[f"/{each}/{when}"] = build(each, when)
    except ImportError as error:
        missing[each] = str(error)

app = DispatcherMiddleware(root, mounts)
