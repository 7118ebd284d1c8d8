"""What the live page says of each stream of this process. Never text, owners, or what a URL carries."""

from __future__ import annotations

import os
from typing import Any, Dict, List

from flask_llmstream import current
from flask_llmstream.following import LoggedSource
from flask_llmstream.outlet import NEVER
from flask_llmstream.recording import Recorder
from flask_llmstream.runtime import current_runtime

__all__ = ["MOST_ROWS", "is_resumable", "rows_of", "state_of"]

#: Streams of one worker that are shown one by one, the oldest; all are counted.
MOST_ROWS = 200
#: Seconds without an item after which a stream waits for somebody.
_PATIENCE = 1.0
#: Characters of an id that are shown.
_SHORT = 8


def is_resumable(stream: Any) -> bool:
    """Whether readers of *stream* can come back."""
    return isinstance(stream._format, Recorder)


def state_of(stream: Any, now: float) -> str:
    """Return in words what *stream* does at *now*."""
    if stream._cancellation is not None:
        return f"cancelling: {stream._cancellation.reason}"
    if stream._state != "running":
        return "ending"
    if stream._gone:
        left = stream._leave_at
        return "detached" if left == NEVER else f"detached, {max(0.0, left - now):.0f} s of grace"
    if now - stream._touched > _PATIENCE:
        if not stream._in_source:
            return "reader slow"
        return "waiting for its source" if stream._first_at is not None else "opening"
    return "streaming" if stream._first_at is not None else "opening"


def _row(stream: Any, now: float) -> Dict[str, Any]:
    notes, first = stream._notes, stream._first_at
    pieces = stream._pieces()
    then, before = notes.seen
    since = max(then, stream._started_at)
    notes.seen = now, pieces
    source = stream._inner
    return {
        "id": stream.id[:_SHORT],
        "route": notes.route[:100],
        "format": str(getattr(stream._format, "name", ""))[:40],
        "state": state_of(stream, now),
        "age": round(now - stream._started_at, 1),
        "first": None if first is None else round(first - stream._started_at, 3),
        # Bytes of somebody else, or from the event log: nobody has counted.
        "pieces": pieces or (0 if first is None else None),
        "rate": round((pieces - before) / (now - since), 1) if now > since else 0.0,
        "bytes": notes.sent,
        "resumable": is_resumable(stream),
        "follows": source.stream[:_SHORT] if isinstance(source, LoggedSource) else None,
        "pid": os.getpid(),
    }


def rows_of(app: Any) -> Dict[str, Any]:
    """Return what the streams of *app* in this process do; to be asked about once a second."""
    now = current_runtime().now()
    rows: List[Dict[str, Any]] = []
    for stream in current.streams():
        if stream._sender is app and getattr(stream, "_notes", None) is not None:
            rows.append(_row(stream, now))
    rows.sort(key=lambda row: -row["age"])
    followers: Dict[str, int] = {}
    for row in rows:
        if row["follows"]:
            followers[row["follows"]] = followers.get(row["follows"], 0) + 1
    return {
        "pid": os.getpid(),
        "streams": len(rows),
        "rate": round(sum(row["rate"] for row in rows), 1),
        "bytes": sum(row["bytes"] for row in rows),
        "states": _counted([row["state"].partition(",")[0].partition(":")[0] for row in rows]),
        "followers": followers,
        "rows": rows[:MOST_ROWS],
    }


def _counted(names: List[str]) -> Dict[str, int]:
    return {name: names.count(name) for name in sorted(set(names))}
