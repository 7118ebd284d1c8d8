"""Spans for OpenTelemetry: one for each stream, one for each call of a provider.

Loaded only where the setting ``otel`` is on. Names and attributes of calls are those of the conventions for
generative AI, https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/ .

Decisions
    1. The parent of a stream's span is taken when its response is made, and that of a call from its
       stream: generators run when the view has returned and its context is gone, maybe in another thread
       or greenlet. What the generator itself has opened around the call comes first. Where contexts are told
       apart, the stream's span is the current one in its own greenlet or thread besides, so that what other
       instrumentations see is among its children.
    2. No text of the question or of the answer, no exception's message, no URL beyond host and port.
    3. What ends because nobody wants it any more is no error.
    4. A provider hears of the trace only where a propagator was chosen: the one that OpenTelemetry has by
       default is nobody's decision to tell a third party.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Dict, Mapping, Optional
from urllib.parse import urlsplit

from flask_llmstream import tracing
from flask_llmstream.ending import StreamEnd
from flask_llmstream.exceptions import UpstreamError

__all__ = ["StreamSpan", "Tracing", "make_tracing"]

#: Our names of formats and SDKs in the words of the conventions.
_PROVIDERS = {
    "openai": "openai", "openai-responses": "openai", "anthropic": "anthropic", "ollama": "ollama",
    "gemini": "gcp.gemini", "google.genai": "gcp.gemini",
}
#: Who is known by the host; they speak the format of somebody else.
_HOSTS = {
    "openai.azure.com": "azure.ai.openai", "api.groq.com": "groq", "api.mistral.ai": "mistral_ai",
    "api.deepseek.com": "deepseek", "api.x.ai": "x_ai", "api.perplexity.ai": "perplexity",
    "api.openai.com": "openai", "api.anthropic.com": "anthropic",
    "generativelanguage.googleapis.com": "gcp.gemini",
}
_PORTS = {"http": 80, "https": 443}
#: Ends of a stream that are failures.
_FAILURES = ("error", "timeout")


def make_tracing() -> Tracing:
    """Return what traces streams, and have the calls of this process traced, too.

    :raises RuntimeError: ``opentelemetry-api`` is not installed.
    """
    found = Tracing()
    tracing.switch_on(found)
    return found


class Tracing:
    """Makes spans; the tracer is the one of the provider that the app sets, now or later."""

    def __init__(self) -> None:
        try:
            from opentelemetry import context, propagate, trace
        except ImportError as exc:
            raise RuntimeError(
                "LLMSTREAM_OTEL is on, but opentelemetry-api is not installed: pip install"
                ' "flask-llmstream[otel]", and what sends spans, such as opentelemetry-sdk'
            ) from exc
        from flask_llmstream import __version__

        self.trace = trace
        self._context = context
        self._propagate = propagate
        self._default = propagate.get_global_textmap()
        self.tracer = trace.get_tracer("flask_llmstream", __version__)

    def here(self) -> Any:
        """Return the context of the running code."""
        return self._context.get_current()

    def begin_stream(self, id: str, route: str, format: str, parent: Any) -> StreamSpan:
        """Begin the span of a stream.

        :param parent: the context in which its response was made; ``None`` where that is not known.
        """
        attributes = {
            "llmstream.stream.id": id, "llmstream.route": route, "llmstream.format": format,
        }
        span = self.tracer.start_span(f"stream {route}", context=parent, attributes=attributes)
        found = StreamSpan(self, span, parent)
        if _contexts_are_told_apart():
            found.before = self.here()
            self._context.attach(found.context)
        return found

    def leave(self, span: StreamSpan) -> None:
        """Make current again what was so before :meth:`begin_stream`; called where that was called.

        Not by a token: whoever has begun a span around ours may have ended it meanwhile, and where a
        generator has left one open, that is current.
        """
        if span.before is not None and self.here() is span.context:
            self._context.attach(span.before)
        span.before = None

    def begin_call(self, source: Any, stream: Any) -> CallSpan:
        """Begin the span of a call; see :class:`~flask_llmstream.tracing.Tracer`."""
        return CallSpan(self, source, stream)

    def parent_of(self, stream: Any) -> Any:
        """Return the context for a call that *stream* makes; ``None`` for that of the running code."""
        stream = getattr(stream, "parent", None) or stream  # a channel of one
        span = getattr(getattr(stream, "_notes", None), "span", None)
        if span is None:
            return None
        if _contexts_are_told_apart():
            inner = self.trace.get_current_span().get_span_context()
            if inner.is_valid and inner != span.outer:
                return None  # the generator's own
        return span.context

    def headers(self, context: Any) -> Dict[str, str]:
        """Return what a request says of *context*, nothing where no propagator was chosen."""
        carrier: Dict[str, str] = {}
        chosen = self._propagate.get_global_textmap()
        if chosen is not self._default or os.environ.get("OTEL_PROPAGATORS"):
            chosen.inject(carrier, context=context)
        return carrier

    def failed(self, span: Any, kind: str) -> None:
        """Say that *span* has failed."""
        span.set_attribute("error.type", kind)
        span.set_status(self.trace.Status(self.trace.StatusCode.ERROR))


def _contexts_are_told_apart() -> bool:
    """Whether greenlets have a context each; before greenlet 0.4.17 they share their thread's."""
    return bool(getattr(sys.modules.get("greenlet"), "GREENLET_USE_CONTEXT_VARS", True))


def kind_of(error: Optional[BaseException]) -> str:
    """Return the ``error.type`` for *error*: a code of ours, or the name of its class."""
    if isinstance(error, UpstreamError):
        return str(error.status or error.code)
    return type(error).__name__


class StreamSpan:
    """The span of one stream."""

    __slots__ = ("context", "outer", "before", "_tracing", "_span")

    def __init__(self, tracing: Tracing, span: Any, parent: Any) -> None:
        trace = tracing.trace
        self._tracing = tracing
        self._span = span
        #: The span that was current when the response was made.
        self.outer = trace.get_current_span(parent).get_span_context()
        #: The context of what the stream does.
        self.context = trace.set_span_in_context(span, parent)
        #: The context to go back to, where this one was made current.
        self.before: Any = None

    def end(self, end: StreamEnd, sent: int, pieces: int) -> None:
        """End it.

        :param sent: bytes.
        :param pieces: pieces of text.
        """
        span, now = self._span, time.time_ns()
        first = end.time_to_first_token
        if first is not None:
            span.add_event("llmstream.first_token", timestamp=now - int((end.duration - first) * 1e9))
            span.set_attribute("llmstream.time_to_first_token", first)
        span.set_attribute("llmstream.end_reason", end.reason)
        span.set_attribute("llmstream.sent_bytes", sent)
        span.set_attribute("llmstream.pieces", pieces)
        if end.reason in _FAILURES:
            self._tracing.failed(span, end.reason if end.error is None else kind_of(end.error))
        span.end(now)


class CallSpan:
    """The span of one call; see :class:`~flask_llmstream.tracing.CallSpan`."""

    __slots__ = ("_tracing", "_source", "_stream", "_span", "_context", "_began", "_error", "_first")

    def __init__(self, tracing: Tracing, source: Any, stream: Any) -> None:
        facts = source.traced()
        model = facts.get("model", "")
        operation = "generate_content" if facts.get("provider") == "gemini" else "chat"
        attributes: Dict[str, Any] = {"gen_ai.operation.name": operation, "gen_ai.request.stream": True}
        if model:
            attributes["gen_ai.request.model"] = model
        attributes.update(_place(facts))
        parent = tracing.parent_of(stream)
        trace = tracing.trace
        self._tracing = tracing
        self._source: Any = source
        self._stream = stream
        self._span = tracing.tracer.start_span(
            f"{operation} {model}".rstrip(), context=parent, kind=trace.SpanKind.CLIENT, attributes=attributes
        )
        self._context = trace.set_span_in_context(self._span, parent)
        self._began = time.monotonic()
        self._error = ""
        self._watch(source)

    def _watch(self, source: Any) -> None:
        """See when the first delta has come, and then never again: no token pays for it."""
        pull = source._pull

        def pull_first() -> None:
            pull()
            if source._received:
                source.__dict__.pop("_pull", None)
                seconds = time.monotonic() - self._began
                self._span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)

        source._pull = pull_first

    def headers(self) -> Mapping[str, str]:
        """Return what the request says of the trace."""
        return self._tracing.headers(self._context)

    def fail(self, error: BaseException) -> None:
        """Take note that *error* has ended the call; what is no ``Exception`` is no failure."""
        if isinstance(error, Exception) and not self._error:
            self._error = kind_of(error)

    def end(self) -> None:
        """End the span, once."""
        source, self._source = self._source, None
        if source is None:
            return
        source.__dict__.pop("_pull", None)  # a cycle, otherwise
        span = self._span
        for name, value in _place(source.traced()).items():
            span.set_attribute(name, value)
        if source.model is not None:
            span.set_attribute("gen_ai.response.model", source.model)
        if source.finish_reason is not None:
            span.set_attribute("gen_ai.response.finish_reasons", [source.finish_reason])
        for name, value in _costs(source.usage).items():
            if value is not None:
                span.set_attribute(name, value)
        if source.estimated:
            span.set_attribute("llmstream.usage.estimated", True)
        cancelled = getattr(self._stream, "cancelled", None)
        if cancelled and source.finish_reason is None:
            # On threads that looks like a connection that breaks; it was broken by us.
            span.set_attribute("llmstream.cancelled", cancelled)
        elif self._error:
            self._tracing.failed(span, self._error)
        span.end()


def _place(facts: Mapping[str, str]) -> Dict[str, Any]:
    """Return the attributes for whom the call went to."""
    found: Dict[str, Any] = {}
    parts = urlsplit(facts.get("url", ""))
    host = parts.hostname or ""
    provider = _PROVIDERS.get(facts.get("provider", ""), facts.get("provider", ""))
    for known, name in _HOSTS.items():
        if host == known or host.endswith("." + known):
            provider = name
    if provider:
        found["gen_ai.provider.name"] = provider
    if host:
        found["server.address"] = host
        port = parts.port or _PORTS.get(parts.scheme)
        if port:
            found["server.port"] = port
    return found


def _costs(usage: Any) -> Dict[str, Any]:
    if usage is None:
        return {}
    return {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        "gen_ai.usage.reasoning.output_tokens": usage.reasoning_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
    }
