"""A provider's answer as it is: its head once, then its bytes as they arrive.

Decisions
    1. A refusal is read whole before anything is said, so that the client gets the provider's own
       status and words; except where they speak of the key, which is not the client's.
    2. Events pass whole. Half of one is of no use to a client; and where the provider breaks off inside
       one, its SDKs would fall over that half, and not see the error behind it.
    3. Header fields pass by name. What a provider says of its account, its servers and its cookies
       is for whoever holds the key.
"""

from __future__ import annotations

import http.client
import time
from typing import Any, Callable, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Tuple, Union

import requests

from flask_llmstream.exceptions import UpstreamError
from flask_llmstream.reading import READ_ERRORS, read_available
from flask_llmstream.sansio.gate import Gate, make_gate
from flask_llmstream.sansio.headers import essence, may_pass, parse_retry_after
from flask_llmstream.sansio.metering import Meter
from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.errors import call_failed, name_of, read_failed, refused
from flask_llmstream.upstream.foreign import foreign_error

__all__ = ["PASSED_HEADERS", "Head", "Refusal", "RelayedAnswer"]

#: What a provider's client wants to know of the answer.
PASSED_HEADERS = (
    "content-type", "retry-after", "retry-after-ms", "x-should-retry", "x-request-id", "request-id",
)
#: How much of a refusal is passed on, in bytes, and how long it may take, in seconds.
_REFUSAL_BYTES = 65536
_REFUSAL_SECONDS = 5.0
#: Refusals of the key: what they say is nothing for a client that does not hold it.
_OF_THE_KEY = (401, 403, 407)
#: How bodies are framed; others pass as they come.
_FRAMINGS = {"text/event-stream": "sse", "application/x-ndjson": "ndjson", "application/json": "json"}


class Head(NamedTuple):
    """How an answer begins; the first item of a :class:`RelayedAnswer`."""

    #: Such as ``200 OK``.
    status: str
    #: The header fields that pass.
    headers: List[Tuple[str, str]]
    content_type: str


class Refusal(UpstreamError):
    """The provider has refused the call.

    :param head: how its answer begins; ``None`` where the client must not see it.
    :param body: the beginning of its body.
    """

    def __init__(self, head: Optional[Head], body: bytes, error: UpstreamError) -> None:
        super().__init__(
            str(error), status=error.status, code=error.code, retryable=error.retryable,
            retry_after=error.retry_after,
        )
        self.head = head
        self.body = body


class RelayedAnswer(DeltaSource):
    """Iterates over the :class:`Head` of an answer, then over its body in pieces of ``bytes``.

    :param upstream: a ``requests.Response`` made with ``stream=True``, an ``httpx.Response`` of a
        ``stream``, or a function without arguments that makes the call and returns one of these.
    :param passed: names of the header fields that pass, in lower case.
    :param hide_usage: see :class:`~flask_llmstream.sansio.metering.Meter`.
    :raises TypeError: *upstream* is nothing of the kind.
    """

    def __init__(
        self,
        upstream: Union[Any, Callable[[], Any]],
        passed: Iterable[str] = PASSED_HEADERS,
        hide_usage: bool = False,
    ) -> None:
        super().__init__()
        self._call: Optional[Callable[[], Any]] = None
        self._source: Any = None
        if _is_answer(upstream):
            self._source = upstream
        elif callable(upstream):
            self._call = upstream
        else:
            raise TypeError(_expected(upstream))
        self._passed = tuple(passed)
        self._hide_usage = hide_usage
        self._reader: Any = None
        self._name = ""
        self._gate: Optional[Gate] = None
        #: Reads the usage; ``None`` before the answer has begun.
        self.meter: Optional[Meter] = None

    def traced(self) -> Mapping[str, str]:
        """Return what a trace says of the call."""
        return {"url": str(getattr(self._source, "url", "") or "")}

    def _pull(self) -> None:
        if self._reader is None:
            self._open()
            return
        meter = self.meter
        assert meter is not None
        try:
            block = next(self._reader, None)
        except READ_ERRORS as exc:
            raise read_failed(exc, self._name, self._received) from exc
        except Exception as exc:
            raise foreign_error(exc, self._name, self._received) or exc from exc
        if block is None:
            self._ended = True
            block = self._gate.flush() if self._gate is not None else b""
        elif self._gate is not None:
            block = self._gate.feed(block)
        if block:
            block = meter.feed(block)
        if block:
            self._hand_out(block)
        if self._ended:
            meter.flush()

    def _open(self) -> None:
        if self._call is not None:
            self._source = self._make_call(self._call)
            self._call = None
        answer = self._source
        self._name = name_of(str(answer.url or ""))
        self._reader = _read(answer)
        if self._closed:
            return  # whoever closed us could not know of this connection yet
        head = self._head_of(answer)
        if not 200 <= answer.status_code < 300:
            raise self._refuse(answer, head)
        framing = _FRAMINGS.get(essence(head.content_type), "")
        self._gate = make_gate(framing)
        self.meter = Meter(framing, self._hide_usage)
        self._hand_out(head)

    def _hand_out(self, item: Any) -> None:
        self._received += 1
        self._pending.append(item)

    def _make_call(self, call: Callable[[], Any]) -> Any:
        try:
            answer = call()
        except READ_ERRORS as exc:
            asked = getattr(exc, "request", None)
            raise call_failed(exc, str(getattr(asked, "url", "") or "")) from exc
        except Exception as exc:
            mapped = foreign_error(exc, "the provider", 0)
            if mapped is None:
                raise
            raise mapped from exc
        if not _is_answer(answer):
            raise TypeError(f"the function for relay() has returned something else: {_expected(answer)}")
        return answer

    def _head_of(self, answer: Any) -> Head:
        status = answer.status_code
        headers = [
            (name, value) for name, value in answer.headers.items()
            if name.lower() in self._passed and may_pass(value)
        ]
        reason = http.client.responses.get(status, "Unknown")
        return Head(f"{status} {reason}", headers, answer.headers.get("Content-Type") or "")

    def _refuse(self, answer: Any, head: Head) -> Refusal:
        body = self._take()
        asked = parse_retry_after(answer.headers.get("Retry-After"), time.time())
        error = refused(answer.status_code, self._name, body, asked)
        shown = 400 <= answer.status_code < 600 and answer.status_code not in _OF_THE_KEY
        return Refusal(head if shown else None, body, error)

    def _take(self) -> bytes:
        if hasattr(self._reader, "take"):
            taken: bytes = self._reader.take(_REFUSAL_SECONDS, _REFUSAL_BYTES)[:_REFUSAL_BYTES]
            return taken
        body = b""
        try:
            for block in self._reader:
                body += block
                if len(body) >= _REFUSAL_BYTES:
                    break
        except Exception:
            pass  # what has come must do
        return body[:_REFUSAL_BYTES]

    def _let_go(self) -> None:
        if self._source is not None:
            self._source.close()


def _is_answer(obj: Any) -> bool:
    return isinstance(obj, requests.Response) or (
        hasattr(obj, "status_code") and hasattr(obj, "headers") and hasattr(obj, "iter_bytes")
    )


def _expected(obj: Any) -> str:
    hint = "; for a stream of an SDK use adapt()" if hasattr(obj, "__iter__") else ""
    if hasattr(obj, "aiter_bytes") and not hasattr(obj, "status_code"):
        hint = "; an async stream needs an event loop"
    return (
        "expected a requests.Response made with stream=True, an httpx.Response, or a function that"
        f" returns one, got {type(obj).__name__}{hint}"
    )


def _read(answer: Any) -> Iterator[bytes]:
    if isinstance(answer, requests.Response):
        return read_available(answer)
    return iter(answer.iter_bytes())
