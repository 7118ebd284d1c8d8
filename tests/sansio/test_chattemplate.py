"""The shortcut says what the long way says, or nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.exceptions import LLMStreamError
from flask_llmstream.sansio.chattemplate import ChatTemplate
from flask_llmstream.sansio.events import Event, TextDelta
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder


def chunk(content, **more):
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    return json.dumps({"id": "c", "choices": [choice], **more}, ensure_ascii=False)


def learned(data, text):
    template = ChatTemplate()
    template.learn(data, text)
    return template


@pytest.mark.parametrize(
    "text",
    ["b", "longer than before", "ünï 你好 😀", 'quote " and \\ slash', "line\nend\tand \u0001", "\u2028"],
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_chunk_that_differs_in_its_text_is_read(text, ascii_only):
    data = json.dumps(json.loads(chunk(text)), ensure_ascii=ascii_only)
    assert learned(chunk("a"), "a").read(data) == text


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(chunk(""), id="no-text"),
        pytest.param(chunk("b", usage={"prompt_tokens": 1}), id="something-behind"),
        pytest.param(chunk("b").replace('"c"', '"d"'), id="something-before"),
        pytest.param(chunk("b").replace("null", '"stop"'), id="the-end"),
        pytest.param(chunk("b")[:-1], id="cut"),
        pytest.param(chunk("b") + " ", id="longer"),
        pytest.param(chunk("b").replace('"b"', '"b'), id="open-string"),
        pytest.param(chunk("b").replace('"b"', '"\\x"'), id="bad-escape"),
        pytest.param(chunk("b").replace('"b"', '"\t"'), id="control-character"),
        pytest.param(chunk("b").replace('"b"', "7"), id="no-string"),
        pytest.param("[DONE]", id="done"),
        pytest.param("", id="empty"),
    ],
)
def test_anything_else_is_left_to_the_long_way(data):
    assert learned(chunk("a"), "a").read(data) is None


def test_nothing_is_read_before_something_was_learned():
    assert ChatTemplate().read(chunk("a")) is None


def test_the_text_is_not_mistaken_for_another_string_of_the_same_name():
    """A log probability carries its token as ``content`` too; only one of them is the text."""
    def with_twin(text, twin):
        return json.dumps(
            {"choices": [{"logprobs": {"content": twin}, "delta": {"content": text}}]}
        )

    template = learned(with_twin("a", "a"), "a")
    assert template.read(with_twin("b", "a")) == "b"
    assert template.read(with_twin("a", "b")) is None


def test_what_cannot_be_proven_is_not_learned():
    # The text is the refusal; the string called "content" that looks like it means nothing.
    data = json.dumps({"choices": [{"delta": {"refusal": "a"}, "x": {"content": "a"}}]})
    template = learned(data, "a")
    assert template.read(data) is None


def test_a_place_where_another_text_would_break_the_chunk_is_not_learned():
    data = json.dumps({"error": {"content": "a"}, "choices": [{"delta": {"content": "b"}}]})
    assert learned(data, "a").read(data) is None


def test_a_server_that_changes_every_chunk_is_asked_ever_less_often(monkeypatch):
    template = ChatTemplate()
    learned_from = []
    proven = ChatChunkDecoder.feed_event
    monkeypatch.setattr(
        ChatChunkDecoder, "feed_event", lambda self, event: learned_from.append(1) or proven(self, event)
    )
    for number in range(1000):
        data = chunk("a", obfuscation=str(number))
        assert template.read(data) is None
        template.learn(data, "a")
    assert len(learned_from) == 10  # 1, 2, 4, … 512


def test_a_chunk_that_changes_now_and_then_is_learned_at_once_each_time():
    template = ChatTemplate()
    for second in range(20):
        data = chunk("a", created=second)
        assert template.read(data) is None
        template.learn(data, "a")
        for _ in range(5):
            assert template.read(chunk("b", created=second)) == "b"


@given(st.text(), st.text(min_size=1), st.text())
def test_it_agrees_with_the_long_way(mutation, text, other):
    template = learned(chunk(text), text)
    data = chunk(other).replace("null", mutation, 1)
    found = template.read(data)
    if found is not None:
        try:
            deltas = ChatChunkDecoder().feed_event(Event(data))
        except LLMStreamError:  # pragma: no cover - would be the fault that this looks for
            deltas = []
        assert deltas == [TextDelta(found)]
