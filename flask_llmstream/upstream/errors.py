"""What can go wrong with an LLM call, mapped to :class:`UpstreamError` in one place.

Decisions
    1. Messages go to logs, so they hold no key and no prompt. Nothing is taken from the text of a
       foreign exception (it quotes URLs with their query, and headers) but the words of the
       operating system; what a provider says is scrubbed of everything that the request held.
    2. Nothing is retried here. ``retryable`` and ``retry_after`` say what a retry is worth.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any, Dict, Iterable, Iterator, List, Optional, Tuple
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from flask_llmstream.exceptions import UpstreamError, UpstreamInterrupted, UpstreamTimeout

__all__ = [
    "call_failed", "invalid", "is_timeout", "name_of", "prompts_in", "read_failed", "refused", "scrub",
    "texts_in",
]

#: Characters of a provider's own words that are kept, and of a page in which its title is looked for:
#: that takes the square of them.
_KEPT, _SEARCHED = 300, 2048
#: What was sent is recognised in what came back by pieces of this many characters.
_PIECE = 12

#: Provider keys of the common shapes, and what follows "Bearer".
_KEYS = re.compile(r"(?i)\b(?:(?:sk|pk|gsk|xai|key|hf)[-_]|AIza)[\w*.-]{6,}|(?<=bearer )\S+")

#: Fields of a request that hold what its user has said, or what the application says about it.
_PROMPTS = (
    "messages", "input", "instructions", "system", "contents", "systemInstruction",
    "system_instruction", "prompt", "tools",
)

#: status: (code, retryable). Other 4xx are rejections, all 5xx are unavailability.
_STATUS: Dict[int, Tuple[str, bool]] = {
    401: ("upstream_auth", False),
    403: ("upstream_auth", False),
    408: ("upstream_timeout", True),
    429: ("upstream_rate_limited", True),
}
#: Codes of a 429 that no waiting will cure: the account has run out of money.
_SPENT = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


def name_of(url: str) -> str:
    """Return *url* without what may be secret in it: user, password, query and fragment."""
    parts = urlsplit(url)
    if not parts.netloc:
        return ":".join(filter(None, (parts.scheme, parts.path))) or "the provider"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def causes(error: Optional[BaseException]) -> Iterator[BaseException]:
    """Yield *error* and every exception that it wraps."""
    waiting: List[Any] = [error]
    seen: List[BaseException] = []
    for each in waiting:
        if isinstance(each, BaseException) and each not in seen:
            seen.append(each)
            yield each
            waiting += [getattr(each, "reason", None), *each.args, each.__cause__, each.__context__]


def is_timeout(error: BaseException) -> bool:
    """Whether *error*, of the system, requests or urllib3, says that time has run out."""
    timeouts = (socket.timeout, requests.Timeout, urllib3.exceptions.TimeoutError)
    # A subclass of urllib3's connect timeout that stands for every failure to connect.
    other = urllib3.exceptions.NewConnectionError
    return any(isinstance(each, timeouts) and not isinstance(each, other) for each in causes(error))


def _words(error: BaseException) -> str:
    for each in causes(error):
        # Foreign subclasses put whole sentences there; the numbered ones are the system's.
        if isinstance(each, OSError) and each.errno is not None and each.strerror:
            return str(each.strerror).lower()
    return type(error).__name__


def call_failed(error: BaseException, url: str) -> UpstreamError:
    """Map what ended a call before its answer began."""
    name = name_of(url)
    if is_timeout(error):
        connecting = (requests.ConnectTimeout, urllib3.exceptions.ConnectTimeoutError)
        if any(isinstance(each, connecting) for each in causes(error)):
            message = f"no connection to {name} in time; check the address, or raise timeout[0]"
        else:
            message = f"{name} took the request and sent no answer in time; raise timeout[1]"
        return UpstreamTimeout(message, original_error=error)
    details: Dict[str, Any] = {"code": "upstream_unavailable", "retryable": True}
    if isinstance(error, requests.exceptions.SSLError):
        details["retryable"] = False
        message = f"TLS with {name} failed ({_words(error)}); check certificates and the address"
    elif isinstance(error, (requests.ConnectionError, OSError)) and not isinstance(error, ValueError):
        message = f"{name} cannot be reached: {_words(error)}"
    else:
        details = {"code": "upstream_rejected"}
        message = f"{name} cannot be called: {type(error).__name__}"
    return UpstreamError(message, original_error=error, **details)


def read_failed(error: BaseException, url: str, deltas_sent: int) -> UpstreamError:
    """Map what ended an answer that had begun."""
    name = name_of(url)
    details: Dict[str, Any] = {"deltas_sent": deltas_sent, "original_error": error}
    if is_timeout(error):
        return UpstreamTimeout(f"{name} went silent inside its answer; raise timeout[1]", **details)
    encodings = (urllib3.exceptions.DecodeError, requests.exceptions.ContentDecodingError)
    if any(isinstance(each, encodings) for each in causes(error)):
        return UpstreamError(
            f"the answer of {name} is not compressed as it says", code="upstream_invalid", **details
        )
    return UpstreamInterrupted(f"the answer of {name} was cut off: {_words(error)}", **details)


def invalid(message: str, deltas_sent: int = 0, error: Optional[BaseException] = None) -> UpstreamError:
    """Return the error for an answer that is not what its format allows."""
    return UpstreamError(
        message, code="upstream_invalid", deltas_sent=deltas_sent, original_error=error
    )


def refused(
    status: int,
    name: str,
    body: bytes,
    retry_after: Optional[float] = None,
    sent: Iterable[str] = (),
    error: Optional[BaseException] = None,
) -> UpstreamError:
    """Map an answer whose status is not 200.

    :param name: what the provider is called in the message.
    :param body: the answer's body, or its beginning.
    :param retry_after: seconds that it asks to wait.
    :param sent: texts of the request that must not be quoted: the key and the messages.
    """
    code, retryable = _STATUS.get(status, ("upstream_rejected", False))
    if status >= 500:
        code, retryable = "upstream_unavailable", True
    said, kind = _said(body)
    if kind in _SPENT:
        retryable = False
    message = f"{name} answered {status}"
    if said:
        message += f": {scrub(said, sent)}"
    kind_of = UpstreamTimeout if code == "upstream_timeout" else UpstreamError
    return kind_of(
        message,
        status=status,
        code=code,
        retryable=retryable,
        retry_after=retry_after,
        original_error=error,
    )


def _said(body: bytes) -> Tuple[str, Optional[str]]:
    """Return what the provider says in *body*, and its own code for that."""
    text = body.decode("utf-8", "replace")
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        # A page of some hop in between; its title is all that is worth keeping.
        title = re.search(r"(?is)<title[^>]*>(.*?)</title>", text[:_SEARCHED])
        return (title.group(1) if title else "" if "<" in text else text), None
    if not isinstance(data, dict):
        return "", None
    error = data.get("error", data)
    if not isinstance(error, dict):
        return str(error), None
    kind = error.get("code") or error.get("type")
    said = error.get("message") or error.get("detail") or ""
    if isinstance(said, list):
        # One entry per faulty field; what stood in the field ("input") is the user's.
        said = "; ".join(
            f"{each.get('loc')}: {each.get('msg')}" for each in said if isinstance(each, dict)
        )
    return str(said), str(kind) if kind is not None else None


def scrub(text: str, sent: Iterable[str] = ()) -> str:
    """Return *text* in one short line, without keys and without what was sent.

    :param sent: what the request held. Any twelve characters of it that come back are left out,
        so that a message which quotes half a prompt does not get through.
    """
    text = " ".join(_KEYS.sub("***", text).split())[:_KEPT]
    known = [" ".join(each.split()) for each in sent if each]
    hidden = [False] * len(text)
    for each in known:
        size = min(_PIECE, len(each))
        for start in range(len(text) - size + 1):
            # A short text counts only as a whole word, or a prompt "a" would hide every a.
            if text[start : start + size] in each and (size == _PIECE or _is_word(text, start, size)):
                hidden[start : start + size] = [True] * size
    kept: List[str] = []
    for character, hide in zip(text, hidden):
        if not hide:
            kept.append(character)
        elif not kept or kept[-1] != "…":
            kept.append("…")
    return "".join(kept)


def _is_word(text: str, start: int, size: int) -> bool:
    around = text[max(0, start - 1) : start] + text[start + size : start + size + 1]
    return not any(character.isalnum() for character in around)


def prompts_in(body: Any) -> Iterator[str]:
    """Yield every text of the conversation in *body*, the JSON of a request to any provider."""
    for name in _PROMPTS:
        if isinstance(body, dict) and name in body:
            yield from texts_in(body[name])


def texts_in(value: Any) -> Iterator[str]:
    """Yield every text in a JSON value, for :func:`scrub`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts_in(each)
