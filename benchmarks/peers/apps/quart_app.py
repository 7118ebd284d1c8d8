"""Quart, with events encoded as its documentation shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import AsyncIterator

from quart import Quart, Response, make_response, request

from benchmarks.peers.apps.asynchronous import hot_tokens, idle_tokens, steady_tokens

app = Quart(__name__)


@dataclass
class ServerSentEvent:
    """One event."""

    data: str

    def encode(self) -> bytes:
        """Return its bytes."""
        return f"data: {self.data}\n\n".encode("utf-8")


async def respond(tokens: AsyncIterator[str]) -> Response:
    """Send *tokens*."""

    async def send_events() -> AsyncIterator[bytes]:
        async for token in tokens:
            yield ServerSentEvent(json.dumps({"text": token})).encode()

    response = await make_response(
        send_events(), {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
    )
    response.timeout = None
    return response


@app.get("/steady")
async def steady() -> Response:
    """Stream at a steady rate for ever."""
    return await respond(steady_tokens(request.args["clock"]))


@app.get("/hot")
async def hot() -> Response:
    """Stream as fast as possible."""
    return await respond(hot_tokens(int(request.args["count"])))


@app.get("/idle")
async def idle() -> Response:
    """Send one event and go silent."""
    return await respond(idle_tokens())
