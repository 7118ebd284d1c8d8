"""Streams that outlive their connection: who may come back to which, and how.

Decisions
    1. Nothing about a stream's owner is stored: who comes back must be able to make the same
       signature (:mod:`~flask_llmstream.sansio.cursor`). What is not yours and what never was look alike.
    2. A stream is begun in the log before its first byte: a client may come back on another worker
       in the next moment. Where the log cannot be written the stream begins all the same.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import secrets
import tempfile
from typing import Any, List, NamedTuple, Optional, Tuple, Union

from flask import request, session, stream_with_context, url_for

from flask_llmstream.exceptions import BadCursor, LogUnavailable
from flask_llmstream.following import LoggedSource, describe_replayed
from flask_llmstream.journal import LATEST_LOOK, Journal, Writer, current_journals
from flask_llmstream.recording import Recorder, Replayer
from flask_llmstream.responses import respond
from flask_llmstream.sansio.cursor import END, CursorKeys
from flask_llmstream.settings import Settings
from flask_llmstream.stream import Stream

__all__ = [
    "Recording", "begin", "cursor_of_request", "departure", "journal_of", "keys_of", "owner_of_request",
    "refuse", "resume", "stop",
]

_log = logging.getLogger(__name__)

#: The epoch of all cursors: streams of an older layout of the log cannot be resumed.
_EPOCH = 1
#: Where the session keeps who somebody is to us.
_SESSION_KEY = "_llmstream"
#: The part of max_age after which the first connections are rotated.
_YOUNGEST = 0.8
#: What refusals say. What is not yours and what never was look alike.
_REFUSALS = {
    404: "There is no such stream.",
    410: "This stream is gone.",
    503: "Streams cannot be resumed now; try again.",
}
#: Seconds for which others are looked for when on_disconnect="cancel".
_LOOK = 1.5


def journal_of(app: Any, settings: Settings) -> Journal:
    """Return the journal of this process for the app's event log."""
    return current_journals()[settings.event_log or _shared_log(app)]


def _shared_log(app: Any) -> str:
    """Return the URL of a log that all workers of this app on this machine share."""
    name = hashlib.sha256(f"{app.import_name}\0{app.root_path}".encode()).hexdigest()[:16]
    folder = os.path.join(tempfile.gettempdir(), f"flask-llmstream-{os.getuid()}")
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        found = os.lstat(folder)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise RuntimeError(
                f"{folder} belongs to somebody else or is open to others; set LLMSTREAM_EVENT_LOG"
            ) from None
    return f"sqlite:///{os.path.join(folder, name)}.db"


def keys_of(app: Any) -> CursorKeys:
    """Return what signs for *app*: its secret key, and the older ones that Flask accepts still.

    :raises RuntimeError: the app has no secret key.
    """
    if not app.secret_key:
        raise RuntimeError("resumable streams are signed with app.secret_key; set one")
    found: List[Any] = [app.secret_key, *(app.config.get("SECRET_KEY_FALLBACKS") or ())]
    return CursorKeys([each.encode() if isinstance(each, str) else each for each in found])


def owner_of_request(settings: Settings) -> str:
    """Return who sends this request, as a text that goes into signatures and nowhere else.

    Somebody without credentials and without a session is nobody in particular: the names of their
    streams are secrets of their own then.
    """
    if settings.owner is not None:
        return f"owner:{settings.owner()}"
    authorization = request.headers.get("Authorization")
    if authorization:
        return f"authorization:{authorization}"
    # Flask-Login's user; or whoever has this session, if there is one.
    for key in ("_user_id", "user_id", _SESSION_KEY):
        if key in session:
            return f"session:{key}:{session[key]}"
    if session:
        session[_SESSION_KEY] = secrets.token_hex(16)
        return f"session:{_SESSION_KEY}:{session[_SESSION_KEY]}"
    return ""


class Recording(NamedTuple):
    """What a resumable stream needs beside what every stream needs."""

    writer: Writer
    #: The wire format around the stream's own.
    format: Recorder
    #: Where it can be followed and stopped.
    url: str

    def attach(self, stream: Stream, settings: Settings) -> None:
        """Tie it to the stream that it records."""
        self.writer.running = stream
        stream.returning = lambda: self.format.resumes and not self.writer.lost
        _limit_age(stream, settings)
        stream.on_end(lambda end: self.format.close(end, stream.finish_reason))


def _limit_age(stream: Stream, settings: Settings) -> None:
    """Have the stream's reader come back before its connection gets too old; not all at once."""
    if settings.max_age:
        stream.lasts = settings.max_age * random.uniform(_YOUNGEST, 1.0)


def begin(app: Any, settings: Settings, format: Any, id: str) -> Optional[Recording]:
    """Begin a stream in the app's log; ``None`` where that cannot be written now.

    :param format: its wire format.
    :param id: of the stream.
    """
    if not settings.url_prefix or "llmstream.follow" not in app.view_functions:
        raise RuntimeError("resumable streams need LLMStream(app), and LLMSTREAM_URL_PREFIX")
    keys, owner = keys_of(app), owner_of_request(settings)
    grace = settings.on_disconnect if isinstance(settings.on_disconnect, (int, float)) else 0.0
    writer = journal_of(app, settings).begin(
        id, settings.keep, settings.keep_events, settings.keep_bytes, float(grace)
    )
    if writer is None:
        return None
    url = url_for("llmstream.follow", ticket=keys.ticket(id, owner))
    return Recording(writer, Recorder(format, writer, keys.cursors(id, _EPOCH, owner), url), url)


def departure(on_disconnect: Any, settings: Settings) -> Any:
    """Return the policy of a resumable stream.

    :param on_disconnect: what was asked for; ``None`` for nothing.
    """
    policy = settings.grace if on_disconnect is None else on_disconnect
    if isinstance(policy, (int, float)) and policy > 0:
        return policy + LATEST_LOOK
    return _LOOK if policy == "cancel" else policy


def cursor_of_request() -> Optional[str]:
    """Return the cursor that this request comes back with."""
    return request.headers.get("Last-Event-ID") or request.args.get("after") or None


def resume(
    app: Any,
    settings: Settings,
    format: Any,
    *,
    ticket: Optional[str] = None,
    cursor: Optional[str] = None,
    negotiated: bool = True,
) -> Any:
    """Return the response for a reader who comes back.

    :param format: the wire format.
    :param ticket: names the stream; ``None`` where the cursor does.
    :param cursor: where to go on; ``None`` for the beginning.
    :param negotiated: whether the format was chosen by the request.
    """
    try:
        found = _find(app, settings, format, ticket, cursor)
    except LogUnavailable as error:
        _log.info("a reader is sent away: %s", error)
        found = 503
    if isinstance(found, int):
        return refuse(app, found)
    follower, url = found
    response = respond(app, follower, format, negotiated=negotiated)
    response.headers["Content-Location"] = url
    return response


def stop(app: Any, settings: Settings, ticket: str) -> Any:
    """Stop a stream, wherever it runs; return the response."""
    try:
        stream = keys_of(app).redeem(ticket, owner_of_request(settings))
        log = journal_of(app, settings).log
        gone = not log.request_stop(stream) and log.read(stream, 0, 1) is None
        return refuse(app, 410 if gone else 204)
    except BadCursor:
        return refuse(app, 404)
    except LogUnavailable:
        return refuse(app, 503)


def refuse(app: Any, status: int) -> Any:
    """Return an answer without a stream."""
    headers = {"Cache-Control": "no-store"}
    if status == 503:
        headers["Retry-After"] = "2"
    return app.response_class(_REFUSALS.get(status, ""), status, headers, mimetype="text/plain")


def _find(
    app: Any, settings: Settings, format: Any, ticket: Optional[str], cursor: Optional[str]
) -> Union[int, Tuple[Stream, str]]:
    """Return what follows a stream of the log, and its URL; or the HTTP status of a refusal."""
    keys, owner = keys_of(app), owner_of_request(settings)
    try:
        place = None if cursor is None else keys.read(cursor, owner)
        stream = place.stream if ticket is None and place is not None else keys.redeem(ticket or "", owner)
    except BadCursor:
        return 404
    if place is not None and place.stream != stream:
        return 404
    if place is not None and place.epoch != _EPOCH:
        return 410
    after = 0 if place is None else place.sequence
    if after == END:
        return 204
    log = journal_of(app, settings).log
    if log.read(stream, after, 1) is None:
        return 410
    source = LoggedSource(log, stream, after)
    url = url_for("llmstream.follow", ticket=keys.ticket(stream, owner))
    replayer = Replayer(format, source, keys.cursors(stream, _EPOCH, owner), url, begins=not after)
    follower = Stream(
        stream_with_context(source),
        format=replayer,
        settings=settings.replace(status_hold=0.0, on_disconnect="cancel"),
        describe=lambda error: describe_replayed(error, settings.expose_errors),
        sender=app,
        inner=source,
    )
    follower.id = secrets.token_hex(8)
    follower.returning = lambda: replayer.resumes
    _limit_age(follower, settings)
    return follower, url
