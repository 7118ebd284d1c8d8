"""Hooks and extensions that hold a stream back, and routes that nobody looks after.

The retrofit keeps hooks from the streams of the types that it adopts, and responses of ours keep
their body to themselves: there a hook is only worth a note.
"""

from __future__ import annotations

from typing import Iterator, Tuple

from flask_llmstream.doctor.facts import AppFacts, Hook, Use
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]

_LEAVE_ALONE = "leave streams alone: `if response.is_streamed: return response` as its first line"


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at the hooks, then at the headers and types of the routes themselves."""
    for hook in facts.hooks:
        yield from _hook(facts, hook)
    for route in facts.routes:
        if route.hop_by_hop:
            kept = route.own or all(_is_kept(facts, type) for type in route.types)
            yield _hop_by_hop(f"the view {route.endpoint}", route.hop_by_hop, kept)
        strangers = [type for type in route.types if not _is_kept(facts, type)]
        if strangers and not route.own:
            yield Finding(
                "stream-not-adopted", "warning" if "text/event-stream" in strangers else "note",
                f"the view {route.endpoint}",
                f"it streams {', '.join(strangers)}, which LLMSTREAM_RETROFIT does not name",
                "nobody notices that a client has left, there are no heartbeats and no headers against"
                " proxies that buffer",
                "add the type to LLMSTREAM_RETROFIT if a model writes this stream", route.where,
            )


def _hook(facts: AppFacts, hook: Hook) -> Iterator[Finding]:
    # Responses of ours keep their body to themselves, with or without the retrofit.
    legacy = {type for route in facts.routes if not route.own for type in route.types}
    harmed = sorted(type for type in hook.types & legacy if not _is_kept(facts, type))
    severity = "problem" if harmed else "note"
    collects = (
        "every stream waits for its end before the first byte leaves: " + ", ".join(harmed) if harmed
        else "LLMStream shows it an empty body instead, so what it makes of a stream is wrong"
    )
    if hook.reads:
        yield Finding(
            "hook-reads-body", severity, hook.name, _said("it reads or replaces the body", hook.reads),
            collects, _LEAVE_ALONE, _first(hook.reads),
        )
    if hook.lengths:
        yield Finding(
            "hook-sets-length", severity, hook.name, _said("it sets or computes a length", hook.lengths),
            "a stream has none before its end. " + collects.capitalize(), _LEAVE_ALONE, _first(hook.lengths),
        )
    if hook.etags:
        yield Finding(
            "hook-adds-etag", severity, hook.name, _said("it makes an ETag or looks at one", hook.etags),
            "that reads the whole body. " + collects.capitalize(), _LEAVE_ALONE, _first(hook.etags),
        )
    if hook.encoding and harmed:
        yield Finding(
            "hook-compresses", "problem", hook.name,
            f"it answered {', '.join(harmed)} with Content-Encoding: {hook.encoding}",
            "a compressor waits until it has enough to compress: tokens arrive in lumps, or all at the end",
            "take the type out of its list (Flask-Compress: COMPRESS_MIMETYPES, or COMPRESS_STREAMS = False),"
            " or add it to LLMSTREAM_RETROFIT",
            hook.where,
        )
    if hook.hop_by_hop:
        yield _hop_by_hop(hook.name, hook.hop_by_hop)


def _hop_by_hop(subject: str, uses: Tuple[Use, ...], kept: bool = False) -> Finding:
    return Finding(
        "hop-by-hop-header", "note" if kept else "warning", subject,
        _said("it sets a header that belongs to the server", uses),
        "PEP 3333 forbids Connection, Keep-Alive and Transfer-Encoding to apps: waitress answers 500, and"
        " HTTP/2 has no such thing. LLMStream takes them off the streams that it knows, not off the rest",
        "delete the line; the server knows when to keep a connection", _first(uses),
    )


def _is_kept(facts: AppFacts, content_type: str) -> bool:
    """Whether the retrofit keeps hooks from streams of this type."""
    types = facts.settings.retrofit if facts.settings is not None and facts.has_middleware else ()
    return content_type in {type.partition(";")[0].strip().lower() for type in types}


def _said(what: str, uses: Tuple[Use, ...]) -> str:
    lines = [use.what for use in uses if use.what]
    return what + (f": {'; '.join(lines)}" if lines else "")


def _first(uses: Tuple[Use, ...]) -> str:
    return uses[0].where
