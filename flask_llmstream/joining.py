"""Requests for a resumable stream that need no new one: who comes back, and who asks a second time.

An ``Idempotency-Key`` names a generation for whoever has bought it: the same POST with the same key, by
the same owner, follows the one that runs or has finished. One that has failed so that it may be tried
again, was cancelled, or is kept no longer, is begun anew.

Decisions
    1. A stream is begun in the log before its key is claimed. So whoever finds the key taken finds the
       stream, too; and whoever has lost the race gives back an empty one.
    2. A claim is not undone. The successor of a stream that does not count any more is claimed under a
       key made of the old one and that stream: again one of many wins.
    3. Where the log cannot be used the answer is more than the promise: a new generation begins.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Optional, Tuple

from flask import request

from flask_llmstream.eventlog import EventLog
from flask_llmstream.eventlog.base import FINISHED, OPEN
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.resuming import Recording, begin, journal_of, keys_of, owner_of_request, resume
from flask_llmstream.sansio.stored import Done, Failed, load
from flask_llmstream.settings import Settings

__all__ = ["take_up"]

#: Characters of a key at most; and at least where nobody is known to have sent it.
_MAX_LENGTH, _MIN_SECRET = 255, 16
#: Seconds for which a key is kept, beyond those for which a stream is after its end.
_KEPT = 86400.0


def take_up(
    app: Any, settings: Settings, format: Any, id: str, negotiated: bool
) -> Tuple[Any, Optional[Recording]]:
    """Return the response where this request goes on with a stream, or else what records a new one.

    :param format: the wire format.
    :param id: of the new one.
    :param negotiated: whether the format was chosen by the request.
    """
    cursor = request.headers.get("Last-Event-ID")
    if cursor:  # an EventSource comes back to the same address: nothing is begun anew
        return resume(app, settings, format, cursor=cursor, negotiated=negotiated), None
    if request.method == "HEAD":
        return None, None
    text = request.headers.get("Idempotency-Key") if request.method == "POST" else None
    if text is None:
        return None, begin(app, settings, format, id)
    owner = owner_of_request(settings)
    wrong = _what_is_wrong_with(text, bool(owner))
    if wrong:
        return _refuse_key(app, wrong), None
    recording = begin(app, settings, format, id)
    if recording is None:
        return None, None
    key = "idempotency:" + _digest(owner, request.path, text)
    try:
        found = _claim(journal_of(app, settings).log, key, id, settings.keep + _KEPT)
    except LogUnavailable:
        found = id
    if found == id:
        return None, recording
    recording.writer.close()
    ticket = keys_of(app).ticket(found, owner)
    return resume(app, settings, format, ticket=ticket, negotiated=negotiated), None


def _what_is_wrong_with(key: str, owned: bool) -> str:
    if not key or len(key) > _MAX_LENGTH or not all(" " < char <= "~" for char in key):
        return f"Idempotency-Key must be 1 to {_MAX_LENGTH} printable ASCII characters without spaces."
    if not owned and len(key) < _MIN_SECRET:
        # It is all that keeps others from this answer.
        return (
            f"Without credentials an Idempotency-Key must have at least {_MIN_SECRET} characters that"
            " nobody can guess, such as a random UUID."
        )
    return ""


def _refuse_key(app: Any, message: str) -> Any:
    error = {"message": message, "code": "invalid_idempotency_key", "retryable": False}
    headers = {"Cache-Control": "no-store"}
    return app.response_class(json.dumps({"error": error}), 400, headers, mimetype="application/json")


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _claim(log: EventLog, key: str, stream: str, keep: float) -> str:
    """Return the stream that counts for *key*: *stream*, unless there is one."""
    found = log.claim(key, stream, keep)
    while found != stream and not _counts(log, found):
        key = "idempotency:" + _digest(key, found)
        found = log.claim(key, stream, keep)
    return found


def _counts(log: EventLog, stream: str) -> bool:
    """Whether *stream* is an answer that need not be asked for again."""
    page = log.read(stream, 0, 1)
    if page is None or page.state not in (OPEN, FINISHED):
        return False
    if page.state == OPEN:
        return True
    last = log.read(stream, page.last - 1, 1)
    end = load(last.entries[0]) if last is not None and last.entries else None
    if isinstance(end, Failed):
        return not end.retryable
    return isinstance(end, Done) and end.reason != "cancelled"
