"""Streams that were opened elsewhere, as sources that end when their client leaves.

Decisions
    1. Nothing is imported to recognise an SDK's object: whoever has one has imported the SDK.
"""

from __future__ import annotations

from typing import Any

import requests

from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.bodies import adapt_httpx, adapt_response
from flask_llmstream.upstream.sdk import SDKStream, package_of

__all__ = ["adapt"]

_KNOWN = (
    "a requests.Response made with stream=True, an httpx.Response of client.stream(), a stream of the"
    " SDKs of OpenAI, Anthropic, Ollama or Google, of LiteLLM or LangChain, or an iterable with close()"
)


def adapt(obj: Any) -> DeltaSource:
    """Return a source of deltas that reads from *obj*, and closes it when its client leaves.

    :param obj: one of

        - a ``requests.Response`` made with ``stream=True``: an event stream is read as what its
          first event shows it to be (OpenAI's chat completions or responses, Anthropic's messages,
          Gemini), NDJSON as Ollama's, anything else as text;
        - an ``httpx.Response`` of ``client.stream()``, alike, but for text;
        - a stream of the ``openai`` SDK, version 1 to 3, of chat completions or responses; of the
          ``anthropic``, ``ollama`` or ``google-genai`` SDK; of LiteLLM's ``completion()``; or of
          LangChain's ``.stream()``. Also what their helpers for streams return;
        - an iterable with ``close()``: items that come from one of these SDKs are read as such,
          all others are passed through.
    :raises TypeError: for anything else.
    :raises ValueError: for a response of httpx that is no answer of a model.
    """
    if isinstance(obj, DeltaSource):
        return obj
    if isinstance(obj, requests.Response):
        return adapt_response(obj)
    module = type(obj).__module__.partition(".")[0]
    if module in ("httpx", "httpx2") and hasattr(obj, "iter_bytes"):
        return adapt_httpx(obj)
    if hasattr(obj, "__iter__") and (callable(getattr(obj, "close", None)) or package_of(obj)):
        return SDKStream(obj)
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    hint = ""
    if hasattr(obj, "__aiter__"):
        hint = "; an async stream needs an event loop, use the SDK's synchronous client"
    elif hasattr(obj, "__enter__") and package_of(obj):
        hint = "; it is a context manager: adapt() what it gives in a with statement"
    elif hasattr(obj, "__iter__"):
        hint = "; an iterable without close() has nothing to close, use it as it is"
    raise TypeError(f"cannot adapt {kind}, known are {_KNOWN}{hint}")
