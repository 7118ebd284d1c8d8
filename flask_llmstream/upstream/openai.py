"""OpenAI's chat completions, as any server speaks them that calls itself compatible, and its responses."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Mapping, Optional, Union

import requests

from flask_llmstream.upstream.call import Call, Key, Timeout, address, listed, only_streams

__all__ = ["OpenAIChat", "OpenAIResponse", "openai_chat", "openai_responses"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"


def openai_chat(
    model: str,
    messages: Iterable[Mapping[str, Any]],
    *,
    base_url: Optional[str] = None,
    api_key: Optional[str] = None,
    timeout: Timeout = (5.0, 120.0),
    session: Optional[requests.Session] = None,
    headers: Optional[Mapping[str, str]] = None,
    include_usage: bool = True,
    **parameters: Any,
) -> OpenAIChat:
    """Call a model and return an iterator over the deltas of its answer.

    The request is made at the first ``next()``. Inside a stream the call ends when its client
    leaves.

    :param model: name of the model.
    :param messages: the conversation, as OpenAI's API takes it.
    :param base_url: where the server's API begins. Defaults to the environment's
        ``OPENAI_BASE_URL``, then to OpenAI's own.
    :param api_key: sent as a bearer token. Defaults to the environment's ``OPENAI_API_KEY``;
        without either no key is sent, as local servers like it.
    :param timeout: seconds to wait for a connection, and for each next byte of the answer; one
        number for both, ``None`` for no limit. Defaults to ``(5.0, 120.0)``.
    :param session: the ``requests.Session`` to use. Defaults to one that is shared by all calls
        of the process, so that connections are used again.
    :param headers: more headers, which win over our own.
    :param include_usage: ask for a :class:`Usage` at the end. Turn it off for servers that refuse
        ``stream_options``.
    :param parameters: whatever else the API takes: ``temperature``, ``max_tokens``, ``tools``, …
    :raises ValueError: if *base_url* is no HTTP address, or *parameters* ask for something that
        is no stream of one answer.
    :raises TypeError: if *messages* or *parameters* are not JSON.

    Iterating raises :class:`UpstreamError` and its subclasses.
    """
    conversation = listed("messages", messages, "{'role': 'user', 'content': '…'}")
    only_streams("openai_chat", parameters)
    if parameters.get("n") not in (None, 1):
        raise ValueError("openai_chat reads one answer; leave n out, or call it n times")
    body = dict(parameters, model=model, messages=conversation, stream=True)
    if include_usage:
        body["stream_options"] = {"include_usage": True, **(parameters.get("stream_options") or {})}
    return OpenAIChat(
        address(base_url, "OPENAI_BASE_URL", DEFAULT_BASE_URL, "/chat/completions"),
        body,
        "openai",
        Key.found(api_key, "OPENAI_API_KEY"),
        timeout=timeout,
        session=session,
        headers=headers,
    )


def openai_responses(
    model: str,
    input: Union[str, Iterable[Mapping[str, Any]]],
    *,
    base_url: Optional[str] = None,
    api_key: Optional[str] = None,
    timeout: Timeout = (5.0, 120.0),
    session: Optional[requests.Session] = None,
    headers: Optional[Mapping[str, str]] = None,
    **parameters: Any,
) -> OpenAIResponse:
    """Call a model over OpenAI's Responses API and return an iterator over the deltas of its answer.

    :param input: a text, or a list of input items, as the API takes them.
    :param parameters: whatever else the API takes: ``instructions``, ``max_output_tokens``,
        ``tools``, ``reasoning``, …
    :raises ValueError: if *base_url* is no HTTP address, or *parameters* ask for something that
        is no stream, such as ``background``.
    :raises TypeError: if *input* or *parameters* are not JSON.

    All else is as with :func:`openai_chat`.
    """
    items: Union[str, List[Any]] = input if isinstance(input, str) else listed(
        "input", input, "{'role': 'user', 'content': '…'}, or a text"
    )
    only_streams("openai_responses", parameters)
    if parameters.get("background"):
        raise ValueError("openai_responses reads the answer while it is made; leave background out")
    body: Dict[str, Any] = dict(parameters, model=model, input=items, stream=True)
    return OpenAIResponse(
        address(base_url, "OPENAI_BASE_URL", DEFAULT_BASE_URL, "/responses"),
        body,
        "openai-responses",
        Key.found(api_key, "OPENAI_API_KEY"),
        timeout=timeout,
        session=session,
        headers=headers,
    )


class OpenAIChat(Call):
    """One call, made by :func:`openai_chat`."""


class OpenAIResponse(Call):
    """One call, made by :func:`openai_responses`."""
