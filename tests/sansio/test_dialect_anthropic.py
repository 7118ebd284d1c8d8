"""The format ``anthropic``, as Anthropic's own SDK reads it."""

from __future__ import annotations

import pytest
from dialects import ANSWER, TEXT, ends, items, read, text_of, write
from hypothesis import given

from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.anthropic import AnthropicFormat
from flask_llmstream.testing.upstreams import raw

ASK = {"model": "any", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def client(upstream):
    anthropic = pytest.importorskip("anthropic")
    root = upstream.url.rsplit("/v1", 1)[0]
    with anthropic.Anthropic(base_url=root, api_key="none", max_retries=0, timeout=10) as client:
        yield client


@pytest.fixture
def message(upstream, client):
    """Return a function that has the SDK put together what was written."""

    def message(written):
        upstream.script = [raw(written)]
        with client.messages.stream(**ASK) as stream:
            return stream.get_final_message()

    return message


@pytest.fixture
def recent(client):
    """Skip on an SDK that neither knows thoughts nor keeps mixed calls apart."""
    if not hasattr(pytest.importorskip("anthropic").types, "ThinkingBlock"):
        pytest.skip("this stack's anthropic SDK knows no thoughts")


def test_the_sdk_makes_the_same_message_of_it(message, recent):
    found = message(write(AnthropicFormat("msg_7", "my-model"), ANSWER, "tool_calls"))
    assert (found.id, found.model, found.role, found.type) == ("msg_7", "my-model", "assistant", "message")
    thought, text, first, second = found.content
    assert (thought.type, thought.thinking) == ("thinking", "Let me see.")
    assert (text.type, text.text) == ("text", TEXT)
    assert (first.type, first.id, first.name) == ("tool_use", "call_a", "look_up")
    assert first.input == {"city": "Berlin"}
    assert (second.id, second.name, second.input) == ("call_b", "now", {})
    assert (found.stop_reason, found.stop_sequence) == ("tool_use", None)
    usage = found.usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.output_tokens) == (8, 3, 20)
    if "output_tokens_details" in type(usage).__annotations__:  # older SDKs do not know them
        assert usage.output_tokens_details.thinking_tokens == 5


def test_the_sdk_takes_heartbeats_everywhere(upstream, client):
    wire = AnthropicFormat()
    assert wire.heartbeat == b'event: ping\ndata: {"type":"ping"}\n\n'
    frames = [wire.encode(item) for item in ("a", e.Comment("still here"), e.ReasoningDelta("b"))]
    upstream.script = [raw(wire.heartbeat + frame) for frame in frames + [wire.done("stop")]]
    with client.messages.stream(**ASK) as stream:
        assert list(stream.text_stream) == ["a"]
        assert [block.type for block in stream.get_final_message().content] == ["text", "thinking"]


@pytest.mark.parametrize(
    "reason, sent",
    [
        ("stop", "end_turn"),
        ("length", "max_tokens"),
        ("tool_calls", "tool_use"),
        ("content_filter", "refusal"),
        ("other", "end_turn"),
        ("cancelled", "end_turn"),
    ],
)
def test_reasons(message, reason, sent):
    assert message(write(AnthropicFormat(), ["a"], reason)).stop_reason == sent


def test_a_call_that_goes_on_behind_another_is_whole(message, recent):
    source = [
        e.ToolCallDelta(0, "a", "f", '{"x":'),
        e.ToolCallDelta(1, "b", "g", '{"y":'),
        e.ToolCallDelta(0, arguments="1}"),
        e.ToolCallDelta(1, arguments="2}"),
        "text",
        e.ToolCallDelta(5, None, "h"),
    ]
    content = message(write(AnthropicFormat("m"), source, "tool_calls")).content
    assert [(block.id, block.input) for block in content if block.type == "tool_use"] == [
        ("a", {"x": 1}), ("b", {"y": 2}), ("toolu_m_2", {}),
    ]


def test_an_empty_answer(message):
    found = message(write(AnthropicFormat(), [], usage=e.Usage(5, None)))
    assert (found.content, found.stop_reason) == ([], "end_turn")
    assert (found.usage.input_tokens, found.usage.output_tokens) == (5, 0)
    assert message(write(AnthropicFormat(), [])).usage.input_tokens == 0


def test_a_count_that_is_known_at_the_beginning_alone_stays(message):
    usage = message(write(AnthropicFormat(), [e.Usage(5, 1), "a", e.Usage(None, 2)])).usage
    assert (usage.input_tokens, usage.output_tokens) == (5, 2)


def test_an_error_is_raised_by_the_sdk(upstream, client):
    anthropic = pytest.importorskip("anthropic")
    upstream.script = [raw(write(AnthropicFormat(), ["some", b"\xc3"], None))]
    said = []
    with pytest.raises(anthropic.APIStatusError) as raised:
        with client.messages.stream(**ASK) as stream:
            said += stream.text_stream
    assert said == ["some", "\ufffd"]
    error = {"type": "rate_limit_error", "message": "it broke"}
    assert raised.value.body == {"type": "error", "error": error}


def test_what_has_no_word_is_left_out():
    wire = AnthropicFormat()
    for item in ({"a": 1}, [1], e.JsonDelta("/a", "add", 1), e.Custom("x", 1), e.Event("x"), e.Finish(), ""):
        assert wire.encode(item) == b""


@given(items, ends)
def test_whatever_comes_blocks_are_opened_and_closed(source, reason):
    events = read(write(AnthropicFormat(), source, reason))
    open_block, blocks, texts = None, 0, []
    for number, (name, data) in enumerate(events):
        assert data["type"] == name
        if name == "message_start":
            assert number == 0
        elif name == "content_block_start":
            assert open_block is None and data["index"] == blocks
            open_block, blocks = blocks, blocks + 1
            assert data["content_block"]["type"] in ("text", "thinking", "tool_use")
        elif name == "content_block_delta":
            delta = data["delta"]
            assert data["index"] == open_block or delta["type"] == "input_json_delta"
            assert data["index"] < blocks
            texts.append(delta.get("text", ""))
        elif name == "content_block_stop":
            assert data["index"] == open_block
            open_block = None
    assert "".join(texts) == text_of(source)
    assert open_block is None
    names = [name for name, _ in events]
    assert names[-1:] == ["error"] if reason is None else names[-2:] == ["message_delta", "message_stop"]
    assert names.count("message_start") == (0 if names == ["error"] else 1)
