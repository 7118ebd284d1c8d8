"""A browser's own EventSource over a connection that is cut: it comes back by itself and gets the rest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import pytest

from flask_llmstream.testing import ScriptedUpstream, gunicorn_server, wait_until

LIVE = Path(__file__).resolve().parent.parent / "live"
sys.path.append(str(LIVE))

from coming_back import Cuts, CuttingProxy, chat, script_for, words_of  # noqa: E402

pytestmark = [pytest.mark.live, pytest.mark.browser]

CUTS = 2


def test_an_event_source_that_is_cut_ends_with_the_exact_text(browser: Any, tmp_path: Path) -> None:
    cuts = Cuts(CUTS, least=400)

    def plan(target: str) -> Optional[int]:
        return cuts("stream") if target.startswith("/chat") else None

    model = "browser-60-50"
    with ScriptedUpstream(script_for) as upstream:
        environment = {"EVENT_LOG": f"sqlite:///{tmp_path}/streams.db", "UPSTREAM": upstream.url}
        # The proxy looks at the first request of each connection only.
        once = "keepalive = 0"
        with gunicorn_server(
            LIVE / "apps" / "resumable.py", workers=2, env=environment, config_lines=once
        ) as server:
            with CuttingProxy(server.address, plan) as proxy:
                browser.get(proxy.url + chat(model, "/page"))
                wait_until(
                    lambda: browser.execute_script("return source.readyState") == 2, 30.0,
                    lambda: f"the end; the log: {server.log()}",
                )
                assert browser.execute_script("return text") == "".join(words_of(model))
                assert len(browser.execute_script("return ends")) == 1
                assert browser.execute_script("return errors") >= CUTS
                browser.get("about:blank")
        assert upstream.requests == 1
