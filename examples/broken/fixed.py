"""The same app, put right: ``flask llmstream check`` finds nothing. ``diff app.py fixed.py`` says how."""

import os
from time import sleep

import psycogreen.gevent
import psycopg2
import requests
from flask import Flask, Response, request, session, stream_with_context
from flask_compress import Compress
from sqlalchemy import create_engine, text
from sqlalchemy.orm import scoped_session, sessionmaker
from sqlalchemy.pool import QueuePool

from flask_llmstream import LLMStream, stream

psycogreen.gevent.patch_psycopg()  # gunicorn's gevent worker has patched everything else

MODEL_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1") + "/chat/completions"
DSN = os.environ.get("DATABASE_URL", "dbname=chat")

engine = create_engine("sqlite://", poolclass=QueuePool, pool_size=5, max_overflow=0)
database = scoped_session(sessionmaker(engine))

app = Flask(__name__)
app.config.update(
    SECRET_KEY=os.environ.get("SECRET_KEY", "only for this example"),
    SESSION_REFRESH_EACH_REQUEST=False,
    LLMSTREAM_MAX_DURATION=600,
    LLMSTREAM_IDLE_TIMEOUT=120,
    LLMSTREAM_RELEASE=database.remove,
    LLMSTREAM_RETROFIT=["text/event-stream", "text/plain"],
)
Compress(app)
LLMStream(app)


@app.before_request
def remember():
    session.permanent = True


@app.after_request
def write_access_log(response):
    if response.is_streamed:
        return response
    app.logger.info("%s bytes: %s", request.path, len(response.get_data()))
    return response


@app.after_request
def cache(response):
    if response.is_streamed:
        return response
    response.add_etag()
    return response.make_conditional(request)


def tokens(prompt):
    reply = requests.post(MODEL_URL, json={"prompt": prompt, "stream": True}, stream=True, timeout=60)
    for line in reply.iter_lines():
        sleep(0)
        yield line.decode() + "\n"


@app.route("/answer", methods=["POST"])
def answer():
    session["asked"] = session.get("asked", 0) + 1

    def generate():
        prompt = database.execute(text("SELECT 'Answer: '")).scalar() + request.form["question"]
        database.remove()
        for token in tokens(prompt):
            yield token

    return Response(stream_with_context(generate()), mimetype="text/plain")


@app.route("/history")
def history():
    with psycopg2.connect(DSN) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT answer FROM answers")
        return "\n".join(row[0] for row in cursor.fetchall())


@app.route("/chat", methods=["POST"])
@stream(resumable=True)
def chat():
    yield from tokens(request.form["question"])


@app.route("/status")
def status():
    return "fine"
