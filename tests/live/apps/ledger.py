"""Notes that the apps of the live tests take of what becomes of their generators."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
from typing import Any, Dict, Iterator, List

from flask import Blueprint, jsonify

from flask_llmstream import StreamEnd, current, current_stream
from flask_llmstream.disconnect import current_watcher
from flask_llmstream.stream import Stream
from flask_llmstream.ticker import current_ticker
from flask_llmstream.upstream.base import DeltaSource

blueprint = Blueprint("ledger", __name__)


class Note:
    """What became of one generator."""

    def __init__(self) -> None:
        self.id = ""
        self.started = 0
        self.cleaned_up = 0
        self.raised: List[str] = []
        self.ends: List[Dict[str, Any]] = []
        self.marks: List[Any] = []

    def end(self, end: StreamEnd) -> None:
        # Not the object itself: its error holds the frames of everybody that it passed.
        self.ends.append(
            {
                "id": end.id,
                "reason": end.reason,
                "text": end.text,
                "tokens": None if end.usage is None else end.usage.output_tokens,
                "input_tokens": None if end.usage is None else end.usage.input_tokens,
                "estimated": end.estimated,
                "duration": end.duration,
                "error": repr(end.error) if end.error else None,
            }
        )


#: By a key that the test has chosen.
notes: Dict[str, Note] = {}


def note_of(key: str) -> Note:
    return notes.setdefault(key, Note())


@contextlib.contextmanager
def noted(key: str) -> Iterator[Note]:
    """Note start, exception, clean-up and end of the generator around this block."""
    note = note_of(key)
    note.started += 1
    note.id = current_stream.id
    current_stream.on_end(note.end)
    try:
        yield note
    except BaseException as error:
        note.raised.append(type(error).__name__)
        raise
    finally:
        note.cleaned_up += 1


@blueprint.route("/notes/<key>")
def show_note(key: str) -> Any:
    note = note_of(key)
    return jsonify(
        id=note.id, started=note.started, cleaned_up=note.cleaned_up, raised=note.raised,
        ends=note.ends, marks=note.marks,
    )


@blueprint.route("/totals")
def show_totals() -> Any:
    """Show what 10,000 notes have in common, and those that do not."""
    reasons: Dict[str, int] = {}
    odd: Dict[str, str] = {}
    for key, note in list(notes.items()):
        for end in note.ends:
            reasons[end["reason"]] = reasons.get(end["reason"], 0) + 1
        # A stream that its client left before its first item has no generator to clean up.
        if note.cleaned_up != note.started or note.started > 1 or len(note.ends) != 1:
            odd[key] = f"{note.started} started, {note.cleaned_up} cleaned up, {len(note.ends)} ended"
    return jsonify(
        notes=len(notes), started=sum(note.started for note in notes.values()), reasons=reasons, odd=odd
    )


@blueprint.route("/counts")
def show_counts() -> Any:
    """Count what must not be left over in this process."""
    gc.collect()
    types = [type(each) for each in gc.get_objects()]
    found = {
        "streams": sum(issubclass(each, Stream) for each in types),
        "bound": sum(issubclass(each, DeltaSource) for each in types),
        "running": len(current._running),
        "watched": len(current_watcher()),
        "ticking": len(current_ticker()),
        "threads": threading.active_count(),
        "fds": len(os.listdir("/proc/self/fd")),
    }
    greenlet = sys.modules.get("greenlet")
    if greenlet is not None:
        alive = [each for each in gc.get_objects() if isinstance(each, greenlet.greenlet)]
        found["greenlets"] = sum(not each.dead for each in alive)
    return jsonify(found)
