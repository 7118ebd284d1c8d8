"""Pages that are rendered from templates, under a policy that lets only scripts with a nonce run."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from flask import Flask, g, render_template_string, request

from flask_llmstream import LLMStream, stream_response

app = Flask(__name__)
LLMStream(app, url_prefix="/ai")

HEAD = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Page</title>
<link rel="icon" href="data:,">
<script nonce="{{ csp_nonce }}">
  window.broken = [];
  addEventListener("securitypolicyviolation", (event) => {
    broken.push(event.violatedDirective + " " + event.blockedURI);
  });
</script>
"""


@app.before_request
def draw_nonce() -> None:
    g.csp_nonce = secrets.token_urlsafe(16)


@app.context_processor
def give_nonce() -> Any:
    return {"csp_nonce": g.csp_nonce}


@app.after_request
def set_policy(response: Any) -> Any:
    policy = f"default-src 'self'; script-src 'nonce-{g.csp_nonce}'; img-src data:"
    response.headers["Content-Security-Policy"] = policy
    return response


@app.route("/page", methods=["POST"])
def page() -> Any:
    """Render the template of the body; test code, for 127.0.0.1 alone."""
    return render_template_string(HEAD + request.form["template"] + "</html>")


@app.route("/write")
def write() -> str:
    """A form that posts a template, as a browser does."""
    return """<!doctype html><link rel="icon" href="data:,"><form action="/page" method="post">
        <textarea name="template"></textarea></form>"""


@app.route("/answer", methods=["GET", "POST"])
def answer() -> Any:
    question = (request.get_json(silent=True) or {}).get("question", "nothing")
    return stream_response(["You asked: **", question, "**\n\n| a |\n|---|\n| b |\n"])


@app.route("/jquery/<name>.js")
def jquery(name: str) -> Any:
    path = Path(os.environ["NPM_PACKAGES"]) / name / "dist" / "jquery.js"
    return app.response_class(path.read_bytes(), mimetype="text/javascript")
