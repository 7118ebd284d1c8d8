"""An app with a probe, and streams that know nothing of the library."""

from __future__ import annotations

import os
import time
from typing import Any, Iterator

from flask import Flask, Response, request

from flask_llmstream import LLMStream

app = Flask(__name__)
app.secret_key = "of the tests"
app.debug = "LLMSTREAM_TEST_NO_DEBUG" not in os.environ
LLMStream(app, retrofit=[])


def words(count: int, gap: float) -> Iterator[str]:
    for number in range(count):
        yield f"data: word {number}\n\n"
        time.sleep(gap)


@app.route("/plain")
def plain() -> Any:
    """Send server-sent events as a view of 2019 would: no header that a proxy heeds."""
    return Response(words(int(request.args.get("n", 12)), 0.15), mimetype="text/event-stream")
