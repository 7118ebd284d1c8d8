"""FastAPI with its own server-sent events."""

from __future__ import annotations

from typing import AsyncIterator

from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel

from benchmarks.peers.apps.asynchronous import hot_tokens, idle_tokens, steady_tokens


class Token(BaseModel):
    """What an event carries."""

    text: str


app = FastAPI()


@app.get("/steady", response_class=EventSourceResponse)
async def steady(clock: str) -> AsyncIterator[Token]:
    """Stream at a steady rate for ever."""
    async for token in steady_tokens(clock):
        yield Token(text=token)


@app.get("/hot", response_class=EventSourceResponse)
async def hot(count: int) -> AsyncIterator[Token]:
    """Stream as fast as possible."""
    async for token in hot_tokens(count):
        yield Token(text=token)


@app.get("/idle", response_class=EventSourceResponse)
async def idle() -> AsyncIterator[Token]:
    """Send one event and go silent."""
    async for token in idle_tokens():
        yield Token(text=token)
