"""WSGI middleware around the app that does not pass each item on."""

from __future__ import annotations

from typing import Iterator

from flask_llmstream.doctor.facts import AppFacts
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]

_ELSEWHERE = "let it pass each item on, switch it off, or mount the streaming routes outside of it"


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at each layer, from the outside in."""
    for layer in facts.layers:
        if layer.collects:
            yield Finding(
                "middleware-collects", "problem", layer.name, "it took all items before it passed one on",
                "every stream arrives all at once, when the model has finished; nobody under it can help"
                " that",
                _ELSEWHERE, layer.where,
            )
        if layer.encoding:
            yield Finding(
                "middleware-compresses", "problem", layer.name,
                f"it answered text/event-stream with Content-Encoding: {layer.encoding}",
                "a compressor waits until it has enough to compress: tokens arrive in lumps, or all at the"
                " end",
                "take text/event-stream out of what it compresses", layer.where,
            )
        if layer.drops_close and not layer.collects:
            yield Finding(
                "middleware-drops-close", "warning", layer.name,
                "it does not close the body that it wraps, as PEP 3333 asks",
                "a client that leaves is not told to the stream, which goes on and is paid for",
                "call close() of the body in its own close(), or use werkzeug.wsgi.ClosingIterator",
                layer.where,
            )
        if layer.outside and layer.hides_write and not layer.collects:
            yield Finding(
                "middleware-hides-write", "warning", layer.name,
                "its start_response does not return the write() of the server",
                "heartbeats cannot be sent while the model is silent: proxies cut the stream",
                "set it up before LLMStream(app), or let it return what start_response returned", layer.where,
            )
        if layer.outside and layer.collects is None:
            yield Finding(
                "middleware-not-tried", "note", layer.name,
                "it is around LLMStream, and could not be tried with a stream by itself",
                "if it collects bodies, nothing streams",
                "look at its source, or at the first token of a stream behind it", layer.where,
            )
    if not facts.has_middleware and facts.settings is not None and facts.settings.retrofit:
        yield Finding(
            "middleware-lost", "problem", "LLMStream", "app.wsgi_app does not lead to LLMStream any more",
            "routes that stream by themselves get no heartbeats, and nobody notices that clients have left",
            "wrap what is there, as in app.wsgi_app = Middleware(app.wsgi_app), or call LLMStream(app) later",
        )
