"""From facts to findings: pure functions, one module for each theme."""

from __future__ import annotations

from typing import List

from flask_llmstream.doctor.checks import (
    configuration,
    database,
    deployment,
    hooks,
    libraries,
    middleware,
    servers,
    sessions,
)
from flask_llmstream.doctor.facts import AppFacts
from flask_llmstream.doctor.findings import Finding

__all__ = ["check"]

_THEMES = (hooks, middleware, deployment, servers, libraries, sessions, configuration, database)


def check(facts: AppFacts) -> List[Finding]:
    """Return what is wrong, in the order of the themes."""
    return [finding for theme in _THEMES for finding in theme.check(facts)]
