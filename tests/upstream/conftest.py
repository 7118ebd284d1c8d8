"""The scripted upstream that these tests talk to."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import pytest
from known_providers import close_clients

from flask_llmstream.testing.upstreams import ScriptedUpstream
from flask_llmstream.upstream import openai_chat
from flask_llmstream.upstream.openai import OpenAIChat
from flask_llmstream.upstream.session import shared_session

KEYS = (
    "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "GEMINI_API_KEY", "GOOGLE_API_KEY",
    "GOOGLE_GEMINI_BASE_URL", "OLLAMA_API_KEY", "OLLAMA_HOST", "OPENAI_API_KEY", "OPENAI_BASE_URL",
)
MESSAGES = [{"role": "user", "content": "Hello, what is your name?"}]


@pytest.fixture
def upstream() -> Iterator[ScriptedUpstream]:
    """Return an upstream whose ``script`` the test sets."""
    with ScriptedUpstream() as upstream:
        yield upstream
    assert not upstream.errors


@pytest.fixture(autouse=True, scope="session")
def no_idle_connections() -> Iterator[None]:
    """Close what the process keeps for its next call: urllib3 1 leaves that to the garbage."""
    yield
    shared_session().close()


@pytest.fixture(autouse=True)
def no_clients() -> Iterator[None]:
    """Close the SDKs' clients that a test has made."""
    yield
    close_clients()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the developer's own keys and addresses out of the tests."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ask(upstream: ScriptedUpstream) -> Callable[..., OpenAIChat]:
    """Return a function that has a script run and returns the call to it."""

    def ask(*script: Any, **parameters: Any) -> OpenAIChat:
        upstream.script = script
        parameters.setdefault("base_url", upstream.url)
        return openai_chat("scripted", MESSAGES, **parameters)

    return ask
