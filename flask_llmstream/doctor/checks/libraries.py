"""Libraries that block a gevent worker, and patches that came too late."""

from __future__ import annotations

from typing import Iterator, Optional

from flask_llmstream.doctor.facts import AppFacts
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]


def check(facts: AppFacts) -> Iterator[Finding]:
    """Look at the libraries, where the worker is gevent; at late patches, where it does not patch."""
    known = facts.deployment
    if known is not None and known.is_gevent:
        for what, remedy, seen in facts.blocking:
            if what.partition(" ")[0] not in known.remedies:
                yield Finding(
                    "blocks-gevent", "warning", what, seen,
                    "it waits in C, where gevent's patches do not reach: meanwhile every stream of the worker"
                    " stands still, and so do heartbeats",
                    remedy, _where(seen),
                )
    patches_first = known is not None and known.is_gevent and (
        known.patched or (known.server == "gunicorn" and not known.preload)
    )
    if facts.patched and facts.late and not patches_first:
        yield Finding(
            "patched-late", "problem", "gevent.monkey",
            f"{', '.join(facts.late[:8])}{' …' * (len(facts.late) > 8)} was taken before the app patched it",
            "what was taken stays unpatched: it blocks all streams of the process, and TLS fails with"
            " RecursionError",
            "patch before everything else is imported, or leave it to gunicorn's gevent worker",
        )


def _where(seen: str) -> Optional[str]:
    return seen.rpartition(" ")[2] if " in " in seen else None
