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


class Writes:
    """Counts the writes of a server; the first waits for all that *upstream* says, so that it is a burst."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self._upstream = upstream
        self.count = 0

    def __call__(self) -> None:
        if not self.count:
            self._upstream.wait_for(lambda upstream: upstream.exchanges and upstream.exchanges[0].completed)
        self.count += 1


def rebuilt(data: bytes) -> JsonDocument:
    """Return the document that a client makes of *data*."""
    document = JsonDocument()
    for event in events_of(data):
        if event.event == "json":
            document.apply(JsonDelta(**json.loads(event.data)))
    return document
