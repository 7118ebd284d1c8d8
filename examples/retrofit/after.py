r"""The same route, streaming. ``diff before.py after.py`` shows all there is to it.

    gunicorn -k gevent --chdir examples/retrofit after:app

    curl -N http://127.0.0.1:8000/answer -H 'Content-Type: application/json' \
         -d '{"question": "Why is the sky blue?"}'
"""

import os

import requests
from flask import Flask, request

from flask_llmstream import LLMStream, stream
from flask_llmstream.upstream import adapt

MODEL_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1") + "/chat/completions"
MODEL_KEY = os.environ.get("LLMSTREAM_UPSTREAM_KEY", "none")
MODEL = os.environ.get("LLMSTREAM_MODEL", "default")

app = Flask(__name__)
LLMStream(app)


@app.route("/answer", methods=["POST"])
@stream
def answer():
    question = {"role": "user", "content": request.get_json()["question"]}
    call = {"model": MODEL, "messages": [question], "max_tokens": 400, "stream": True}
    headers = {"Authorization": "Bearer " + MODEL_KEY}
    reply = requests.post(MODEL_URL, json=call, headers=headers, timeout=60, stream=True)
    reply.raise_for_status()
    yield from adapt(reply)
