"""What the tests of structured streams share: how a model is asked, and the document that a client makes."""

from __future__ import annotations

import json
from typing import Any

from serving import events_of

from flask_llmstream import JsonDelta
from flask_llmstream.sansio.jsondelta import JsonDocument
from flask_llmstream.testing.upstreams import ScriptedUpstream
from flask_llmstream.upstream import openai_chat


def ask(upstream: ScriptedUpstream, *script: Any) -> Any:
    """Return the answer of *upstream*, which follows *script*."""
    upstream.script = script
    return openai_chat("scripted", [{"role": "user", "content": "A form, please."}], base_url=upstream.url)


def rebuilt(data: bytes) -> JsonDocument:
    """Return the document that a client makes of *data*."""
    document = JsonDocument()
    for event in events_of(data):
        if event.event == "json":
            document.apply(JsonDelta(**json.loads(event.data)))
    return document
