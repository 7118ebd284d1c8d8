"""Sessions: what is written to them while a response streams is lost."""

from __future__ import annotations

from typing import Iterator

from flask_llmstream.doctor.facts import AppFacts
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at what writes to the session too late, or more often than it seems."""
    for route in facts.routes:
        if route.session_writes:
            yield Finding(
                "session-written-late", "problem", f"the view {route.endpoint}",
                "its generator writes to the session: "
                + "; ".join(use.what for use in route.session_writes),
                f"{facts.session_interface.rpartition('.')[2]} saves the session before the stream begins:"
                " what is written later is lost, without an error",
                "write before the stream begins, or store it elsewhere (a database, in a `finally`)",
                route.session_writes[0].where,
            )
    if facts.permanent and facts.routes and facts.config.get("SESSION_REFRESH_EACH_REQUEST", True):
        if facts.session_interface.startswith("flask.sessions."):
            yield Finding(
                "session-sent-with-streams", "note", "SESSION_REFRESH_EACH_REQUEST",
                f"sessions are permanent: {facts.permanent[0].what}",
                "each stream sets the cookie again, as it was when the stream was asked for: an answer that"
                " came in between may be overwritten with what was before",
                "SESSION_REFRESH_EACH_REQUEST = False", facts.permanent[0].where,
            )
