"""FastAPI with sse-starlette, and OpenAI's SDK for the relay."""

from __future__ import annotations

import json
from typing import AsyncIterator, Dict

from fastapi import FastAPI, Request
from openai import AsyncOpenAI
from sse_starlette import EventSourceResponse

from benchmarks.apps.work import UPSTREAM_URL
from benchmarks.peers.apps.asynchronous import hot_tokens, idle_tokens, steady_tokens

app = FastAPI()
client = AsyncOpenAI(base_url=UPSTREAM_URL or None, api_key="of the benchmarks")


def respond(tokens: AsyncIterator[str]) -> EventSourceResponse:
    """Send *tokens*, with the line ends that the others have."""
    return EventSourceResponse(events(tokens), sep="\n")


async def events(tokens: AsyncIterator[str]) -> AsyncIterator[Dict[str, str]]:
    """Make an event of each of *tokens*."""
    async for token in tokens:
        yield {"data": json.dumps({"text": token})}


@app.get("/steady")
async def steady(clock: str) -> EventSourceResponse:
    """Stream at a steady rate for ever."""
    return respond(steady_tokens(clock))


@app.get("/hot")
async def hot(count: int) -> EventSourceResponse:
    """Stream as fast as possible."""
    return respond(hot_tokens(count))


@app.get("/idle")
async def idle() -> EventSourceResponse:
    """Send one event and go silent."""
    return respond(idle_tokens())


@app.get("/relay")
async def relay(request: Request) -> EventSourceResponse:
    """Pass on what a model says."""
    return respond(completion(request.url.query))


async def completion(model: str) -> AsyncIterator[str]:
    """Read a chat completion."""
    chunks = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Hello"}], stream=True
    )
    async for chunk in chunks:
        text = chunk.choices[0].delta.content
        if text:
            yield text
