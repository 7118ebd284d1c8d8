"""Where calls of providers are traced; nothing here loads what traces, see :mod:`flask_llmstream.otel`."""

from __future__ import annotations

from typing import Any, Mapping, Optional

try:
    from typing import Protocol
except ImportError:  # Python 3.7
    Protocol = object  # type: ignore[assignment]

__all__ = ["CallSpan", "Tracer", "begin_call", "switch_on"]


class CallSpan(Protocol):
    """One call that is being traced."""

    def headers(self) -> Mapping[str, str]:
        """Return what the request says of the trace."""

    def fail(self, error: BaseException) -> None:
        """Take note that *error* has ended the call."""

    def end(self) -> None:
        """End the span, once; later calls do nothing."""


class Tracer(Protocol):
    """What traces the calls of this process."""

    def begin_call(self, source: Any, stream: Any) -> CallSpan:
        """Begin the span of a call.

        :param source: the call, a ``DeltaSource``.
        :param stream: the running stream, or ``None``.
        """


_tracer: Optional[Tracer] = None


def switch_on(tracer: Optional[Tracer]) -> None:
    """Have *tracer* trace the calls of this process from now on; ``None`` traces none."""
    global _tracer
    _tracer = tracer


def begin_call(source: Any, stream: Any) -> Optional[CallSpan]:
    """Return the span of a call that begins, ``None`` where nothing is traced; see :class:`Tracer`."""
    return None if _tracer is None else _tracer.begin_call(source, stream)
