"""A call to a provider's HTTP API, on ``requests``: what all providers have in common.

Decisions
    1. Not the SDKs: they open a connection per call (300 ms of TLS each), cost five times the CPU
       per token, and cannot say how many tokens have arrived together.
    2. Nothing is retried. A call that failed may have been paid for, and the application knows
       best whether its client still waits.
    3. Redirects are not followed: a POST would turn into a GET on the way.
    4. The answer is asked for uncompressed: many hops hold compressed bytes back.
    5. A key goes into a header, never into the URL, which hops write into their logs.
"""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.auth import AuthBase

from flask_llmstream.exceptions import ConfigurationError
from flask_llmstream.reading import READ_ERRORS
from flask_llmstream.upstream.answer import Answer
from flask_llmstream.upstream.decoding import AnswerDecoder
from flask_llmstream.upstream.errors import call_failed, name_of, prompts_in
from flask_llmstream.upstream.session import shared_session

__all__ = ["Call", "Key", "Timeout", "address", "listed", "only_streams"]

Timeout = Union[None, float, Tuple[Optional[float], Optional[float]]]


class Key(NamedTuple):
    """An API key and the header that carries it."""

    value: Optional[str]
    header: str = "Authorization"
    prefix: str = "Bearer "

    def __repr__(self) -> str:
        """Show no value: trackers of errors write down the variables of each frame."""
        return f"<Key for {self.header}{'' if self.value else ', none'}>"

    @classmethod
    def found(cls, given: Optional[str], *variables: str, header: str = "", prefix: str = "") -> Key:
        """Return the key that was given, or the first that the environment has.

        :raises ValueError: if no header can carry it.
        """
        names = (os.environ.get(name) for name in variables)
        value = given if given is not None else next(filter(None, names), None)
        value = (value or "").strip()  # files and environments add line ends
        if not (value.isascii() and value.isprintable()):
            # http.client would quote it in its own message.
            raise ValueError("the API key holds characters that a header cannot carry")
        return cls(value or None, header or "Authorization", prefix if header else "Bearer ")


class Call(Answer):
    """One call, made at the first ``next()``; what the functions of this package return.

    :param url: what to POST to.
    :param body: the request, which is JSON.
    :param provider: whose format the answer has, see
        :func:`~flask_llmstream.sansio.providers.recognise.recognise`.
    :param framing: ``sse`` or ``ndjson``.
    :param fixed: headers that the provider's API asks for.

    The others are those of :func:`~flask_llmstream.upstream.openai_chat`.
    """

    def __init__(
        self,
        url: str,
        body: Mapping[str, Any],
        provider: str,
        key: Key,
        *,
        timeout: Timeout,
        session: Optional[requests.Session],
        headers: Optional[Mapping[str, str]],
        framing: str = "sse",
        fixed: Optional[Mapping[str, str]] = None,
    ) -> None:
        self._body = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        self._timeout = _pair(timeout)
        sent = partial(_sent, key, self._body)
        name = name_of(url)
        reader = AnswerDecoder(name, provider, framing, sent)
        super().__init__(name, reader, sent)
        self._url = url
        self._provider = provider
        self._model = str(body.get("model") or "")
        self._key = key
        self._session = session
        self._headers: Dict[str, str] = {
            "Accept": ", ".join(dict.fromkeys((reader.content_types[0], "application/json"))),
            "Accept-Encoding": "identity",
            "Content-Type": "application/json",
            "User-Agent": "flask-llmstream",
            **(fixed or {}),
            **(headers or {}),
        }

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open" if self._reader is not None else "not started"
        return f"<{type(self).__name__} {self._name} {state}>"

    def traced(self) -> Mapping[str, str]:
        """Return what a trace says of the call."""
        return {"provider": self._provider, "model": self._model, "url": self._url}

    def _open(self) -> None:
        if self._span is not None:
            self._headers = {**self._span.headers(), **self._headers}
        session = self._session or shared_session()
        auth = None
        if self._key.value or self._session is None:
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

    def __init__(self, key: Key) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        key = self._key
        if key.value and key.header not in request.headers:
            request.headers[key.header] = key.prefix + key.value
        return request


def _sent(key: Key, body: bytes) -> Iterator[str]:
    """Yield what no message may quote."""
    yield key.value or ""
    yield from prompts_in(json.loads(body.decode()))


def address(
    base_url: Optional[str],
    variable: str,
    default: str,
    path: str,
    version: str = "",
    query: str = "",
    complete: Callable[[str], str] = str,
) -> str:
    """Return the URL to call; a query in *base_url* stays (Azure's ``api-version``).

    :param variable: the environment's name for *base_url*.
    :param version: put before *path* where the base has no version at its end, such as ``/v1``.
    :param query: what the call needs of its own there.
    :param complete: makes a URL of what the provider's users write for one.
    :raises ValueError: if *base_url* is no HTTP address.
    :raises ConfigurationError: if the environment's is none.
    """
    value = complete((base_url or os.environ.get(variable) or default).strip())
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        if base_url:
            raise ValueError(f"base_url is {name_of(value)!r}, expected an http:// or https:// URL")
        raise ConfigurationError(variable, name_of(value), "an http:// or https:// URL")
    base = parts.path.rstrip("/")
    last = base.rpartition("/")[2]
    if version and not (last[:1] == "v" and last[1:2].isdigit()):
        base += version
    query = "&".join(filter(None, (parts.query, query)))
    return urlunsplit(parts._replace(path=base + path, query=query, fragment=""))


def listed(name: str, values: Iterable[Mapping[str, Any]], example: str) -> List[Any]:
    """Return *values* as a list.

    :param name: of the argument, for the message.
    :raises TypeError: if they are one text or one dict.
    """
    if isinstance(values, (str, bytes, Mapping)):
        raise TypeError(f"{name} is a list of dicts such as {example}, got {type(values).__name__}")
    return list(values)


def only_streams(function: str, parameters: Dict[str, Any]) -> None:
    """Take ``stream`` out of *parameters*.

    :raises ValueError: if it asks for anything but a stream.
    """
    if parameters.pop("stream", True) is not True:
        raise ValueError(f"{function} always streams; leave stream out")


def _pair(timeout: Timeout) -> Tuple[Optional[float], Optional[float]]:
    pair = tuple(timeout) if isinstance(timeout, (tuple, list)) else (timeout, timeout)
    if len(pair) != 2 or not all(each is None or each > 0 for each in pair):
        raise ValueError(f"timeout is {timeout!r}, expected seconds or (connect, read) seconds")
    return pair[0], pair[1]
