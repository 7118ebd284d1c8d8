r"""A legacy app with every fault at once, to see what is found in it. Do not copy from here.

    cd examples/broken
    FLASK_APP=app.py flask llmstream check
    FLASK_APP=app.py flask llmstream check --worker-class sync
    FLASK_APP=fixed.py flask llmstream check --gunicorn-config fixed.conf.py

It needs ``pip install requests psycopg2-binary psycogreen SQLAlchemy Flask-Compress gevent gunicorn``.
"""

import gzip
import os
from time import sleep

import psycopg2
import requests
from flask import Flask, Response, request, session, stream_with_context
from flask_compress import Compress
from gevent import monkey
from sqlalchemy import create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool

from flask_llmstream import LLMStream, stream

monkey.patch_all()  # too late: everything above holds what it has taken

MODEL_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1") + "/chat/completions"
DSN = os.environ.get("DATABASE_URL", "dbname=chat")

app = Flask(__name__)
app.config.update(
    LLMSTREAM_HEARTBEAT_INTERVAL=120,
    LLMSTREAM_STATUS_HOLD=90,
    LLMSTREAM_MAX_DURATION=60,
    LLMSTREAM_IDLE_TIMEOUT=120,
    LLMSTREAM_HEARTBEAT_INTERVALL=15,
    LLMSTREAM_EVENT_LOG="memory://",
    LLMSTREAM_GRACE=60,
    LLMSTREAM_RELEASE=True,
)
Compress(app)
LLMStream(app)
app.config["LLMSTREAM_PADDING"] = -1

engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=5, max_overflow=0)
database = scoped_session(sessionmaker(engine))


@app.before_request
def remember():
    session.permanent = True


@app.after_request
def write_access_log(response):
    app.logger.info("%s bytes: %s", request.path, len(response.get_data()))
    return response


@app.after_request
def set_length(response):
    response.headers["Content-Length"] = str(len(response.data))
    return response


@app.after_request
def cache(response):
    response.add_etag()
    return response.make_conditional(request)


@app.after_request
def keep_alive(response):
    response.headers["Connection"] = "keep-alive"
    return response


def tokens(prompt):
    reply = requests.post(MODEL_URL, json={"prompt": prompt, "stream": True}, stream=True, timeout=60)
    for line in reply.iter_lines():
        sleep(0)
        yield line.decode() + "\n"


@app.route("/answer", methods=["POST"])
def answer():
    def generate():
        prompt = database.execute(text("SELECT 'Answer: '")).scalar() + request.form["question"]
        for token in tokens(prompt):
            yield token
        session["answered"] = session.get("answered", 0) + 1

    return Response(
        stream_with_context(generate()), mimetype="text/plain", headers={"Connection": "keep-alive"}
    )


@app.route("/history")
def history():
    with psycopg2.connect(DSN) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT answer FROM answers")
        return "\n".join(row[0] for row in cursor.fetchall())


@app.route("/chat", methods=["POST"])
@stream(resumable=True)
def chat():
    yield from tokens(request.form["question"])


@app.route("/llmstream/status")
def status():
    return "fine"


class Joining:
    """Measures bodies, and so has to have them."""

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        body = b"".join(self.app(environ, start_response))
        app.logger.info("%s bytes", len(body))
        return [body]


class Recording:
    """Remembers the status, and answers ``start_response`` by itself."""

    def __init__(self, app):
        self.app = app

    def __call__(self, environ, start_response):
        def remember(status, headers, exc_info=None):
            environ["app.status"] = status
            start_response(status, headers, exc_info)
            return lambda data: None

        return self.app(environ, remember)


def prefixed(inner):
    """Pass the items on, but not the end."""

    def application(environ, start_response):
        for item in inner(environ, start_response):
            yield item

    return application


def zipped(inner):
    """Compress everything."""

    def application(environ, start_response):
        def start(status, headers, exc_info=None):
            return start_response(status, headers + [("Content-Encoding", "gzip")], exc_info)

        body = inner(environ, start)
        try:
            return [gzip.compress(b"".join(body))]
        finally:
            getattr(body, "close", bool)()

    return application


app.wsgi_app = zipped(prefixed(Recording(Joining(app.wsgi_app))))
