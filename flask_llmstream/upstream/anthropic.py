"""Anthropic's messages."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Optional

import requests

from flask_llmstream.upstream.call import Call, Key, Timeout, address, listed, only_streams

__all__ = ["AnthropicMessage", "anthropic_messages"]

DEFAULT_BASE_URL = "https://api.anthropic.com"
VERSION = "2023-06-01"


def anthropic_messages(
    model: str,
    messages: Iterable[Mapping[str, Any]],
    *,
    max_tokens: int,
    base_url: Optional[str] = None,
    api_key: Optional[str] = None,
    timeout: Timeout = (5.0, 120.0),
    session: Optional[requests.Session] = None,
    headers: Optional[Mapping[str, str]] = None,
    **parameters: Any,
) -> AnthropicMessage:
    """Call a model over Anthropic's Messages API and return an iterator over the deltas of its answer.

    :param messages: the conversation, as Anthropic's API takes it; what is ``system`` is a
        parameter of its own.
    :param max_tokens: the longest answer, in tokens; the API asks for it.
    :param base_url: where the server's API begins, with or without ``/v1``. Defaults to the
        environment's ``ANTHROPIC_BASE_URL``, then to Anthropic's own.
    :param api_key: sent as ``x-api-key``. Defaults to the environment's ``ANTHROPIC_API_KEY``.
    :param headers: more headers, which win over our own: ``anthropic-beta``, or another
        ``anthropic-version`` than 2023-06-01.
    :param parameters: whatever else the API takes: ``system``, ``temperature``, ``tools``,
        ``thinking``, …
    :raises ValueError: if *base_url* is no HTTP address, or *parameters* ask for no stream.
    :raises TypeError: if *messages* or *parameters* are not JSON.

    All else is as with :func:`~flask_llmstream.upstream.openai_chat`.
    """
    conversation = listed("messages", messages, "{'role': 'user', 'content': '…'}")
    only_streams("anthropic_messages", parameters)
    return AnthropicMessage(
        address(base_url, "ANTHROPIC_BASE_URL", DEFAULT_BASE_URL, "/messages", "/v1"),
        dict(parameters, model=model, messages=conversation, max_tokens=max_tokens, stream=True),
        "anthropic",
        Key.found(api_key, "ANTHROPIC_API_KEY", header="x-api-key"),
        timeout=timeout,
        session=session,
        headers=headers,
        fixed={"anthropic-version": VERSION},
    )


class AnthropicMessage(Call):
    """One call, made by :func:`anthropic_messages`."""
