"""Spans in this process; see tests/live/test_observed.py for what a server does."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import Any, Dict, Iterator, List

import pytest
from opentelemetry import propagate, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from flask_llmstream import LLMStream, tracing
from flask_llmstream.otel import Tracing, _place
from flask_llmstream.testing import ScriptedUpstream
from flask_llmstream.testing.scripts import done, silence, tokens
from flask_llmstream.upstream import adapt, anthropic_messages, openai_chat

MESSAGES = [{"role": "user", "content": "a secret question"}]


@pytest.fixture
def spans(monkeypatch: Any) -> Iterator[InMemorySpanExporter]:
    """What has ended; the provider is this test's own."""
    monkeypatch.delenv("OTEL_PROPAGATORS", raising=False)
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    found = Tracing()
    found.tracer = provider.get_tracer("test")
    tracing.switch_on(found)
    yield exporter
    tracing.switch_on(None)
    provider.shutdown()


@pytest.fixture
def model() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream([tokens("Hel", "lo"), done()]) as model:
        yield model


def ask(model: ScriptedUpstream, **more: Any) -> Any:
    return openai_chat("m-1", MESSAGES, base_url=model.url, api_key="k", **more)


def only(spans: InMemorySpanExporter) -> Any:
    (span,) = spans.get_finished_spans()
    return span


def test_call_outside_of_a_stream_is_a_child_of_the_running_span(
    spans: InMemorySpanExporter, model: ScriptedUpstream
) -> None:
    tracer = tracing._tracer.tracer  # type: ignore[union-attr]
    with tracer.start_as_current_span("job") as job:
        assert len(list(ask(model))) > 1
    call, _ = spans.get_finished_spans()
    assert call.parent.span_id == job.get_span_context().span_id
    assert call.attributes["gen_ai.request.model"] == "m-1" and call.status.is_unset
    assert "secret" not in call.to_json()
    # The propagator that nobody has chosen tells the provider nothing.
    assert "traceparent" not in model.exchanges[0].headers


def test_chosen_propagator_is_asked_and_the_callers_own_header_wins(
    spans: InMemorySpanExporter, model: ScriptedUpstream
) -> None:
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(TraceContextTextMapPropagator())
    try:
        list(ask(model))
        list(ask(model, headers={"traceparent": "mine"}))
    finally:
        propagate.set_global_textmap(before)
    first, second = model.exchanges
    span = spans.get_finished_spans()[0]
    assert first.headers["traceparent"].split("-")[1:3] == [
        format(span.context.trace_id, "032x"), format(span.context.span_id, "016x")
    ]
    assert second.headers["traceparent"] == "mine"


def test_call_that_is_closed_ends_its_span_once_and_is_no_error(spans: InMemorySpanExporter) -> None:
    with ScriptedUpstream([tokens("a"), silence()]) as model:
        call = ask(model)
        next(call)
        closing = threading.Thread(target=call.close)
        closing.start()
        with pytest.raises(StopIteration):
            next(call)
        call.close()
        closing.join(10)
    assert only(spans).status.is_unset and only(spans).attributes["llmstream.usage.estimated"]
    assert "_pull" not in vars(call)


def test_call_that_never_began_has_no_span(spans: InMemorySpanExporter, model: ScriptedUpstream) -> None:
    call = ask(model)
    call.close()
    assert list(call) == [] and not spans.get_finished_spans() and not model.exchanges


def test_what_is_adapted_is_traced_too(spans: InMemorySpanExporter, model: ScriptedUpstream) -> None:
    import requests

    with requests.post(model.url + "/chat/completions", json={"stream": True}, stream=True) as response:
        assert len(list(adapt(response))) > 1
    assert only(spans).attributes["server.address"] == "127.0.0.1"
    assert list(adapt(letter for letter in "ab")) == ["a", "b"]
    assert spans.get_finished_spans()[1].name == "chat"


def test_failure_is_an_error_without_its_words(spans: InMemorySpanExporter) -> None:
    call = anthropic_messages("m-2", MESSAGES, base_url="http://127.0.0.1:9", api_key="k", max_tokens=5)
    with pytest.raises(Exception, match="cannot be reached"):
        next(call)
    span = only(spans)
    assert span.status.status_code is trace.StatusCode.ERROR and not span.status.description
    assert span.attributes["error.type"] == "upstream_unavailable" and not span.events
    assert span.attributes["gen_ai.provider.name"] == "anthropic"


@pytest.mark.parametrize("facts, attributes", [
    ({}, {}),
    ({"provider": "gemini"}, {"gen_ai.provider.name": "gcp.gemini"}),
    ({"provider": "litellm"}, {"gen_ai.provider.name": "litellm"}),
    ({"provider": "openai", "url": "https://me.openai.azure.com/x?api-key=secret"}, {
        "gen_ai.provider.name": "azure.ai.openai", "server.address": "me.openai.azure.com",
        "server.port": 443,
    }),
    ({"provider": "openai", "url": "http://notapi.groq.com:8000/"}, {
        "gen_ai.provider.name": "openai", "server.address": "notapi.groq.com", "server.port": 8000,
    }),
    ({"url": "https://api.groq.com"}, {
        "gen_ai.provider.name": "groq", "server.address": "api.groq.com", "server.port": 443,
    }),
])
def test_whom_the_call_went_to(facts: Dict[str, str], attributes: Dict[str, Any]) -> None:
    assert _place(facts) == attributes


def loaded(program: str) -> List[str]:
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, timeout=60
    ).stdout
    return out.decode().split()


def test_nothing_is_loaded_where_it_is_off_and_its_absence_is_said() -> None:
    program = """
import sys
from flask import Flask
from flask_llmstream import LLMStream
from flask_llmstream.upstream import openai_chat
LLMStream(Flask("a"))
print(any(name.startswith("opentelemetry") for name in sys.modules))
sys.modules["opentelemetry"] = None
try:
    LLMStream(Flask("b"), otel=True)
except RuntimeError as error:
    print("flask-llmstream[otel]" in str(error))
"""
    assert loaded(program) == ["False", "True"]


def test_setting_switches_it_on() -> None:
    from flask import Flask

    try:
        LLMStream(Flask("traced"), otel=True)
        assert isinstance(tracing._tracer, Tracing)
    finally:
        tracing.switch_on(None)
