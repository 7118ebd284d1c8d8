r"""A chat page in a synchronous Flask app.

``make demo`` runs it with a small local model. By hand, for any OpenAI-compatible server::

    export LLMSTREAM_UPSTREAM_URL=http://127.0.0.1:11434/v1 LLMSTREAM_MODEL=llama3.2
    gunicorn -c gunicorn.conf.py --chdir examples/chat app:app

Then open http://127.0.0.1:8000/, or talk to it from a terminal::

    curl -N http://127.0.0.1:8000/chat -H 'Content-Type: application/json' \
         -d '{"messages": [{"role": "user", "content": "Hello"}]}'
"""

import os

from flask import Flask, render_template, request

from flask_llmstream import LLMStream, stream
from flask_llmstream.upstream import openai_chat

UPSTREAM_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1")
UPSTREAM_KEY = os.environ.get("LLMSTREAM_UPSTREAM_KEY", "")
MODEL = os.environ.get("LLMSTREAM_MODEL", "default")

SYSTEM = {"role": "system", "content": "You are a friendly assistant. Answer in a few sentences."}

app = Flask(__name__)
LLMStream(app)


@app.route("/")
def index():
    return render_template("index.html")


@app.route("/chat", methods=["POST"])
@stream
def chat():
    yield from openai_chat(
        model=MODEL,
        messages=[SYSTEM] + request.get_json()["messages"],
        max_tokens=400,
        base_url=UPSTREAM_URL,
        api_key=UPSTREAM_KEY,
    )
