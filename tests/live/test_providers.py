"""A client that leaves ends the call to any provider, by our call or by its SDK, and it is paid for."""

from __future__ import annotations

import importlib.util
import time
from typing import Any, Callable, Iterator, List

import pytest
from asking import APPS, ended, leaving, new_key, text_of

from flask_llmstream.sansio.events import Finish, ReasoningDelta, Usage
from flask_llmstream.testing import LiveServer, StreamReader, gunicorn_server, wait_until
from flask_llmstream.testing.upstreams import ScriptedUpstream, silence, speak

pytestmark = pytest.mark.live

#: Provider: (module of its SDK, how it speaks).
SDKS = {
    "openai": ("openai", "openai"),
    "openai-responses": ("openai.types.responses", "openai-responses"),
    "anthropic": ("anthropic", "anthropic"),
    "ollama": ("ollama", "ollama"),
    "gemini": ("google.genai", "gemini"),
    "langchain": ("langchain_openai", "openai"),
}
OURS = [provider for provider in SDKS if provider != "langchain"]
#: Upstreams must see that nobody listens any more within this; measured on a quiet machine: 3 ms.
WORST = 5.0
#: Who says what the prompt has cost before the answer is complete.
SAYS_INPUT = ("anthropic", "gemini")


def has(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False


def ways() -> List[Any]:
    found: List[Any] = [pytest.param("ours", provider) for provider in OURS]
    for provider, (module, _) in SDKS.items():
        missing = pytest.mark.skipif(not has(module), reason=f"this stack has no {module}")
        found.append(pytest.param("sdk", provider, marks=missing))
    return found


@pytest.fixture(scope="module", params=["gevent", "gthread"])
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    quiet = "accesslog = None"
    with gunicorn_server(
        APPS / "providing.py", worker=request.param, threads=8, config_lines=quiet
    ) as server:
        yield server


def start(server: LiveServer, upstream: ScriptedUpstream, way: str, provider: str, key: str) -> StreamReader:
    return server.request(f"/ask/{way}/{provider}", json={"key": key, "origin": upstream.origin}, timeout=60)


@pytest.mark.parametrize("way, provider", ways())
def test_client_that_leaves_closes_a_silent_upstream(
    server: LiveServer, way: str, provider: str, measured: Callable[..., None]
) -> None:
    voice = SDKS[provider][1]
    latencies: List[float] = []
    with ScriptedUpstream(speak(voice, "a", "b", Finish("stop"), Usage(7, 2))) as upstream:
        # The first use of an SDK takes seconds of imports.
        key = new_key()
        with leaving(start(server, upstream, way, provider, key)) as reader:
            assert text_of(b"".join(reader.read().partition(b"event: done")[:1])) == "ab"
        end = ended(server, key)["ends"][0]
        assert (end["reason"], end["estimated"]) == ("finish", end["input_tokens"] is None)
        upstream.script = speak(voice, ReasoningDelta("Hm."), "a", "b", silence())
        for _ in range(3):
            key = new_key()
            reader = start(server, upstream, way, provider, key)
            reader.read_until(b'"b"')
            exchange = upstream.exchanges[-1]
            left_at = time.monotonic()
            reader.close()
            wait_until(lambda: exchange.closed_at is not None, 10.0, "the upstream to be left")
            assert exchange.peer.closed_by == "peer"
            latencies.append((exchange.closed_at or 0.0) - left_at)
            note = ended(server, key)
            assert note["raised"] == ["StreamCancelled"] and note["cleaned_up"] == 1
            check_cost(note["ends"], provider)
        assert upstream.requests == 4, "an SDK tried again for a client that had left"
    measured(f"client leaves → upstream sees it ({way}, {provider})", latencies)
    assert max(latencies) <= WORST


def check_cost(ends: List[Any], provider: str) -> None:
    """What the model has written is counted, reasoning and all; the prompt where that is known."""
    assert len(ends) == 1
    assert (ends[0]["reason"], ends[0]["text"], ends[0]["estimated"]) == ("disconnect", "ab", True)
    # LangChain does not hand on what OpenAI's servers call reasoning_content.
    assert ends[0]["tokens"] == (2 if provider == "langchain" else 3)
    assert ends[0]["input_tokens"] == (7 if provider in SAYS_INPUT else None)
