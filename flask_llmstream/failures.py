"""How an exception looks to a client: an HTTP status before the first byte, an event after it.

Messages are masked: what an exception says is for the log. A provider's refusal of our own key is
no client's 401, so it becomes 502.
"""

from __future__ import annotations

import http.client
import json
import math
from typing import Dict, List, NamedTuple, Optional, Tuple

from flask_llmstream.exceptions import LimitReached, OutputInvalid, StreamTooLong, UpstreamError, WireError

__all__ = ["Failure", "describe_failure"]


class Failure(NamedTuple):
    """What a client is told."""

    status: int
    code: str
    message: str
    retryable: bool
    #: Seconds after which it may be tried again, where known.
    retry_after: Optional[float] = None

    def status_line(self) -> str:
        """Return the status with its usual words."""
        return f"{self.status} {http.client.responses.get(self.status, 'Error')}"

    def body(self) -> bytes:
        """Return the JSON body of an answer that failed before its first byte."""
        error = {"message": self.message, "code": self.code, "retryable": self.retryable}
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")

    def headers(self) -> List[Tuple[str, str]]:
        """Return the headers that go with :meth:`body`."""
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(self.body())))]
        headers.append(("Cache-Control", "no-store"))
        if self.retry_after is not None:
            headers.append(("Retry-After", str(int(math.ceil(self.retry_after)))))
        return headers


#: code: (HTTP status, what clients are told)
_PUBLIC: Dict[str, Tuple[int, str]] = {
    "upstream_auth": (502, "The model's provider refused this service."),
    "upstream_rate_limited": (429, "The model is busy; try again later."),
    "upstream_rejected": (502, "The model's provider rejected the request."),
    "upstream_unavailable": (502, "The model is not available."),
    "upstream_timeout": (504, "The model did not answer in time."),
    "upstream_interrupted": (502, "The model's answer was cut off."),
    "upstream_invalid": (502, "The model's provider sent something unreadable."),
    "output_invalid": (502, "The model's answer does not have the form that was asked for."),
    "interrupted": (502, "The answer was interrupted."),
    "timeout": (504, "The answer took too long."),
    "too_long": (502, "The answer is longer than it may be."),
    "shutdown": (503, "The service is restarting; try again."),
    "busy": (503, "Too many answers are being written; try again later."),
    "too_many_streams": (429, "Too many of your answers are being written; wait for one, or stop it."),
}
_UNKNOWN = (500, "An error occurred.")


def failure_of_code(code: str, retryable: bool) -> Failure:
    """Return the masked failure called *code*."""
    status, message = _PUBLIC.get(code, _UNKNOWN)
    return Failure(status, code, message, retryable)


def describe_failure(error: BaseException, expose: bool = False) -> Failure:
    """Return what clients are told about *error*.

    :param expose: whether to tell them the exception's own text.
    """
    if isinstance(error, UpstreamError):
        failure = failure_of_code(error.code, error.retryable)
        if failure.status == 500:
            failure = failure._replace(status=502)
        failure = failure._replace(retry_after=error.retry_after)
    elif isinstance(error, LimitReached):
        failure = failure_of_code(error.code, True)._replace(retry_after=error.retry_after)
    elif isinstance(error, StreamTooLong):
        failure = failure_of_code("too_long", False)
    elif isinstance(error, WireError):
        failure = failure_of_code("upstream_invalid", False)
    elif isinstance(error, OutputInvalid):
        # A model that is asked again says something else.
        failure = failure_of_code("output_invalid", True)
        where = ", ".join(filter(None, error.paths))
        if where:
            failure = failure._replace(message=f"{failure.message[:-1]}: {where}")
    else:
        failure = failure_of_code("internal_error", False)
    if expose:
        text = str(error)
        name = type(error).__name__
        failure = failure._replace(message=f"{name}: {text}" if text else name)
    return failure
