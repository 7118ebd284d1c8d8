"""The providers, and for each our call and its official SDK, asked the same."""

from __future__ import annotations

import warnings

import pytest

from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta
from flask_llmstream.testing.upstreams import raw
from flask_llmstream.upstream import (
    adapt,
    anthropic_messages,
    gemini_chat,
    ollama_chat,
    openai_chat,
    openai_responses,
)

try:
    # Now: OpenAI's SDK looks into it when the garbage collector ends one of its streams, and falls
    # over a module that is just being imported.
    import httpx  # noqa: F401
except ImportError:
    pass

MESSAGES = [{"role": "user", "content": "Hello, what is your name?"}]
KEY = "sk-secret-12345678"


def _openai(upstream, **options):
    return openai_chat("scripted", MESSAGES, base_url=upstream.url, **options)


def _responses(upstream, **options):
    return openai_responses("scripted", MESSAGES[0]["content"], base_url=upstream.url, **options)


def _anthropic(upstream, **options):
    return anthropic_messages("scripted", MESSAGES, max_tokens=99, base_url=upstream.origin, **options)


def _ollama(upstream, **options):
    return ollama_chat("scripted", MESSAGES, base_url=upstream.origin, **options)


def _gemini(upstream, **options):
    return gemini_chat("scripted", MESSAGES[0]["content"], base_url=upstream.origin, **options)


#: Our call, by provider.
CALLS = {
    "openai": _openai,
    "openai-responses": _responses,
    "anthropic": _anthropic,
    "ollama": _ollama,
    "gemini": _gemini,
}
FAULTS = {
    "openai": raw(b'data: {"error":{"message":"busy","type":"server_error"}}\n\n'),
    "openai-responses": raw(
        b'event: error\ndata: {"type":"error","code":"server_error","message":"busy","param":null,'
        b'"sequence_number":9}\n\n'
    ),
    "anthropic": raw(
        b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"busy"}}\n\n'
    ),
    "ollama": raw(b'{"error":"busy"}\n'),
    "gemini": raw(b'data: {"error":{"code":503,"message":"busy","status":"UNAVAILABLE"}}\r\n\r\n'),
}


def sdk(name):
    """Return the SDK called *name*, which some stacks do not have, or not at a version that can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


#: Clients of SDKs that are open.
_clients = []


def close_clients():
    """Close what :func:`client_of` has made; without that their sockets are left to the garbage."""
    while _clients:
        client = _clients.pop()
        getattr(client, "close", lambda: None)()
        # Some have no close() of their own, or not at every version.
        for inner in (getattr(client, "_client", None), getattr(client, "_api_client", None)):
            for each in (inner, getattr(inner, "_httpx_client", None)):
                getattr(each, "close", lambda: None)()


def client_of(provider, upstream):
    """Return a new client of the official SDK, and a function that asks it for a stream."""
    client, ask = _client_of(provider, upstream)
    _clients.append(client)
    return client, ask


def _client_of(provider, upstream):
    if provider in ("openai", "openai-responses"):
        client = sdk("openai").OpenAI(base_url=upstream.url, api_key=KEY, max_retries=0, timeout=5)
        if provider == "openai":
            return client, lambda: client.chat.completions.create(
                model="scripted", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
        if not hasattr(client, "responses"):
            pytest.skip("this SDK is older than the Responses API")
        text = MESSAGES[0]["content"]
        return client, lambda: client.responses.create(model="scripted", input=text, stream=True)
    if provider == "anthropic":
        client = sdk("anthropic").Anthropic(base_url=upstream.origin, api_key=KEY, max_retries=0, timeout=5)
        return client, lambda: client.messages.create(
            model="scripted", messages=MESSAGES, max_tokens=99, stream=True
        )
    if provider == "ollama":
        client = sdk("ollama").Client(upstream.origin, timeout=5)
        return client, lambda: client.chat("scripted", MESSAGES, stream=True)
    client = sdk("google.genai").Client(api_key=KEY, http_options={"base_url": upstream.origin})
    return client, lambda: client.models.generate_content_stream(
        model="scripted", contents=MESSAGES[0]["content"]
    )


def ours(provider, upstream):
    """Return our call."""
    return CALLS[provider](upstream)


def adapted(provider, upstream):
    """Return the adapted stream of the official SDK."""
    return adapt(client_of(provider, upstream)[1]())


def sums(deltas):
    """Return what *deltas* say together: text, reasoning, tool calls, why it stopped."""
    calls = {}
    for delta in deltas:
        if isinstance(delta, ToolCallDelta):
            id, name, arguments = calls.get(delta.index, (None, None, ""))
            calls[delta.index] = (delta.id or id, delta.name or name, arguments + delta.arguments)
    return {
        "text": "".join(each.text for each in deltas if isinstance(each, TextDelta)),
        "reasoning": "".join(each.text for each in deltas if isinstance(each, ReasoningDelta)),
        "calls": calls,
        "finish": [each.reason for each in deltas if isinstance(each, Finish)],
    }
