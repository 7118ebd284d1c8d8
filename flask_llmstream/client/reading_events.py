"""What is made of the events of a stream: its text, and the JSON values that it builds."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Iterator, Optional, Tuple

from flask_llmstream.client.native import channel_of, fields_of, text_of, whole_characters
from flask_llmstream.client.progress import Progress
from flask_llmstream.exceptions import StreamInterrupted
from flask_llmstream.sansio.events import Event, JsonDelta
from flask_llmstream.sansio.jsondelta import JsonDocument

__all__ = ["snapshots_in", "texts_in"]


def texts_in(events: Iterable[Event], progress: Progress) -> Iterator[Tuple[Optional[str], str]]:
    """Yield the pieces of text, each behind the name of its channel."""
    halves: Dict[Optional[str], str] = {}
    for event in events:
        text = text_of(event)
        if text:
            channel = channel_of(event)
            piece, halves[channel] = whole_characters(halves.get(channel, "") + text)
            if piece:
                progress.characters += len(piece)
                yield channel, piece
    for channel, half in halves.items():
        if half:
            yield channel, "\ufffd"


def snapshots_in(events: Iterable[Event]) -> Iterator[Tuple[Optional[str], Any]]:
    """Yield the JSON value after each of its changes, behind the name of its channel.

    :raises StreamInterrupted: a change does not fit what came before it.
    """
    documents: Dict[Optional[str], JsonDocument] = {}
    for event in events:
        if event.event != "json":
            continue
        fields = fields_of(event)
        channel = channel_of(event)
        document = documents.setdefault(channel, JsonDocument())
        path, op = fields.get("path"), fields.get("op")
        try:
            if not isinstance(path, str) or not isinstance(op, str):
                raise ValueError("it has no path or op")
            document.apply(JsonDelta(path, op, fields.get("value")))
        except (TypeError, ValueError) as exc:
            raise StreamInterrupted(
                f"a change of the JSON value does not fit what came before it: {exc}"
            ) from exc
        if op != "complete":
            yield channel, document.value
