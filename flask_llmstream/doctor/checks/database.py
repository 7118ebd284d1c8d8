"""Connection pools that streams use up."""

from __future__ import annotations

from typing import Iterator, Tuple

from flask_llmstream.doctor.facts import AppFacts, Route, Use
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at the smallest pool, for each route that holds a connection while it streams."""
    if not facts.pools:
        return
    pool = min(facts.pools, key=lambda pool: pool.limit)
    capacity = facts.deployment.capacity if facts.deployment is not None and facts.deployment.worker else None
    if capacity is not None and capacity <= pool.limit:
        return
    streams = f"{capacity} streams" if capacity is not None else "any number of streams"
    for route in facts.routes:
        uses = _held(facts, route)
        if uses:
            yield Finding(
                "pool-too-small", "warning", f"the view {route.endpoint}",
                f"{pool.name} has {pool.limit} connections, a worker serves {streams};"
                f" held meanwhile: {uses[0].what}",
                f"stream {pool.limit + 1} waits for pool_timeout and fails, and so does every other request"
                " that queries",
                "db.session.remove() before the next `yield`" if uses == route.queries_inside
                else "LLMSTREAM_RELEASE = True, or @stream(release=True)",
                uses[0].where,
            )


def _held(facts: AppFacts, route: Route) -> Tuple[Use, ...]:
    """Return the queries whose connection stays in use while the route streams."""
    if route.queries_inside:
        return route.queries_inside
    release = facts.settings.release if facts.settings is not None else None
    if facts.ends_context_early or (release if route.release is None else route.release):
        return ()
    return route.queries_before or facts.queries_of_hooks
