r"""A route as they were written for years: twenty seconds of silence, then the whole answer.

    gunicorn -w 8 --chdir examples/retrofit before:app

    curl http://127.0.0.1:8000/answer -H 'Content-Type: application/json' \
         -d '{"question": "Why is the sky blue?"}'
"""

import os

import requests
from flask import Flask, jsonify, request

MODEL_URL = os.environ.get("LLMSTREAM_UPSTREAM_URL", "http://127.0.0.1:8081/v1") + "/chat/completions"
MODEL_KEY = os.environ.get("LLMSTREAM_UPSTREAM_KEY", "none")
MODEL = os.environ.get("LLMSTREAM_MODEL", "default")

app = Flask(__name__)


@app.route("/answer", methods=["POST"])
def answer():
    question = {"role": "user", "content": request.get_json()["question"]}
    call = {"model": MODEL, "messages": [question], "max_tokens": 400}
    headers = {"Authorization": "Bearer " + MODEL_KEY}
    reply = requests.post(MODEL_URL, json=call, headers=headers, timeout=60)
    reply.raise_for_status()
    return jsonify(answer=reply.json()["choices"][0]["message"]["content"])
