r"""A form that fills itself from a message, field by field, while the model writes.

For any OpenAI-compatible server (``pip install "flask-llmstream[gunicorn,schema]"``)::

    export LLMSTREAM_UPSTREAM_URL=http://127.0.0.1:11434/v1 LLMSTREAM_MODEL=llama3.2
    gunicorn -c gunicorn.conf.py --chdir examples/form_copilot app:app

Then open http://127.0.0.1:8000/, or look at the changes in a terminal::

    curl -N http://127.0.0.1:8000/fill -H 'Content-Type: application/json' \
         -d '{"message": "The export has been empty since Monday. Fern & Oak"}'
"""

import os

from flask import Flask, render_template, request

from flask_llmstream import LLMStream, stream
from flask_llmstream.upstream import openai_chat

UPSTREAM_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1")
UPSTREAM_KEY = os.environ.get("LLMSTREAM_UPSTREAM_KEY", "")
MODEL = os.environ.get("LLMSTREAM_MODEL", "default")

#: What the model writes, what is checked, and what the template makes a form of.
FIELDS = {
    "customer": {"type": "string", "title": "Customer", "maxLength": 60},
    "product": {"enum": ["Billing", "Export", "Login", "Other"], "title": "Product"},
    "severity": {"enum": ["Low", "Medium", "High", "Urgent"], "title": "Severity"},
    "subject": {"type": "string", "title": "Subject", "maxLength": 100},
    "summary": {"type": "string", "title": "Summary"},
    "reply": {"type": "string", "title": "Reply to the customer"},
}
SCHEMA = {"type": "object", "properties": FIELDS, "required": list(FIELDS), "additionalProperties": False}
SYSTEM = {"role": "system", "content": "Write the support ticket for the user's message, as JSON."}

app = Flask(__name__)
LLMStream(app)


@app.route("/")
def index():
    return render_template("index.html", fields=FIELDS)


@app.route("/fill", methods=["POST"])
@stream(schema=SCHEMA)
def fill():
    yield from openai_chat(
        model=MODEL,
        messages=[SYSTEM, {"role": "user", "content": request.get_json()["message"]}],
        response_format={"type": "json_schema", "json_schema": {"name": "ticket", "schema": SCHEMA}},
        max_tokens=600,
        base_url=UPSTREAM_URL,
        api_key=UPSTREAM_KEY,
    )
