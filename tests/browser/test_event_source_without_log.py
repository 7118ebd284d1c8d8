"""A browser's EventSource comes back while the log is away, and is not turned down for good."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable, Optional

import pytest

from flask_llmstream.testing import ScriptedUpstream, gunicorn_server, wait_until

TESTS = Path(__file__).resolve().parent.parent
sys.path.extend([str(TESTS / "live"), str(TESTS / "eventlog")])

from coming_back import Cuts, CuttingProxy, chat, script_for, words_of  # noqa: E402
from redis_servers import Server as RedisServer  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.browser]


def test_an_event_source_outlives_a_redis_that_is_restarted(browser: Any, tmp_path: Path) -> None:
    pytest.importorskip("redis", reason="needs the extra redis")
    cuts = Cuts(1, least=900, most=900)

    def plan(target: str) -> Optional[int]:
        return cuts("stream") if target.startswith("/chat") else None

    def value(name: str) -> Callable[[], Any]:
        return lambda: browser.execute_script(f"return {name}")

    redis = RedisServer(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    redis.start()
    model = "browser-60-50"
    try:
        with ScriptedUpstream(script_for) as upstream:
            environment = {"EVENT_LOG": redis.url, "UPSTREAM": upstream.url}
            with gunicorn_server(
                TESTS / "live" / "apps" / "resumable.py", workers=2, env=environment,
                config_lines="keepalive = 0",
            ) as server, CuttingProxy(server.address, plan) as proxy:
                browser.get(proxy.url + chat(model, "/page"))
                wait_until(value("errors > 0"), 20.0, "the connection to be cut")
                redis.kill()
                server.wait_for_log("a reader is sent away", 20.0)
                wait_until(value("errors > 1"), 20.0, "the browser to be sent away")
                assert value("source.readyState")() == 0, "it comes back"
                redis.start()
                wait_until(value("source.readyState == 2"), 30.0, lambda: f"the end; the log: {server.log()}")
                assert value("text")() == "".join(words_of(model))
                assert len(value("ends")()) == 1
                browser.get("about:blank")
            assert upstream.requests == 1
    finally:
        redis.kill()
