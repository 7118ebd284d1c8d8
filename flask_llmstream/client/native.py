"""What the events of the native format say."""

from __future__ import annotations

import json
from typing import Any, Dict, Optional, Tuple

from flask_llmstream.exceptions import StreamFailed
from flask_llmstream.sansio.events import Event, Usage

__all__ = ["channel_of", "failure_of", "fields_of", "text_of", "usage_of", "whole_characters"]


def fields_of(event: Event) -> Dict[str, Any]:
    """Return the JSON object that is the data of *event*; an empty one where it is none."""
    try:
        value = json.loads(event.data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def channel_of(event: Event) -> Optional[str]:
    """Return the name of the channel that *event* belongs to, ``None`` for the stream itself."""
    channel = fields_of(event).get("channel")
    return channel if isinstance(channel, str) else None


def text_of(event: Event) -> str:
    """Return the piece of the answer's text in *event*, ``""`` where it holds none."""
    if event.event is not None:
        return ""
    text = fields_of(event).get("text")
    return text if isinstance(text, str) else ""


def whole_characters(text: str) -> Tuple[str, str]:
    """Return *text* without half a character at its end, and that half, to go before the next.

    Models cut text between the two halves of a character outside the Basic Multilingual Plane;
    the wire has each half as a JSON escape, and Python does not join them by itself.
    """
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    if half:
        text = text[:-1]
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text, half


def usage_of(fields: Any) -> Optional[Usage]:
    """Return what an answer has cost, ``None`` where that is not said."""
    if not isinstance(fields, dict):
        return None
    known = {name: fields[name] for name in Usage.__slots__ if isinstance(fields.get(name), int)}
    return Usage(**known) if known else None


def failure_of(event: Event) -> StreamFailed:
    """Return the failure that a ``failed`` event reports."""
    fields = fields_of(event)
    return StreamFailed(
        str(fields.get("message") or "the server gave no reason"),
        code=str(fields.get("code") or "error"),
        retryable=fields.get("retryable") is True,
    )
