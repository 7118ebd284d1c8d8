"""Servers and clients for the dialects: what others make of them is what counts."""

from __future__ import annotations

from typing import Any, Iterator

import pytest

from flask_llmstream.testing.upstreams import ScriptedUpstream


@pytest.fixture(scope="module")
def upstream() -> Iterator[ScriptedUpstream]:
    """Return a server whose ``script`` the test sets."""
    with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="module")
def openai_client(upstream: ScriptedUpstream) -> Iterator[Any]:
    """Return a client of OpenAI's SDK that talks to ``upstream``."""
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=upstream.url, api_key="none", max_retries=0, timeout=10) as client:
        yield client
