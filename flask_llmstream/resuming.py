"""Streams that outlive their connection: who may come back to which, and how.

Decisions
    1. Nothing about a stream's owner is stored: who comes back must be able to make the same
       signature (:mod:`~flask_llmstream.sansio.cursor`). What is not yours and what never was look alike.
    2. A stream is begun in the log before its first byte: a client may come back on another worker
       in the next moment. Where the log cannot be written the stream begins all the same.
"""

from __future__ import annotations

import logging
import os
import random
import secrets
import tempfile
import weakref
from typing import Any, List, NamedTuple, Optional, Union

from flask import request, session, stream_with_context, url_for

from flask_llmstream.admission import admission_of, refusal
from flask_llmstream.exceptions import BadCursor, LimitReached, LogUnavailable
from flask_llmstream.folders import app_digest, private_folder
from flask_llmstream.following import LoggedSource, describe_replayed
from flask_llmstream.journal import LATEST_LOOK, Journal, Writer, current_journals
from flask_llmstream.readers import Presence
from flask_llmstream.recording import Recorder, Replayer
from flask_llmstream.responses import describe_in_app, for_this_client, respond
from flask_llmstream.sansio.cursor import END, CursorKeys, Cursors
from flask_llmstream.sansio.events import Event
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
#: What apps say of a user who is none, or has logged out. As a name it would be that of all such people.
_NOBODY = (None, "")
#: The part of max_age after which the first connections are rotated.
_YOUNGEST = 0.8
#: What refusals say. What is not yours and what never was look alike.
_REFUSALS = {
    404: "There is no such stream.",
    410: "This stream is gone.",
    503: "Streams cannot be resumed now; try again.",
}
#: Seconds after which a reader comes back whom the log has failed.
_RETRY_AFTER = 2


class _Look(float):
    """Seconds for which others are looked for, where nobody is given any to come back."""


#: What becomes of on_disconnect="cancel".
_LOOK = _Look(1.5)


def journal_of(app: Any, settings: Settings) -> Journal:
    """Return the journal of this process for the app's event log."""
    return current_journals()[settings.event_log or _shared_log(app)]


def _shared_log(app: Any) -> str:
    """Return the URL of a log that all workers of this app on this machine share."""
    folder = private_folder(os.path.join(tempfile.gettempdir(), f"flask-llmstream-{os.getuid()}"))
    return f"sqlite:///{os.path.join(folder, app_digest(app))}.db"


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
        said = settings.owner()
        return "" if said in _NOBODY else f"owner:{said}"
    authorization, user = request.headers.get("Authorization"), ""
    # Flask-Login's user; or whoever has this session, if there is one.
    for key in ("_user_id", "user_id"):
        if not user and session.get(key) not in _NOBODY:
            user = f"session:{key}:{session[key]}"
    if authorization:
        # Both where both are there: many may share the password of a site, or the key of a front end.
        return f"authorization:{len(authorization)}:{authorization}{user}"
    if not user and session:
        if _SESSION_KEY not in session:
            session[_SESSION_KEY] = secrets.token_hex(16)
        user = f"session:{_SESSION_KEY}:{session[_SESSION_KEY]}"
    return user


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
        stream.seal = lambda end, code: self.format.close(
            # What was never sent is no answer for who asks again.
            end, "cancelled" if stream.task is None else stream.finish_reason, code,
            lambda error: describe_in_app(error, settings.expose_errors),
        )

    def abandon(self, error: BaseException) -> None:
        """End what was begun in the log for a stream that cannot begin."""
        self.format.abandon(error)


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
        id, settings.keep, settings.keep_events, settings.keep_bytes, float(grace),
        0.0 if isinstance(grace, _Look) else None,
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
    place = _locate(app, settings, ticket, cursor)
    if isinstance(place, int):
        return refuse(app, place)
    journal = journal_of(app, settings)
    log = journal.log
    admission = admission_of(app, settings, follows=True)
    try:
        if log.read(place.stream, place.after, 1) is None:
            return refuse(app, 410)
        if admission is not None:
            admission.enter()
    except LogUnavailable as error:
        _log.info("a reader is sent away: %s", error)
        return _ask_to_come_back(app, format, place, _RETRY_AFTER) or refuse(app, 503)
    except LimitReached as error:
        return _ask_to_come_back(app, format, place, error.retry_after) or refusal(app, error)
    presence = journal.readers.enter(place.stream)
    source = LoggedSource(log, place.stream, place.after, presence)
    follower = _follower(app, settings, source, Replayer(
        format, source, place.cursors, place.url, begins=not place.after
    ))
    _Leaving(follower, presence)
    response = respond(app, follower, format, negotiated=negotiated)
    response.headers["Content-Location"] = place.url
    response.llmstream_seat = None if admission is None else admission.seat
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
        headers["Retry-After"] = str(_RETRY_AFTER)
    return app.response_class(_REFUSALS.get(status, ""), status, headers, mimetype="text/plain")


class _Place(NamedTuple):
    """Where a reader goes on."""

    stream: str
    #: Number of the last entry that the reader has got.
    after: int
    cursors: Cursors
    url: str


def _locate(app: Any, settings: Settings, ticket: Optional[str], cursor: Optional[str]) -> Union[int, _Place]:
    """Return where the reader goes on, or the HTTP status of a refusal."""
    keys, owner = keys_of(app), owner_of_request(settings)
    try:
        read = None if cursor is None else keys.read(cursor, owner)
        stream = read.stream if ticket is None and read is not None else keys.redeem(ticket or "", owner)
    except BadCursor:
        return 404
    if read is not None and read.stream != stream:
        return 404
    if read is not None and read.epoch != _EPOCH:
        return 410
    after = 0 if read is None else read.sequence
    if after == END:
        return 204
    url = url_for("llmstream.follow", ticket=keys.ticket(stream, owner))
    return _Place(stream, after, keys.cursors(stream, _EPOCH, owner), url)


def _follower(app: Any, settings: Settings, source: LoggedSource, replayer: Replayer) -> Stream:
    """Return the stream that sends what *source* reads."""
    follower = Stream(
        stream_with_context(source),
        format=replayer,
        settings=for_this_client(settings, replayer.content_type).replace(
            status_hold=0.0, on_disconnect="cancel", stall_warning=0.0,
            max_bytes=0,  # what was written may be longer in another format
            idle_timeout=0.0,  # its source is the log, which says when the stream itself has been given up
        ),
        describe=lambda error: describe_replayed(error, settings.expose_errors),
        sender=app,
        inner=source,
    )
    follower.id = secrets.token_hex(8)
    follower.returning = lambda: replayer.resumes
    _limit_age(follower, settings)
    return follower


class _Leaving:
    """Hears of it when the reader of a stream that follows another has left, and not only gone elsewhere.

    Whatever thread or greenlet has noticed is here: the source itself may sleep in the log still.
    """

    def __init__(self, follower: Stream, presence: Presence) -> None:
        self._follower = weakref.ref(follower)
        self._presence = presence
        self._resumes = follower.returning
        self._sent_away = False
        follower.returning = self._returns
        follower.waits = self

    def _returns(self) -> bool:
        """Say whether the reader can come back; asked by who is about to send it away."""
        self._sent_away = bool(self._resumes and self._resumes())
        return self._sent_away

    def wake(self) -> None:
        """Take note that the follower is cancelled."""
        follower = self._follower()
        gone = follower is not None and follower.cancelled == "disconnect"
        self._presence.leave(expected=self._sent_away or not gone)


def _ask_to_come_back(app: Any, format: Any, place: _Place, seconds: float) -> Any:
    """Return the answer while this cannot be read; ``None`` where the status says enough.

    An EventSource takes any status but 200 for the end of all. So it gets an event stream that says when
    to come back, with the cursor that it has, and ends.
    """
    if format.name != "sse" or "text/event-stream" not in request.headers.get("Accept", ""):
        return None
    event = Event({"url": place.url}, "stream", place.cursors.at(place.after), int(1000 * seconds))
    headers = {"Cache-Control": "no-store", "Content-Location": place.url}
    return app.response_class(format.encode(event), 200, headers, content_type=format.content_type)
