"""Gemini's ``streamGenerateContent``."""

from __future__ import annotations

import re
from typing import Any, Dict, Iterable, Mapping, Optional, Union

import requests

from flask_llmstream.upstream.call import Call, Key, Timeout, address, listed, only_streams

__all__ = ["GeminiChat", "gemini_chat"]

DEFAULT_BASE_URL = "https://generativelanguage.googleapis.com"
#: It becomes a part of the URL.
_MODEL = re.compile(r"[A-Za-z0-9][\w.@:-]*(?:/[A-Za-z0-9][\w.@:-]*)*")


def gemini_chat(
    model: str,
    contents: Union[str, Iterable[Mapping[str, Any]]],
    *,
    base_url: Optional[str] = None,
    api_key: Optional[str] = None,
    timeout: Timeout = (5.0, 120.0),
    session: Optional[requests.Session] = None,
    headers: Optional[Mapping[str, str]] = None,
    **parameters: Any,
) -> GeminiChat:
    """Call a Gemini model and return an iterator over the deltas of its answer.

    :param model: its name, with or without ``models/``.
    :param contents: the conversation as the API takes it, a list such as
        ``{'role': 'user', 'parts': [{'text': '…'}]}``; or one text of the user.
    :param base_url: where the server's API begins, with or without its version (``/v1beta``).
        Defaults to the environment's ``GOOGLE_GEMINI_BASE_URL``, then to Google's own.
    :param api_key: sent as ``x-goog-api-key``. Defaults to the environment's ``GOOGLE_API_KEY``,
        then to its ``GEMINI_API_KEY``, as in Google's SDK.
    :param parameters: whatever else the API takes, in its own words: ``systemInstruction``,
        ``generationConfig``, ``tools``, …
    :raises ValueError: if *base_url* is no HTTP address, or *model* could not stand in one.
    :raises TypeError: if *contents* or *parameters* are not JSON.

    All else is as with :func:`~flask_llmstream.upstream.openai_chat`.
    """
    if not _MODEL.fullmatch(model):
        raise ValueError(f"model is {model[:80]!r}, expected a name such as 'gemini-2.5-flash'")
    only_streams("gemini_chat", parameters)
    example = "{'role': 'user', 'parts': [{'text': '…'}]}, or a text"
    if isinstance(contents, str):
        contents = [{"role": "user", "parts": [{"text": contents}]}]
    path = f"/{model if '/' in model else 'models/' + model}:streamGenerateContent"
    url = address(base_url, "GOOGLE_GEMINI_BASE_URL", DEFAULT_BASE_URL, path, "/v1beta", "alt=sse")
    body: Dict[str, Any] = dict(parameters, contents=listed("contents", contents, example))
    return GeminiChat(
        url,
        body,
        "gemini",
        Key.found(api_key, "GOOGLE_API_KEY", "GEMINI_API_KEY", header="x-goog-api-key"),
        timeout=timeout,
        session=session,
        headers=headers,
    )


class GeminiChat(Call):
    """One call, made by :func:`gemini_chat`."""
