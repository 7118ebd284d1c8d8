r"""Four sections that fill side by side, from one response with four calls of the model.

For any OpenAI-compatible server::

    export LLMSTREAM_UPSTREAM_URL=http://127.0.0.1:11434/v1 LLMSTREAM_MODEL=llama3.2
    gunicorn -c gunicorn.conf.py --chdir examples/dashboard app:app

Then open http://127.0.0.1:8000/, or see in a terminal how the answers mix::

    curl -N http://127.0.0.1:8000/briefing -H 'Content-Type: application/json' \
         -d '{"question": "Should we open on Sundays?"}'
"""

import os

from flask import Flask, render_template, request

from flask_llmstream import LLMStream, multiplex, stream
from flask_llmstream.upstream import openai_chat

UPSTREAM_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1")
UPSTREAM_KEY = os.environ.get("LLMSTREAM_UPSTREAM_KEY", "")
MODEL = os.environ.get("LLMSTREAM_MODEL", "default")

#: Each is a channel of the stream: its title, and what the model is told.
SECTIONS = {
    "summary": ("In short", "Answer in three sentences."),
    "for": ("What speaks for it", "List what speaks for it, in Markdown: three points, a sentence each."),
    "against": ("What speaks against it", "List what speaks against it, in Markdown: three points."),
    "next": ("Next steps", "List the next three steps, in Markdown, numbered, with who takes them."),
}

app = Flask(__name__)
LLMStream(app)


@app.route("/")
def index():
    return render_template("index.html", sections=SECTIONS)


@app.route("/briefing", methods=["POST"])
@stream
def briefing():
    question = request.get_json()["question"]
    return multiplex({name: ask(task, question) for name, (_, task) in SECTIONS.items()})


def ask(task, question):
    return openai_chat(
        model=MODEL,
        messages=[{"role": "system", "content": task}, {"role": "user", "content": question}],
        max_tokens=300,
        base_url=UPSTREAM_URL,
        api_key=UPSTREAM_KEY,
    )
