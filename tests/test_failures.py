"""How an exception looks to a client: masked, with a status that fits."""

from __future__ import annotations

import json
from typing import Any, Optional

import pytest

from flask_llmstream.exceptions import (
    BufferLimitExceeded,
    DecodeError,
    UpstreamError,
    UpstreamInterrupted,
    UpstreamTimeout,
)
from flask_llmstream.failures import Failure, describe_failure, failure_of_code

SECRET = "the key is sk-123"


@pytest.mark.parametrize(
    "error, status, code, retryable",
    [
        pytest.param(ValueError(SECRET), 500, "internal_error", False, id="unexpected"),
        pytest.param(UpstreamError(SECRET), 502, "upstream_error", False, id="upstream"),
        pytest.param(
            UpstreamError(SECRET, status=401, code="upstream_auth"), 502, "upstream_auth", False, id="401"
        ),
        pytest.param(
            UpstreamError(SECRET, status=429, code="upstream_rate_limited", retryable=True),
            429, "upstream_rate_limited", True, id="429",
        ),
        pytest.param(
            UpstreamError(SECRET, status=400, code="upstream_rejected"), 502, "upstream_rejected", False,
            id="400",
        ),
        pytest.param(
            UpstreamError(SECRET, code="upstream_unavailable", retryable=True),
            502, "upstream_unavailable", True, id="unavailable",
        ),
        pytest.param(UpstreamTimeout(SECRET), 504, "upstream_timeout", True, id="timeout"),
        pytest.param(UpstreamInterrupted(SECRET), 502, "upstream_interrupted", True, id="interrupted"),
        pytest.param(UpstreamError(SECRET, code="of their own"), 502, "of their own", False, id="unknown"),
        pytest.param(DecodeError(SECRET, line=3), 502, "upstream_invalid", False, id="decode"),
        pytest.param(BufferLimitExceeded(10), 502, "upstream_invalid", False, id="limit"),
    ],
)
def test_failure_fits_and_tells_nothing(error: Exception, status: int, code: str, retryable: bool) -> None:
    failure = describe_failure(error)
    assert (failure.status, failure.code, failure.retryable) == (status, code, retryable)
    assert failure.message and SECRET not in failure.message
    assert "sk-123" not in failure.body().decode()


def test_exception_may_be_shown_where_the_app_wants_it() -> None:
    assert describe_failure(ValueError("café"), expose=True).message == "ValueError: café"
    assert describe_failure(ValueError(), expose=True).message == "ValueError"
    assert describe_failure(UpstreamTimeout("slow"), expose=True).message == "UpstreamTimeout: slow"


@pytest.mark.parametrize("seconds, header", [(None, None), (0, "0"), (2, "2"), (2.1, "3")])
def test_wait_is_passed_on_in_whole_seconds(seconds: Optional[float], header: Optional[str]) -> None:
    error = UpstreamError("busy", code="upstream_rate_limited", retry_after=seconds)
    assert dict(describe_failure(error).headers()).get("Retry-After") == header


def test_body_is_json_and_its_length_is_said() -> None:
    failure = Failure(500, "internal_error", "schöner Fehler", False)
    headers: Any = dict(failure.headers())
    assert json.loads(failure.body().decode()) == {
        "error": {"message": "schöner Fehler", "code": "internal_error", "retryable": False}
    }
    assert headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(failure.body())),
        "Cache-Control": "no-store",
    }


@pytest.mark.parametrize("code, status", [("timeout", 504), ("shutdown", 503), ("who knows", 500)])
def test_failure_can_be_made_of_its_code(code: str, status: int) -> None:
    failure = failure_of_code(code, True)
    assert (failure.status, failure.code, failure.retryable, failure.retry_after) == (
        status, code, True, None
    )
