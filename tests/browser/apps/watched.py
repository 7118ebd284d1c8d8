"""A stream to be seen on the live page."""

from __future__ import annotations

import time
from typing import Any, Iterator

from flask import Flask

from flask_llmstream import LLMStream, stream

app = Flask(__name__)
app.debug = True
LLMStream(app, live=True)


@app.route("/chat")
@stream
def chat() -> Iterator[Any]:
    while True:
        yield "word "
        time.sleep(0.05)
