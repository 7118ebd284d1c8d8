"""Chat completions of any server that speaks OpenAI's protocol, on ``requests``.

Decisions
    1. Not the SDK: it opens a connection per call (300 ms of TLS each), costs five times the CPU
       per token, and cannot say how many tokens have arrived together.
    2. Nothing is retried. A call that failed may have been paid for, and the application knows
       best whether its client still waits.
    3. Redirects are not followed: a POST would turn into a GET on the way.
    4. The answer is asked for uncompressed: many hops hold compressed bytes back.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any, Iterable, Iterator, Mapping, Optional, Tuple, Union
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.auth import AuthBase

from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.reading import READ_ERRORS
from flask_llmstream.upstream.chat import ChatAnswer
from flask_llmstream.upstream.errors import call_failed, name_of, texts_in
from flask_llmstream.upstream.session import shared_session

__all__ = ["OpenAIChat", "openai_chat"]

DEFAULT_BASE_URL = "https://api.openai.com/v1"

Timeout = Union[None, float, Tuple[Optional[float], Optional[float]]]


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
    if isinstance(messages, (str, bytes, Mapping)):
        raise TypeError(
            "messages is a list of dicts such as {'role': 'user', 'content': '…'},"
            f" got {type(messages).__name__}"
        )
    if parameters.pop("stream", True) is not True:
        raise ValueError("openai_chat always streams; leave stream out")
    if parameters.get("n") not in (None, 1):
        raise ValueError("openai_chat reads one answer; leave n out, or call it n times")
    body = dict(parameters, model=model, messages=list(messages), stream=True)
    if include_usage:
        body["stream_options"] = {"include_usage": True, **(parameters.get("stream_options") or {})}
    key = api_key if api_key is not None else os.environ.get("OPENAI_API_KEY")
    return OpenAIChat(
        _address(base_url),
        json.dumps(body, separators=(",", ":"), allow_nan=False).encode(),
        key=_checked_key(key),
        timeout=_pair(timeout),
        session=session,
        headers=headers,
    )


class OpenAIChat(ChatAnswer):
    """One call, made by :func:`openai_chat`."""

    def __init__(
        self,
        url: str,
        body: bytes,
        *,
        key: Optional[str],
        timeout: Tuple[Optional[float], Optional[float]],
        session: Optional[requests.Session],
        headers: Optional[Mapping[str, str]],
    ) -> None:
        super().__init__(name_of(url), partial(_sent, key, body))
        self._url = url
        self._body = body
        self._key = key
        self._timeout = timeout
        self._session = session
        self._headers = {
            "Accept": "text/event-stream, application/json",
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "flask-llmstream",
            **(headers or {}),
        }

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._reader is not None else "not started"
        return f"<OpenAIChat {self._name} {state}>"

    def _open(self) -> None:
        session = self._session or shared_session()
        auth = None
        if self._key or self._session is None:
            auth = _KeyAuth(self._key)
        try:
            response = session.post(
                self._url,
                data=self._body,
                headers=self._headers,
                auth=auth,
                timeout=self._timeout,
                stream=True,
                allow_redirects=False,
            )
        except READ_ERRORS as exc:
            raise call_failed(exc, self._url) from exc
        self._accept(response, self._timeout[1])


class _KeyAuth(AuthBase):
    """Sends the key. Even without one it keeps requests from looking into ``~/.netrc``."""

    def __init__(self, key: Optional[str]) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key and "Authorization" not in request.headers:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _sent(key: Optional[str], body: bytes) -> Iterator[str]:
    """Yield what no message may quote."""
    yield key or ""
    yield from texts_in(json.loads(body.decode())["messages"])


def _address(base_url: Optional[str]) -> str:
    """Return the URL to call; a query in *base_url* stays (Azure's ``api-version``)."""
    value = base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_BASE_URL
    parts = urlsplit(value.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname:
        if base_url:
            raise ValueError(f"base_url is {name_of(value)!r}, expected an http:// or https:// URL")
        raise ConfigurationError("OPENAI_BASE_URL", name_of(value), "an http:// or https:// URL")
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + "/chat/completions", fragment=""))


def _checked_key(key: Optional[str]) -> Optional[str]:
    key = (key or "").strip()  # files and environments add line ends
    if not (key.isascii() and key.isprintable()):
        # http.client would quote it in its own message.
        raise ValueError("the API key holds characters that a header cannot carry")
    return key or None


def _pair(timeout: Timeout) -> Tuple[Optional[float], Optional[float]]:
    pair = tuple(timeout) if isinstance(timeout, (tuple, list)) else (timeout, timeout)
    if len(pair) != 2 or not all(each is None or each > 0 for each in pair):
        raise ValueError(f"timeout is {timeout!r}, expected seconds or (connect, read) seconds")
    return pair[0], pair[1]
