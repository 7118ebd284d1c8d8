"""Ollama's own chat API."""

from __future__ import annotations

from typing import Any, Iterable, Mapping, Optional

import requests

from flask_llmstream.upstream.call import Call, Key, Timeout, address, listed, only_streams

__all__ = ["OllamaChat", "ollama_chat"]

DEFAULT_BASE_URL = "http://127.0.0.1:11434"
PORT = 11434


def ollama_chat(
    model: str,
    messages: Iterable[Mapping[str, Any]],
    *,
    base_url: Optional[str] = None,
    api_key: Optional[str] = None,
    timeout: Timeout = (5.0, 120.0),
    session: Optional[requests.Session] = None,
    headers: Optional[Mapping[str, str]] = None,
    **parameters: Any,
) -> OllamaChat:
    """Call a model over Ollama's ``/api/chat`` and return an iterator over the deltas of its answer.

    :param messages: the conversation, as Ollama's API takes it.
    :param base_url: where the server is; as everywhere with Ollama a host is enough, and the port
        is 11434 then. Defaults to the environment's ``OLLAMA_HOST``, then to this machine.
    :param api_key: sent as a bearer token. Defaults to the environment's ``OLLAMA_API_KEY``;
        without either none is sent.
    :param timeout: as with :func:`~flask_llmstream.upstream.openai_chat`; a model that is loaded
        first can take longer than the default.
    :param parameters: whatever else the API takes: ``options``, ``tools``, ``think``, ``format``,
        ``keep_alive``, …
    :raises ValueError: if *base_url* is no HTTP address, or *parameters* ask for no stream.
    :raises TypeError: if *messages* or *parameters* are not JSON.

    All else is as with :func:`~flask_llmstream.upstream.openai_chat`.
    """
    conversation = listed("messages", messages, "{'role': 'user', 'content': '…'}")
    only_streams("ollama_chat", parameters)
    return OllamaChat(
        address(base_url, "OLLAMA_HOST", DEFAULT_BASE_URL, "/api/chat", complete=_url_of),
        dict(parameters, model=model, messages=conversation, stream=True),
        "ollama",
        Key.found(api_key, "OLLAMA_API_KEY"),
        timeout=timeout,
        session=session,
        headers=headers,
        framing="ndjson",
    )


def _url_of(host: str) -> str:
    """Return the URL that Ollama's users mean, who may leave out its scheme and port."""
    if "://" in host:
        return host
    name, slash, path = host.partition("/")
    if ":" not in name.rpartition("]")[2]:
        name += f":{PORT}"
    return f"http://{name}{slash}{path}"


class OllamaChat(Call):
    """One call, made by :func:`ollama_chat`."""
