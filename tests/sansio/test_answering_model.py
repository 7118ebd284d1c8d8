"""Which model has answered, in the words of each provider."""

from __future__ import annotations

from typing import Any, List

import pytest

from flask_llmstream.sansio.providers.recognise import make_decoder

CHAT_END = {"model": "m-1", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("provider, chunks", [
    pytest.param("openai", [CHAT_END, {"choices": [], "usage": {"prompt_tokens": 1}}], id="openai"),
    pytest.param("openai-responses", [
        {"type": "response.completed", "response": {"model": "m-1", "output": [], "status": "completed"}}
    ], id="openai-responses"),
    pytest.param("anthropic", [{"type": "message_start", "message": {"model": "m-1"}}], id="anthropic"),
    pytest.param("ollama", [{"model": "m-1", "message": {}, "done": True}], id="ollama"),
    pytest.param("gemini", [
        {"modelVersion": "m-1", "candidates": [{"finishReason": "STOP", "content": {"parts": []}}]},
    ], id="gemini"),
])
def test_model_is_known_at_the_end(provider: str, chunks: List[Any]) -> None:
    decoder = make_decoder(provider)
    assert decoder.model is None
    for chunk in chunks:
        decoder.feed_chunk(chunk)
    assert decoder.model == "m-1"


def test_model_of_an_answer_in_one_piece() -> None:
    decoder = make_decoder("anthropic")
    decoder.feed_whole({"type": "message", "model": "m-1", "content": [], "stop_reason": "end_turn"})
    assert decoder.model == "m-1"
