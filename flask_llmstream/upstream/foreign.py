"""Errors that come out of an SDK's stream, mapped like our own."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Dict, Optional, Tuple, Type

from flask_llmstream.exceptions import UpstreamError, UpstreamInterrupted, UpstreamTimeout
from flask_llmstream.reading import READ_ERRORS
from flask_llmstream.sansio.headers import parse_retry_after
from flask_llmstream.sansio.providers.errors import error_in_stream
from flask_llmstream.upstream.errors import invalid, read_failed, refused

__all__ = ["foreign_error"]


def _classes(package: str, name: str) -> Tuple[Type[BaseException], ...]:
    """Return the class *name* of *package* if that is loaded: its exceptions exist only then."""
    found = getattr(sys.modules.get(package), name, None)
    return (found,) if isinstance(found, type) else ()


def foreign_error(error: Exception, name: str, deltas_sent: int) -> Optional[UpstreamError]:
    """Return what *error* means for a stream that had begun, ``None`` if it is no upstream's fault.

    :param name: what the provider is called in the message.
    """
    details: Dict[str, Any] = {"deltas_sent": deltas_sent, "original_error": error}
    # LiteLLM's errors are OpenAI's, LangChain hands on those of the SDK below it.
    for package in ("openai", "anthropic"):
        if isinstance(error, _classes(package, "APIStatusError")):
            return _of_status(error, name)
        if isinstance(error, _classes(package, "APITimeoutError")):
            return UpstreamTimeout(f"{name} went silent inside its answer", **details)
        if isinstance(error, _classes(package, "APIConnectionError")):
            return UpstreamInterrupted(f"the answer of {name} was cut off", **details)
        if isinstance(error, _classes(package, "APIError")):
            return _in_stream(error, getattr(error, "body", None))
    if isinstance(error, _classes("ollama", "ResponseError")):
        return _of_code(error, name, getattr(error, "status_code", None), str(getattr(error, "error", "")))
    if isinstance(error, _classes("google.genai.errors", "APIError")):
        said = str(getattr(error, "message", None) or "")
        return _of_code(error, name, getattr(error, "code", None), said)
    for package in ("httpx2", "httpx"):
        if isinstance(error, _classes(package, "TimeoutException")):
            return UpstreamTimeout(f"{name} went silent inside its answer", **details)
        if isinstance(error, _classes(package, "HTTPStatusError")):
            return _of_status(error, name)
        if isinstance(error, _classes(package, "HTTPError") + _classes(package, "StreamError")):
            kind = type(error).__name__
            return UpstreamInterrupted(f"the answer of {name} was cut off: {kind}", **details)
    if isinstance(error, UnicodeDecodeError):
        return invalid(f"{name} sent bytes that are not UTF-8", deltas_sent, error)
    if isinstance(error, json.JSONDecodeError):
        return invalid(f"{name} sent an event that is not JSON", deltas_sent, error)
    if isinstance(error, READ_ERRORS):
        return read_failed(error, name, deltas_sent)
    return None


def _in_stream(error: Exception, body: Any) -> UpstreamError:
    """Map what the provider has said inside its answer."""
    if isinstance(body, dict) and isinstance(body.get("error"), (dict, str)):
        body = body["error"]
    mapped = error_in_stream({"error": body if isinstance(body, dict) else str(error)})
    mapped.original_error = error
    return mapped


def _of_status(error: Any, name: str) -> UpstreamError:
    body = getattr(error, "body", None)
    status = error.response.status_code
    if status == 200:  # Anthropic's SDK makes an error of the status of what comes inside an answer
        return _in_stream(error, body)
    asked = parse_retry_after(error.response.headers.get("retry-after"), time.time())
    said = json.dumps({"error": body if isinstance(body, (dict, str)) else ""}).encode()
    return refused(status, name, said, asked, error=error)


def _of_code(error: Exception, name: str, status: Any, said: str) -> UpstreamError:
    """Map an error that brings the status of a refusal, or none of one where it came later."""
    if isinstance(status, int) and 400 <= status <= 599:
        return refused(status, name, json.dumps({"error": said}).encode(), error=error)
    return _in_stream(error, said)
