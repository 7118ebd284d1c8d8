"""The server that all tests of the client talk to."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List

import pytest
from scripted import Exchange, ScriptedServer, Serve


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that starts a server for a script; all are stopped after the test."""
    servers: List[ScriptedServer] = []

    def start(script: Callable[[Exchange], None], **options: Any) -> ScriptedServer:
        servers.append(ScriptedServer(script, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
    for server in servers:
        assert not server.errors, server.errors
