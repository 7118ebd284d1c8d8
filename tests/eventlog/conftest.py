"""What the tests of the log in Redis share: a server that may be ended."""

from __future__ import annotations

from typing import Any, Callable, Iterator, List

import pytest
from redis_servers import Server

from flask_llmstream.eventlog.redis import RedisEventLog


@pytest.fixture(scope="session")
def servers(tmp_path_factory: Any) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("redis"))
    yield server
    server.kill()


@pytest.fixture
def server(servers: Server) -> Server:
    """A running server that may be ended."""
    if servers._process is None:
        servers.start()
    return servers


@pytest.fixture
def make(server: Server) -> Iterator[Callable[..., RedisEventLog]]:
    """Return a function that opens the log of the server."""
    logs: List[RedisEventLog] = []

    def open_(url: str = "") -> RedisEventLog:
        # Whoever is to be refused soon says so: elsewhere a busy machine may take its time.
        log = RedisEventLog(url or f"{server.url}?timeout=10")
        logs.append(log)
        return log

    yield open_
    for log in logs:
        log.close()
