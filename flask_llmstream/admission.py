"""Whether a request gets a stream: the limits of :mod:`flask_llmstream.limits`, and the refusal.

Decisions
    1. Asked before anything is begun, in the event log or at a provider: a refusal should be the cheapest
       of all answers.
    2. Who comes back to a stream is a connection like any other, and counts for the worker. Neither for
       the owner nor for the route: their limits are about answers being written, and nobody is locked out
       of the own one because it still is.
    3. The place belongs to the response until a server iterates it: one that is thrown away gives it back.
"""

from __future__ import annotations

from typing import Any, Optional

from flask import current_app, has_request_context, request

from flask_llmstream.exceptions import LimitReached
from flask_llmstream.failures import describe_failure
from flask_llmstream.limits import OWNER_KEY, Seat, current_limits
from flask_llmstream.settings import MOST_COUNTED, Settings

__all__ = ["Admission", "admission_of", "note_owner", "refusal"]


class Admission:
    """What asks for a place, once it is known that a stream begins.

    :param app: the Flask app.
    :param settings: the settings in force.
    :param max_streams: limit of this route; 0 for none.
    :param follows: whether it is a reader of a stream that exists.
    """

    __slots__ = ("seat", "_app", "_settings", "_max_streams", "_follows")

    def __init__(self, app: Any, settings: Settings, max_streams: int, follows: bool) -> None:
        #: What was got.
        self.seat = Seat()
        self._app = app
        self._settings = settings
        self._max_streams = max_streams
        self._follows = follows

    def enter(self) -> None:
        """Take a place.

        :raises LimitReached: there is none.
        """
        owner = route = ""
        if has_request_context() and not self._follows:
            from flask_llmstream.resuming import owner_of_request

            route = str(request.endpoint)
            if self._settings.max_streams_per_owner:
                owner = owner_of_request(self._settings)
        current_limits().admit(self.seat, self._app, self._settings, owner, route, self._max_streams)


def admission_of(
    app: Any, settings: Settings, max_streams: Optional[int] = None, follows: bool = False
) -> Optional[Admission]:
    """Return what this request needs for a stream, ``None`` where nothing is limited.

    Parameters as for :class:`Admission`.

    :raises ValueError: for a limit that cannot be.
    """
    if max_streams is not None:
        if isinstance(max_streams, bool) or not isinstance(max_streams, int):
            raise ValueError(f"max_streams is a number of streams, got {max_streams!r:.80}")
        if not 0 <= max_streams <= MOST_COUNTED:
            raise ValueError(f"max_streams is 0 for no limit, or up to {MOST_COUNTED}, got {max_streams}")
    if not (max_streams or settings.max_streams or settings.max_streams_per_owner and not follows):
        return None
    if has_request_context() and request.method == "HEAD":
        return None  # nothing will run
    return Admission(app, settings, max_streams or 0, follows)


def note_owner() -> None:
    """Have the retrofit know who sends this request, where it counts the streams of owners."""
    from flask_llmstream.responses import settings_of

    settings = settings_of(current_app)
    if settings.max_streams_per_owner:
        from flask_llmstream.resuming import owner_of_request

        request.environ[OWNER_KEY] = owner_of_request(settings)


def refusal(app: Any, error: LimitReached) -> Any:
    """Return the answer for who has got no place."""
    failure = describe_failure(error)
    return app.response_class(failure.body(), failure.status, failure.headers())
