"""What a provider says inside its stream when something has gone wrong."""

from __future__ import annotations

import re
from typing import Any, Callable, Dict, List, Optional, Tuple

from flask_llmstream.exceptions import UpstreamError

__all__ = ["error_in_stream"]

_RATE_LIMITED = ("upstream_rate_limited", True)
# The account has run out of money: no waiting cures that.
_SPENT = ("upstream_rate_limited", False)
_AUTH = ("upstream_auth", False)
_REJECTED = ("upstream_rejected", False)
_UNAVAILABLE = ("upstream_unavailable", True)
_TIMEOUT = ("upstream_timeout", True)

#: ``code``, ``type`` or ``status`` of an error, as OpenAI, Anthropic, Google, llama.cpp, vLLM and the
#: common gateways name them.
_BY_KIND: Dict[str, Tuple[str, bool]] = {
    "rate_limit_exceeded": _RATE_LIMITED,
    "rate_limit_error": _RATE_LIMITED,
    "too_many_requests": _RATE_LIMITED,
    "insufficient_quota": _SPENT,
    "billing_hard_limit_reached": _SPENT,
    "authentication_error": _AUTH,
    "invalid_api_key": _AUTH,
    "permission_error": _AUTH,
    "context_length_exceeded": _REJECTED,
    "exceed_context_size_error": _REJECTED,
    "invalid_request_error": _REJECTED,
    "badrequesterror": _REJECTED,
    "model_not_found": _REJECTED,
    "not_found_error": _REJECTED,
    "api_error": _UNAVAILABLE,
    "internal_server_error": _UNAVAILABLE,
    "internalservererror": _UNAVAILABLE,
    "overloaded_error": _UNAVAILABLE,
    "server_error": _UNAVAILABLE,
    "service_unavailable": _UNAVAILABLE,
    "unavailable_error": _UNAVAILABLE,
    "timeout": _TIMEOUT,
    "timeout_error": _TIMEOUT,
    "vector_store_timeout": _TIMEOUT,
    "billing_error": _SPENT,
    "request_too_large": _REJECTED,
    "invalid_prompt": _REJECTED,
    "api_key_invalid": _AUTH,
    "unauthenticated": _AUTH,
    "permission_denied": _AUTH,
    "resource_exhausted": _RATE_LIMITED,
    "invalid_argument": _REJECTED,
    "failed_precondition": _REJECTED,
    "not_found": _REJECTED,
    "internal": _UNAVAILABLE,
    "unavailable": _UNAVAILABLE,
    "deadline_exceeded": _TIMEOUT,
}
_BY_STATUS = {401: _AUTH, 403: _AUTH, 408: _TIMEOUT, 429: _RATE_LIMITED, 504: _TIMEOUT}

_SECONDS = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)s\Z", re.ASCII)
#: Characters of a provider's own words that are kept.
_KEPT = 300
_KEYS = re.compile(r"(?i)\b(?:(?:sk|pk|gsk|xai|key|hf)[-_]|aiza)[\w*.-]{6,}|(?<=bearer )\S+")


def error_in_stream(body: Any, scrub: Optional[Callable[[str], str]] = None) -> UpstreamError:
    """Return the error that *body* reports.

    :param body: the parsed JSON of an ``error`` event or of a chunk with an ``error``; or the text
        of one that is no JSON.
    :param scrub: see :class:`~flask_llmstream.sansio.providers.base.ProviderDecoder`.
    """
    error = (body.get("error") or body) if isinstance(body, dict) else body
    fields = error if isinstance(error, dict) else {"message": error}
    status = _status(fields)
    code, retryable = _classify(fields, status)
    said = fields.get("message")
    message = "the provider reported an error inside its stream"
    if said and isinstance(said, str):
        message += f": {(scrub or _without_keys)(said)}"
    after = _retry_after(fields) if retryable else None
    return UpstreamError(message, status=status, code=code, retryable=retryable, retry_after=after)


def _status(fields: Dict[str, Any]) -> Optional[int]:
    for key in ("status", "code"):
        value = fields.get(key)
        if isinstance(value, str) and re.fullmatch("[45][0-9][0-9]", value):
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    return None


def _classify(fields: Dict[str, Any], status: Optional[int]) -> Tuple[str, bool]:
    # Google's reason, then the code, is the narrower word: a spent quota has the type of any other
    # rejected request.
    said = [detail.get("reason") for detail in _details(fields)]
    for word in (*said, fields.get("code"), fields.get("type"), fields.get("status")):
        known = _BY_KIND.get(str(word).lower())
        if known is not None:
            return known
    if status is None:
        return "upstream_error", False
    return _BY_STATUS.get(status, _UNAVAILABLE if status >= 500 else _REJECTED)


def _retry_after(fields: Dict[str, Any]) -> Optional[float]:
    """Return the seconds that Google asks to wait: ``{"retryDelay":"34s"}``."""
    for detail in _details(fields):
        found = _SECONDS.match(str(detail.get("retryDelay")))
        if found:
            return float(found.group(1))
    return None


def _details(fields: Dict[str, Any]) -> List[Dict[str, Any]]:
    details = fields.get("details")
    return [each for each in details if isinstance(each, dict)] if isinstance(details, list) else []


def _without_keys(text: str) -> str:
    return " ".join(_KEYS.sub("***", text).split())[:_KEPT]
