"""Apps with a pool of five connections, each with and without ``release``: ``/<kind>/<release>``."""

from __future__ import annotations

import os
import tempfile
import threading
from typing import Any, Dict, Iterator

from flask import Flask, Response, g, jsonify, request, stream_with_context
from sqlalchemy import Column, Integer, String, create_engine
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool
from werkzeug.middleware.dispatcher import DispatcherMiddleware

try:
    from sqlalchemy.orm import declarative_base
except ImportError:  # SQLAlchemy 1.3
    from sqlalchemy.ext.declarative import declarative_base

from flask_llmstream import LLMStream, stream

try:
    import flask_sqlalchemy
except ImportError:
    flask_sqlalchemy = None

FOLDER = tempfile.mkdtemp(prefix="pooled-")
POOL = {"poolclass": QueuePool, "pool_size": 5, "max_overflow": 0, "pool_timeout": 1.0}

#: Every stream waits for the one of its key before its second item.
gates: Dict[str, threading.Event] = {}


def uri(name: str) -> str:
    return "sqlite:///" + os.path.join(FOLDER, name + ".db")


def wait() -> None:
    assert gates.setdefault(request.args["key"], threading.Event()).wait(20), "the gate stayed closed"


def made_by_extension(kind: str, release: bool) -> Flask:
    """Flask-SQLAlchemy, two databases."""
    app = Flask(f"{kind}_{release}")
    app.config.update(
        SQLALCHEMY_DATABASE_URI=uri(app.name), SQLALCHEMY_BINDS={"other": uri(app.name + "-other")},
        SQLALCHEMY_TRACK_MODIFICATIONS=False, LLMSTREAM_RELEASE=release and kind != "inside",
    )
    LLMStream(app, heartbeat_interval=0, status_hold=5.0)
    db: Any = flask_sqlalchemy.SQLAlchemy(app, engine_options=POOL)

    class Note(db.Model):  # type: ignore[misc,name-defined]
        id = db.Column(db.Integer, primary_key=True)
        text = db.Column(db.String)

    class Other(db.Model):  # type: ignore[misc,name-defined]
        __bind_key__ = "other"
        id = db.Column(db.Integer, primary_key=True)
        text = db.Column(db.String)

    with app.app_context():
        db.create_all()
        db.session.add_all([Note(text="one"), Other(text="more")])
        db.session.commit()
        engines = [db.engines[key] for key in (None, "other")] if hasattr(db, "engines") else [
            db.get_engine(app, key) for key in (None, "other")
        ]

    @app.before_request
    def load() -> None:
        if kind != "inside" and request.endpoint in ("own", "legacy"):
            g.texts = [db.session.query(Note).first(), db.session.query(Other).first()]

    def produce() -> Iterator[str]:
        if kind == "inside":
            yield f"data: {db.session.query(Note).first().text}\n\n"
            if release:
                db.session.remove()
        else:
            # What was loaded stays when the session has gone.
            yield f"data: {g.texts[0].text} {g.texts[1].text}\n\n"
        wait()
        yield "data: two\n\n"

    add_routes(app, produce)

    @app.route("/in-use")
    def in_use() -> Any:
        return jsonify([engine.pool.checkedout() for engine in engines])

    return app


def made_by_hand(release: bool) -> Flask:
    """A session of its own, for each request, that is removed when the response is over."""
    app = Flask(f"by_hand_{release}")
    Base: Any = declarative_base()

    class Note(Base):
        __tablename__ = "note"
        id = Column(Integer, primary_key=True)
        text = Column(String)

    engine = create_engine(uri(app.name), **POOL)
    Base.metadata.create_all(engine)
    session = scoped_session(sessionmaker(engine))
    session.add(Note(text="one"))
    session.commit()
    session.remove()
    LLMStream(app, heartbeat_interval=0, status_hold=5.0, release=session.remove if release else None)

    @app.before_request
    def load() -> None:
        if request.endpoint in ("own", "legacy"):
            g.note = session.query(Note).first()

    @app.after_request
    def give_back(response: Any) -> Any:
        response.call_on_close(session.remove)
        return response

    def produce() -> Iterator[str]:
        yield f"data: {g.note.text}\n\n"
        wait()
        yield "data: two\n\n"

    add_routes(app, produce)

    @app.route("/in-use")
    def in_use() -> Any:
        return jsonify([engine.pool.checkedout()])

    return app


def add_routes(app: Flask, produce: Any) -> None:
    app.add_url_rule("/stream", "own", stream(produce))

    @app.route("/legacy")
    def legacy() -> Response:
        return Response(stream_with_context(produce()), mimetype="text/event-stream")


root = Flask("root")


@root.route("/open/<key>")
def open_gate(key: str) -> Any:
    gates.setdefault(key, threading.Event()).set()
    return jsonify({})


mounts: Dict[str, Any] = {}
for on in (False, True):
    word = "released" if on else "held"
    mounts[f"/by_hand/{word}"] = made_by_hand(on)
    if flask_sqlalchemy is not None:
        mounts[f"/extension/{word}"] = made_by_extension("extension", on)
        mounts[f"/inside/{word}"] = made_by_extension("inside", on)

app = DispatcherMiddleware(root, mounts)
