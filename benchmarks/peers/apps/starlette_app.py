"""Starlette with sse-starlette."""

from __future__ import annotations

import json
from typing import AsyncIterator, Dict

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from benchmarks.peers.apps.asynchronous import hot_tokens, idle_tokens, steady_tokens


def respond(tokens: AsyncIterator[str]) -> EventSourceResponse:
    """Send *tokens*, with the line ends that the others have."""
    return EventSourceResponse(events(tokens), sep="\n")


async def events(tokens: AsyncIterator[str]) -> AsyncIterator[Dict[str, str]]:
    """Make an event of each of *tokens*."""
    async for token in tokens:
        yield {"data": json.dumps({"text": token})}


async def steady(request: Request) -> EventSourceResponse:
    """Stream at a steady rate for ever."""
    return respond(steady_tokens(request.query_params["clock"]))


async def hot(request: Request) -> EventSourceResponse:
    """Stream as fast as possible."""
    return respond(hot_tokens(int(request.query_params["count"])))


async def idle(request: Request) -> EventSourceResponse:
    """Send one event and go silent."""
    return respond(idle_tokens())


app = Starlette(routes=[Route("/steady", steady), Route("/hot", hot), Route("/idle", idle)])
