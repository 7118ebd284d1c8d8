"""Any WSGI app can be wrapped: Bottle, Django, Pyramid, and one without a framework."""

from __future__ import annotations

import importlib.util
import threading
import time
from typing import Any, Iterator
from urllib.parse import quote

import pytest
from asking import APPS, ask, leaving

from flask_llmstream.testing import LiveServer, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, done, hold, silence, tokens

pytestmark = pytest.mark.live


def if_installed(name: str) -> Any:
    missing = importlib.util.find_spec(name) is None
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"this stack has no {name}"))


FRAMEWORKS = ["bare", *(if_installed(name) for name in ("bottle", "django", "pyramid"))]


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    config = "accesslog = None"
    with gunicorn_server(APPS / "others.py", request.param, threads=8, config_lines=config) as server:
        yield server


def address(upstream: ScriptedUpstream, name: str) -> str:
    return f"/{name}/relay?url={quote(upstream.url + '/chat/completions')}"


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_stream_is_kept_alive_and_not_buffered(server: LiveServer, name: str) -> None:
    flag = threading.Event()
    with ScriptedUpstream([tokens("a"), hold(flag), tokens("b"), done()]) as upstream:
        reader = server.request(address(upstream, name))
        with leaving(reader):
            # The upstream says no more before this has come.
            body = b"".join(data for _, data in reader.read_until(b": hb\n"))
            flag.set()
            body += reader.read()
            assert reader.complete
    assert reader.headers["x-accel-buffering"] == "no" and "content-length" not in reader.headers
    assert b": hb\n" in body and b"[DONE]" in body


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_client_that_leaves_is_noticed_at_once(server: LiveServer, name: str) -> None:
    with ScriptedUpstream([tokens("abc"), silence()]) as upstream:
        reader = server.request(address(upstream, name))
        reader.read_until(b"abc")
        before = ask(server, "/notes").count(name)
        left_at = time.monotonic()
        reader.close()
        upstream.wait_closed()
        assert time.monotonic() - left_at < 5.0
        wait_until(lambda: ask(server, "/notes").count(name) == before + 1, 5, server.log)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_other_answers_pass(server: LiveServer, name: str) -> None:
    reader = server.request(f"/{name}/hello")
    with leaving(reader):
        assert reader.read() == b"hello"
    assert "x-accel-buffering" not in reader.headers
