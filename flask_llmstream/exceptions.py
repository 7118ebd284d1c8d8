"""Every exception that flask-llmstream raises on purpose.

::

    LLMStreamError
      WireError                   bytes or fields that break a format
        DecodeError               .line
        BufferLimitExceeded       .limit
          JsonLimitExceeded       .name
      BadCursor                   what a client sends back is not of us, or not for it
      UpstreamError               the LLM call failed: .status, .code, .retryable, .retry_after
        UpstreamTimeout           no answer, or no next byte, in time
        UpstreamInterrupted       the stream ended before its terminal marker
      StreamError                 what a client sees: a stream that failed
        StreamFailed              the server said so: .code, .message, .retryable
        StreamInterrupted         the connection ended without a terminal event
        StreamRefused             the answer is not an event stream: .status, .headers, .body,
                                .retry_after
      OutputInvalid               what a model wrote breaks its schema: .errors, .paths
      LimitReached                as many streams run as may: .limit, .code, .retry_after
      LogUnavailable              the event log cannot be written or read now: .log, .cause
      ConfigurationError          .key, .value
    BaseException
      StreamCancelled             .reason: disconnect, stop, timeout, shutdown

Messages say what was seen, what was expected and the next step; they never contain a prompt,
an answer or a key.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Type

__all__ = [
    "BadCursor",
    "BufferLimitExceeded",
    "ConfigurationError",
    "DecodeError",
    "JsonLimitExceeded",
    "LLMStreamError",
    "LimitReached",
    "LogUnavailable",
    "OutputInvalid",
    "StreamCancelled",
    "StreamError",
    "StreamFailed",
    "StreamInterrupted",
    "StreamRefused",
    "UpstreamError",
    "UpstreamInterrupted",
    "UpstreamTimeout",
    "WireError",
]


class LLMStreamError(Exception):
    """The root of everything that can go wrong here."""


class WireError(LLMStreamError):
    """Bytes or fields break the format that they are written in."""


class DecodeError(WireError):
    """What a peer sent is not what its format allows."""

    def __init__(self, message: str, line: Optional[int] = None) -> None:
        super().__init__(message if line is None else f"line {line}: {message}")
        #: Number of the offending line, counted from 1, where the format has lines.
        self.line = line


class BufferLimitExceeded(WireError):
    """One event grew past the limit before it was complete."""

    def __init__(self, limit: int, message: Optional[str] = None) -> None:
        super().__init__(
            message
            or f"an event grew past max_buffer={limit} characters before its blank line;"
            " raise max_buffer, or check that the peer really sends events"
        )
        #: The limit that was passed: characters of an event, bytes of a frame.
        self.limit = limit


class JsonLimitExceeded(BufferLimitExceeded):
    """JSON that a model writes grew past a limit.

    :param name: the option that sets the limit, such as ``max_depth``.
    :param limit: its value.
    :param where: the position in the text.
    """

    def __init__(self, name: str, limit: int, where: str) -> None:
        super().__init__(limit, f"the JSON at {where} goes past {name}={limit}; raise {name} if it should")
        #: The option that sets the limit.
        self.name = name


class BadCursor(LLMStreamError):
    """What a client sends to go on with a stream was not written by us, or not for this client."""


class UpstreamError(LLMStreamError):
    """The LLM call failed.

    :param message: what happened, for the log; never shown to clients unless the app opts in.
    :param status: HTTP status of the provider's answer, ``None`` where there was none.
    :param code: one of ``upstream_auth``, ``upstream_rate_limited``, ``upstream_rejected``,
        ``upstream_unavailable``, ``upstream_timeout``, ``upstream_interrupted``,
        ``upstream_invalid``, ``upstream_error``.
    :param retryable: whether the same call may succeed later.
    :param retry_after: seconds that the provider asked to wait.
    :param deltas_sent: how many deltas had been read before the failure.
    :param original_error: the foreign exception behind this one.
    """

    def __init__(
        self,
        message: str,
        *,
        status: Optional[int] = None,
        code: str = "upstream_error",
        retryable: bool = False,
        retry_after: Optional[float] = None,
        deltas_sent: int = 0,
        original_error: Optional[BaseException] = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retryable = retryable
        self.retry_after = retry_after
        self.deltas_sent = deltas_sent
        self.original_error = original_error


class UpstreamTimeout(UpstreamError):
    """The provider did not answer, or did not go on, in time."""

    def __init__(self, message: str, **details: Any) -> None:
        details.setdefault("code", "upstream_timeout")
        details.setdefault("retryable", True)
        super().__init__(message, **details)


class UpstreamInterrupted(UpstreamError):
    """The provider's stream ended before its terminal marker."""

    def __init__(self, message: str, **details: Any) -> None:
        details.setdefault("code", "upstream_interrupted")
        details.setdefault("retryable", True)
        super().__init__(message, **details)


class StreamError(LLMStreamError):
    """A stream that a client was reading did not end well."""


class StreamFailed(StreamError):
    """The server ended the stream with a ``failed`` event."""

    def __init__(self, message: str, code: str = "error", retryable: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.message = message
        self.code = code
        self.retryable = retryable


class StreamInterrupted(StreamError):
    """The connection ended without a terminal event: the answer is not complete."""


class StreamRefused(StreamError):
    """The server answered with something that is not an event stream.

    :param status: HTTP status of the answer.
    :param headers: its headers.
    :param body: at most the first KiB of its body, decoded.
    :param retry_after: seconds that it asks to wait before the next attempt.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        headers: Optional[Mapping[str, str]] = None,
        body: str = "",
        retry_after: Optional[float] = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers: Mapping[str, str] = headers if headers is not None else {}
        self.body = body
        self.retry_after = retry_after


class OutputInvalid(LLMStreamError):
    """What a model wrote is not what its schema asks for.

    :param message: what is wrong, without the model's words.
    :param errors: see :attr:`errors`.
    :param paths: see :attr:`paths`.
    """

    def __init__(self, message: str, errors: List[Dict[str, str]], paths: List[str]) -> None:
        super().__init__(message)
        #: Each fault, as ``{"path": …, "message": …}``. Messages come from the library that has
        #: found it, and may quote what the model wrote: they are for the app, not for its log.
        self.errors = errors
        #: Where they are, as clients may know it: JSON Pointers of names that the schema has.
        self.paths = paths


class LimitReached(LLMStreamError):
    """No further stream may run now: there are as many as a limit allows.

    :param limit: which: ``worker``, ``owner`` or ``route``.
    :param retry_after: seconds after which it may be tried again.
    """

    def __init__(self, limit: str, retry_after: float) -> None:
        super().__init__(f"the {limit} has as many streams as it may have; see docs/limits.md")
        self.limit = limit
        #: What clients are told.
        self.code = "too_many_streams" if limit == "owner" else "busy"
        self.retry_after = retry_after


class StreamTooLong(LLMStreamError):
    """A stream has sent as many bytes as it may.

    :param limit: bytes.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"it has sent the {limit} bytes that max_bytes allows; ask the model for less (max_tokens), or"
            " set LLMSTREAM_MAX_BYTES higher"
        )
        self.limit = limit


class LogUnavailable(LLMStreamError):
    """The event log cannot be written or read now; it may work again later.

    :param log: what the log is called, without a password.
    :param cause: what is wrong with it, and what to do.
    """

    def __init__(self, log: str, cause: str) -> None:
        super().__init__(f"the event log {log} cannot be used: {cause}")
        self.log = log
        self.cause = cause


class ConfigurationError(LLMStreamError):
    """A setting has a value that cannot work.

    :param key: name of the setting.
    :param value: what was found there.
    """

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"{key} is {value!r}, expected {expected}")
        self.key = key
        self.value = value


class StreamCancelled(BaseException):
    """Raised inside a producer whose stream nobody wants any more.

    Not an :class:`Exception`: SDKs retry and applications swallow those, and a client that has
    gone must not be retried for. Let it pass; ``finally`` blocks run as for any other exception.
    """

    #: Who asked: ``disconnect``, ``stop``, ``timeout`` or ``shutdown``.
    reason: str = "disconnect"

    def __init__(self, reason: Optional[str] = None) -> None:
        if reason is not None:
            self.reason = reason
        super().__init__(self.reason)


_BY_REASON: Dict[str, Type[StreamCancelled]] = {}


def cancelled_because(reason: str) -> Type[StreamCancelled]:
    """Return the subclass whose instances carry *reason* without being given it.

    CPython can only raise a class, not an instance, in another thread.
    """
    if reason not in _BY_REASON:
        _BY_REASON[reason] = type(
            "StreamCancelled", (StreamCancelled,), {"reason": reason, "__module__": __name__}
        )
    return _BY_REASON[reason]
