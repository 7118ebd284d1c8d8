"""What a format has written, its reader reads as the same; and what a format cannot carry.

=================  ===============================================================================
every dialect      adjacent pieces of a text, and of a call, may be joined; a heartbeat, an opening, a
                   comment, JSON and what is an application's own leave nothing behind
openai             ``other`` and ``cancelled`` finish as ``stop``
openai-responses   ``other`` finishes as ``stop``, ``cancelled`` as ``other``; there is no word for
                   ``tool_calls``: an answer that is complete and has calls finishes so, and any other
                   not; parts of the usage that are not known are 0
anthropic          ``other`` and ``cancelled`` finish as ``stop``; a call without arguments has ``{}``;
                   totals that are not known are 0, and of a prompt whose size is not known no part
                   is; a count never goes back to 0
sse, ndjson        nothing is lost
frames             halves of a character are joined to whole ones; one that stays alone is U+FFFD
=================  ===============================================================================
"""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from items import ITEMS
from recorded import read_all

from flask_llmstream.client.native import fields_of, text_of, usage_of
from flask_llmstream.exceptions import UpstreamError
from flask_llmstream.sansio import events as e
from flask_llmstream.sansio.anthropic import AnthropicFormat
from flask_llmstream.sansio.frames import FrameDecoder, FramesFormat
from flask_llmstream.sansio.native import SSEFormat
from flask_llmstream.sansio.ndjson import NDJSONFormat
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder
from flask_llmstream.sansio.openai_format import OpenAIFormat
from flask_llmstream.sansio.openai_responses import OpenAIResponsesFormat
from flask_llmstream.sansio.providers.anthropic import MessagesDecoder
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder
from flask_llmstream.sansio.providers.openai_responses import ResponsesDecoder
from flask_llmstream.sansio.sse import SSEDecoder

TEXT = st.text(st.characters(), min_size=1, max_size=5)  # halves of characters too
NAME = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=5)
SIZE = st.sampled_from([0, 1, 2, 3, 7, 50])
REASONS = st.sampled_from(["stop", "length", "tool_calls", "content_filter", "other", "cancelled"])
COUNT = st.integers(0, 10**9)
#: What no dialect has a word for.
UNSAID = (
    st.just(e.Comment("one\ntwo")) | st.builds(e.Custom, NAME, COUNT) | st.just({"a": [1]})
    | st.builds(e.JsonDelta, st.just("/a"), st.just("add"), COUNT) | st.builds(e.Event, NAME, NAME)
)


def whole(text):
    """Return *text* with the halves of characters joined, so that it does not matter who did."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def normal(items):
    """Return the texts and calls of an answer, adjacent pieces joined."""
    joined = []
    for item in items:
        if isinstance(item, e.ToolCallDelta):
            joined.append(["call", item.index, item.id, item.name, item.arguments])
        elif isinstance(item, (str, e.TextDelta)):
            joined.append(["text", item if isinstance(item, str) else item.text])
        elif isinstance(item, e.ReasoningDelta):
            joined.append(["reasoning", item.text])
        else:
            continue
        last = joined[-2:-1]
        if last and last[0][:2] == joined[-1][:2] and joined[-1][0] == "call" and joined[-1][2] is None:
            last[0][-1] += joined.pop()[-1]
        elif last and last[0][0] == joined[-1][0] != "call":
            last[0][-1] += joined.pop()[-1]
    return [[*parts, whole(last)] for *parts, last in joined]


@st.composite
def answers(draw):
    """Return what a provider yields: calls with an id and a name, begun one after the other, maybe mixed."""
    items, calls = [], 0
    for _ in range(draw(st.integers(0, 10))):
        kind = draw(st.sampled_from(["text", "text", "reasoning", "call", "piece", "unsaid"]))
        if kind == "text":
            items.append(draw(st.builds(e.TextDelta, TEXT) | TEXT))
        elif kind == "reasoning":
            items.append(e.ReasoningDelta(draw(TEXT)))
        elif kind == "unsaid":
            items.append(draw(UNSAID))
        elif kind == "call" or not calls:
            items.append(e.ToolCallDelta(calls, f"id{calls}", draw(NAME), draw(st.just("") | TEXT)))
            calls += 1
        else:
            items.append(e.ToolCallDelta(draw(st.integers(0, calls - 1)), arguments=draw(TEXT)))
    return items


def usages(**parts):
    return st.none() | st.builds(e.Usage, **parts)


def encode(wire, items, end, heartbeats=True):
    written = wire.opening(100)
    for item in items:
        written += wire.encode(item) + (wire.heartbeat if heartbeats else b"")
    return written + end


def carry(wire, decoder, items, reason, usage, early, size):
    """Write an answer and read it; return its texts and calls."""
    if early and usage is not None:
        # As providers do that count as they go.
        items = [e.Usage(usage.input_tokens, None, None, usage.cached_tokens), *items]
    if early is not None and usage is not None:
        items, usage = [*items, usage], None
    written = encode(wire, items, b"")
    deltas = read_all(decoder, written + wire.done(reason, usage), size)
    assert decoder.done
    finishes = [delta for delta in deltas if isinstance(delta, e.Finish)]
    assert finishes == [e.Finish(decoder.finished)]
    said = [delta for delta in deltas if isinstance(delta, e.Usage)]
    assert said == ([] if decoder.usage is None else [decoder.usage])
    return normal(deltas)


@given(
    items=answers(), reason=REASONS, size=SIZE, early=st.none() | st.booleans(),
    usage=usages(
        input_tokens=st.none() | COUNT, output_tokens=st.none() | COUNT,
        reasoning_tokens=st.none() | COUNT, cached_tokens=st.none() | COUNT,
    ),
)
def test_openai(items, reason, size, early, usage):
    decoder = ChatChunkDecoder()
    assert carry(OpenAIFormat(), decoder, items, reason, usage, early, size) == normal(items)
    assert decoder.finished == (reason if reason not in ("other", "cancelled") else "stop")
    assert decoder.usage == usage


@given(
    items=answers(), reason=REASONS, size=SIZE, early=st.none() | st.booleans(),
    usage=usages(
        input_tokens=st.none() | COUNT, output_tokens=st.none() | COUNT,
        reasoning_tokens=COUNT, cached_tokens=COUNT,
    ),
)
def test_openai_responses(items, reason, size, early, usage):
    decoder = ResponsesDecoder()
    assert carry(OpenAIResponsesFormat(), decoder, items, reason, usage, early, size) == normal(items)
    if reason in ("stop", "tool_calls", "other"):
        reason = "tool_calls" if any(isinstance(item, e.ToolCallDelta) for item in items) else "stop"
    assert decoder.finished == ("other" if reason == "cancelled" else reason)
    assert decoder.usage == usage


@given(
    items=answers(), reason=REASONS, size=SIZE, early=st.none() | st.booleans(),
    input=st.integers(1, 10**9), cached=st.none() | st.integers(1, 10**9), output=COUNT,
    thinking=st.none() | COUNT,
)
def test_anthropic(items, reason, size, early, input, cached, output, thinking):
    usage = e.Usage(input, output, thinking, None if cached is None else min(input, cached))
    decoder = MessagesDecoder()
    carried = carry(AnthropicFormat(), decoder, items, reason, usage, early, size)
    arguments = {}
    for item in items:
        if isinstance(item, e.ToolCallDelta):
            arguments[item.index] = arguments.get(item.index, "") + item.arguments
    empty = [e.ToolCallDelta(index, arguments="{}") for index, said in arguments.items() if not said]
    assert carried == normal(items + empty)
    assert decoder.finished == (reason if reason not in ("other", "cancelled") else "stop")
    assert decoder.usage == usage


def test_anthropic_counts_what_is_unknown_as_nothing():
    for usage in (None, e.Usage(), e.Usage(cached_tokens=3)):
        decoder = MessagesDecoder()
        read_all(decoder, AnthropicFormat().done("stop", usage))
        assert (decoder.usage.input_tokens or 0, decoder.usage.output_tokens) in ((0, 0), (3, 0))


@pytest.mark.parametrize(
    "wire, decoder", [
        (OpenAIFormat, ChatChunkDecoder), (OpenAIResponsesFormat, ResponsesDecoder),
        (AnthropicFormat, MessagesDecoder),
    ],
)
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    "code, retryable",
    [
        ("upstream_rate_limited", True), ("upstream_unavailable", True), ("upstream_timeout", True),
        ("upstream_rejected", False),
    ],
)
def test_failures(wire, decoder, begun, code, retryable):
    """Responses know but two kinds."""
    if wire is OpenAIResponsesFormat and code != "upstream_rate_limited":
        code, retryable = "upstream_unavailable", True
    encoder, reader = wire(), decoder()
    written = encoder.encode("Hi") if begun else b""
    with pytest.raises(UpstreamError, match="stream: it broke$") as caught:
        read_all(reader, written + encoder.failed("it broke", code, retryable))
    assert (caught.value.code, caught.value.retryable) == (code, retryable)
    assert reader.finished is None and not reader.done


# -- the formats of our own -------------------------------------------------------------------

MAKERS = {
    "tool": e.ToolCallDelta, "json": e.JsonDelta, "custom": e.Custom, "event": e.Event,
    "usage": lambda **fields: usage_of(fields) or e.Usage(),
    "text": e.TextDelta, "reasoning": e.ReasoningDelta, "comment": e.Comment,
}


def read_sse(wire, size):
    decoder = SSEDecoder()
    for event in pieces_through(decoder, wire, size):
        if event.event is None:
            yield e.TextDelta(text_of(event))
        elif event.event in MAKERS:
            yield MAKERS[event.event](**fields_of(event))
        else:
            assert (event.event, fields_of(event)) == ("done", {"reason": "stop", "usage": None})


def read_ndjson(wire, size):
    for fields in pieces_through(NDJSONDecoder(), wire, size):
        type = fields.pop("type")
        if type == "done":
            assert fields == {"reason": "stop", "usage": None}
        elif type != "comment":
            yield MAKERS[type](**fields)


def read_frames(wire, size):
    for frame in pieces_through(FrameDecoder(), wire, size):
        if isinstance(frame.data, str):
            yield MAKERS[frame.kind](frame.data)
        elif frame.kind == "done":
            assert frame.data == {"reason": "stop", "usage": None}
        else:
            yield MAKERS[frame.kind](**frame.data)


def pieces_through(decoder, wire, size):
    size = size or len(wire)
    pieces = [wire[i : i + size] for i in range(0, len(wire), size)]
    return [found for piece in pieces for found in decoder.feed(piece)] + decoder.flush()


def joined(items):
    """Return *items* with adjacent texts joined, and everything else as JSON has it: no half characters."""
    said = []
    for item in items:
        if isinstance(item, (e.TextDelta, e.ReasoningDelta)):
            if said and said[-1][0] is item.__class__:
                item = item.__class__(said.pop()[1] + item.text)
            if item.text:
                said.append((item.__class__, item.text))
        else:
            fields = [getattr(item, name) for name in item.__slots__]
            said.append((item.__class__, json.loads(json.dumps(fields))))
    return [(kind, whole(data) if isinstance(data, str) else data) for kind, data in said]


OURS = ITEMS.filter(lambda item: not isinstance(item, (e.Comment, e.Event)))


@pytest.mark.parametrize("wire, read", [(SSEFormat, read_sse), (NDJSONFormat, read_ndjson)])
@given(items=st.lists(OURS, max_size=6), size=SIZE)
def test_sse_and_ndjson(wire, read, items, size):
    """An ``Event`` of the application's own is written as it is, and is tested with each format."""
    encoder = wire()
    written = encode(encoder, items, b"") + encoder.done("stop")
    assert joined(read(written, size)) == joined(items)


@given(items=st.lists(OURS, max_size=6), size=SIZE)
def test_frames(items, size):
    encoder = FramesFormat()
    written = encode(encoder, items, b"") + encoder.done("stop")
    found = list(read_frames(written, size))
    kinds = (e.TextDelta, e.ReasoningDelta)
    for kind in kinds:
        # A half may wait for the next of its kind, behind what else comes.
        texts = ["".join(item.text for item in each if isinstance(item, kind)) for each in (items, found)]
        assert texts[1] == texts[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    rest = [[item for item in each if not isinstance(item, kinds)] for each in (items, found)]
    assert joined(rest[1]) == joined(rest[0])
