"""Who may see what is for the app's operators and not for its users."""

from __future__ import annotations

from typing import Any, Optional

from flask_llmstream.responses import settings_of

__all__ = ["refusal_of"]


def refusal_of(app: Any, what: str) -> Optional[Any]:
    """Return the answer for who may not see *what*, ``None`` for who may; called in a request.

    Without the setting ``authorize`` everybody may: what is shown was switched on.

    :param what: the name of the page, such as ``metrics``.
    """
    authorize = settings_of(app).authorize
    if authorize is None or authorize(what):
        return None
    text = f"LLMSTREAM_AUTHORIZE does not let you see {what!r}.\n"
    return app.response_class(text, 403, {"Cache-Control": "no-store"}, mimetype="text/plain")
