"""Requests for a resumable stream that need no new one: who comes back, and who asks a second time.

Whoever cannot remember what the stream is called comes back with a key that the app has given it:
``resume_key``, the id of a chat for one. The log knows which stream runs under it now.

An ``Idempotency-Key`` names a generation for whoever has bought it: the same POST with the same key, by
the same owner, follows the one that runs or has finished. One that has failed so that it may be tried
again, was cancelled, or is kept no longer, is begun anew.

Decisions
    1. A stream is begun in the log before its key is claimed. So whoever finds the key taken finds the
       stream, too; and whoever has lost the race gives back an empty one.
    2. A claim is not undone. The successor of a stream that does not count any more is claimed under a
       key made of the old one and that stream: again one of many wins.
    3. What a key was first sent with is claimed before the key itself: so of two requests that differ one
       is refused before it can take the answer of the other for its own.
    4. Where the log cannot be used the answer is more than the promise: a new generation begins.
    5. The owner is a part of every key. Of a key of somebody else, one that never was and a stream that
       has ended nothing is said but 204: there is nothing to follow.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from typing import Any, Callable, Mapping, Optional, Tuple, Union

from flask import current_app, request

from flask_llmstream.eventlog import EventLog
from flask_llmstream.eventlog.base import FINISHED, OPEN
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.fingerprint import fingerprint
from flask_llmstream.responses import make_stream_format, settings_of
from flask_llmstream.resuming import (
    Recording,
    begin,
    journal_of,
    keys_of,
    owner_of_request,
    refuse,
    resume,
)
from flask_llmstream.sansio.stored import Done, Failed, load
from flask_llmstream.settings import Settings

__all__ = ["resume_response", "take_up"]

_log = logging.getLogger(__name__)

#: Characters of a key at most; and at least where nobody is known to have sent it.
_MAX_LENGTH, _MIN_SECRET = 255, 16
#: Seconds for which a key is kept, beyond those for which a stream is after its end.
_KEPT = 86400.0


def take_up(
    app: Any,
    settings: Settings,
    format: Any,
    id: str,
    negotiated: bool,
    resume_key: Optional[str] = None,
    enter: Optional[Callable[[], None]] = None,
) -> Tuple[Any, Optional[Recording]]:
    """Return the response where this request goes on with a stream, or else what records a new one.

    :param format: the wire format.
    :param id: of the new one.
    :param negotiated: whether the format was chosen by the request.
    :param resume_key: under which :func:`resume_response` finds the new one.
    :param enter: takes a place for the new one.
    :raises LimitReached: there is no place.
    """
    if resume_key is None:
        return _take_up(app, settings, format, id, negotiated, enter)
    owner = owner_of_request(settings)
    if not owner and len(resume_key) < _MIN_SECRET:
        return _refuse_key(app, "invalid_resume_key", (
            f"Without credentials the key of a stream must have at least {_MIN_SECRET} characters that nobody"
            " can guess. The app may say with LLMSTREAM_OWNER who sends a request."
        )), None
    answer, recording = _take_up(app, settings, format, id, negotiated, enter)
    if recording is not None:
        try:
            _bind(journal_of(app, settings).log, _name(owner, resume_key), id, settings.keep + _KEPT)
        except BaseException as error:
            recording.abandon(error)
            raise
    return answer, recording


def resume_response(
    key: str,
    *,
    format: Union[str, Callable[[], Any], None] = "ai-sdk",
    format_options: Optional[Mapping[str, Any]] = None,
) -> Any:
    """Return a Flask response that follows what runs under *key*: from its beginning, then live.

    For the route that the Vercel AI SDK asks after a page was loaded anew, ``GET <api>/<chat id>/stream``.
    The answer is 204 where nothing runs: the stream has ended, never was, or is somebody else's. It is
    503 where the event log cannot be read now. An EventSource that comes back with ``Last-Event-ID`` gets
    the rest of what it has begun to read.

    :param key: the ``resume_key`` that the stream was given; see :func:`stream_response`.
    :param format: as in :func:`stream_response`; ``None`` for what the request's ``Accept`` likes best.
        Defaults to ``"ai-sdk"``.
    :param format_options: as in :func:`stream_response`.
    :raises TypeError: if *key* is no text.
    """
    check_key(key)
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    settings = settings_of(app)
    cursor = request.headers.get("Last-Event-ID")
    if cursor:
        encoder = make_stream_format(format, secrets.token_hex(8), format_options)
        return resume(app, settings, encoder, cursor=cursor, negotiated=format is None)
    owner = owner_of_request(settings)
    try:
        found = _running(journal_of(app, settings).log, _name(owner, key))
    except LogUnavailable as error:
        _log.info("a reader is sent away: %s", error)
        return refuse(app, 503)
    if found is None:
        return refuse(app, 204)
    encoder = make_stream_format(format, found, format_options)
    ticket = keys_of(app).ticket(found, owner)
    return resume(app, settings, encoder, ticket=ticket, negotiated=format is None)


def check_key(key: Any) -> None:
    """Raise :class:`TypeError` unless *key* can be a ``resume_key``."""
    if not isinstance(key, str) or not key:
        raise TypeError(f"the key of a stream is a text that is not empty, got {key!r:.80}; use str()")


def _name(owner: str, key: str) -> str:
    return "resume:" + _digest(owner, key)


def _bind(log: EventLog, key: str, stream: str, keep: float) -> None:
    try:
        log.bind(key, stream, keep)
    except LogUnavailable as error:
        _log.warning("a stream cannot be found by its key: %s", error)


def _running(log: EventLog, key: str) -> Optional[str]:
    """Return the stream that runs under *key*, ``None`` for none."""
    stream = log.bound(key)
    page = None if stream is None else log.read(stream, 0, 1)
    return stream if page is not None and page.state == OPEN else None


def _take_up(
    app: Any, settings: Settings, format: Any, id: str, negotiated: bool, enter: Optional[Callable[[], None]]
) -> Tuple[Any, Optional[Recording]]:
    cursor = request.headers.get("Last-Event-ID")
    if cursor:  # an EventSource comes back to the same address: nothing is begun anew
        return resume(app, settings, format, cursor=cursor, negotiated=negotiated), None
    if request.method == "HEAD":
        return None, None
    text = request.headers.get("Idempotency-Key") if request.method == "POST" else None
    if text is None:
        if enter is not None:
            enter()
        return None, begin(app, settings, format, id)
    owner = owner_of_request(settings)
    wrong = _what_is_wrong_with(text, bool(owner))
    if wrong:
        return _refuse_key(app, "invalid_idempotency_key", wrong), None
    key, keep = "idempotency:" + _digest(owner, request.path, text), settings.keep + _KEPT
    told = fingerprint()
    recording = begin(app, settings, format, id)
    if recording is None:
        if enter is not None:
            enter()
        return None, None
    log = journal_of(app, settings).log
    found: Optional[str] = None
    try:
        try:
            if log.claim(f"{key}:request", told, keep) == told:
                found = _claim(log, key, id, keep)
        except LogUnavailable:
            found = id
        if found == id and enter is not None:
            enter()  # not earlier: who asks for an answer that is there needs no place for a new one
    except BaseException as error:
        recording.abandon(error)
        raise
    if found == id:
        return None, recording
    recording.writer.close()
    if found is None:
        return _refuse_key(app, "idempotency_key_reused", (
            "This Idempotency-Key was used for another request: its body or query differs. Take a new key"
            " for each question, and the same one only to ask the same again."
        ), 422), None
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


def _refuse_key(app: Any, code: str, message: str, status: int = 400) -> Any:
    error = {"message": message, "code": code, "retryable": False}
    headers = {"Cache-Control": "no-store"}
    return app.response_class(json.dumps({"error": error}), status, headers, mimetype="application/json")


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
