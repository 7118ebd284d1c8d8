"""The chunks of Google's Gemini API, from the API and from the SDK."""

from __future__ import annotations

import pytest
from recorded import GEMINI, candidate
from recorded import feed as feed_events

from flask_llmstream.exceptions import DecodeError, UpstreamError
from flask_llmstream.sansio.events import Finish, ReasoningDelta, TextDelta, ToolCallDelta, Usage
from flask_llmstream.sansio.providers.gemini import GeminiDecoder


def feed(*chunks):
    return feed_events(GeminiDecoder(), *chunks)


def finish(reason, *parts):
    return candidate(*parts, finishReason=reason)


CALL = {"functionCall": {"name": "look_up", "args": {"a": 1}}}


def test_the_documented_chunks_are_those_of_the_sdk():
    types = pytest.importorskip("google.genai.types")
    decoder = GeminiDecoder()
    deltas = []
    for chunk in GEMINI.chunks:
        response = types.GenerateContentResponse.model_validate(chunk)
        deltas += decoder.feed_chunk(response.model_dump())
    assert deltas == GEMINI.deltas


@pytest.mark.parametrize(
    "chunks, deltas",
    [
        pytest.param([candidate({"text": "a"}, {"text": "b"})], [TextDelta("a"), TextDelta("b")], id="parts"),
        pytest.param([candidate({"text": "hm", "thought": True}, {"text": "a", "thought": False})],
                     [ReasoningDelta("hm"), TextDelta("a")], id="thought"),
        pytest.param([{"candidates": [{"content": {"parts": [{"text": "a"}]}}]}], [TextDelta("a")],
                     id="no-index"),
        pytest.param([{"candidates": [{"index": 1, "content": {"parts": [{"text": "b"}]}}]}], [],
                     id="first-candidate-only"),
        pytest.param([{"candidates": [{"content": {"role": "model"}}, {}, None]}, {"candidates": None}], [],
                     id="empty"),
        pytest.param([candidate({"inlineData": {"mimeType": "image/png", "data": "x"}}, {}, None)], [],
                     id="other-parts"),
        pytest.param([candidate(CALL, {"functionCall": {"name": "now", "args": None}})],
                     [ToolCallDelta(0, None, "look_up", '{"a":1}'), ToolCallDelta(1, None, "now", "{}")],
                     id="calls"),
        pytest.param([candidate(CALL), candidate(CALL)],
                     [ToolCallDelta(number, None, "look_up", '{"a":1}') for number in (0, 1)],
                     id="the-same-call-twice"),
        pytest.param([finish("STOP", {"text": "a"}), finish("STOP", {"text": "b"})],
                     [TextDelta("a"), Finish("stop"), Usage(10), TextDelta("b")], id="stop-with-every-chunk"),
        pytest.param([finish("STOP"), finish("STOP", CALL)],
                     [Finish("stop"), Usage(10), ToolCallDelta(0, None, "look_up", '{"a":1}'),
                      Finish("tool_calls")],
                     id="a-call-after-stop"),
        pytest.param([finish("STOP", {"text": "a"}), finish("MAX_TOKENS", {"text": "b"})],
                     [TextDelta("a"), Finish("stop"), Usage(10), TextDelta("b"), Finish("length")],
                     id="the-last-finish-counts-most"),
        pytest.param([candidate({"text": "a"}), "[DONE]"], [TextDelta("a"), Usage(10)], id="gateway-done"),
        pytest.param([[candidate({"text": "a"}), candidate({"text": "b"})]], [TextDelta("a"), TextDelta("b")],
                     id="array"),
        pytest.param([{"promptFeedback": {"blockReason": "SAFETY"}}], [Finish("content_filter")],
                     id="blocked"),
        pytest.param([{"promptFeedback": {"safetyRatings": []}}, {"promptFeedback": 5}], [], id="free"),
    ],
)
def test_chunks(chunks, deltas):
    assert feed(*chunks) == deltas


@pytest.mark.parametrize(
    "said, reason",
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("BLOCKLIST", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("SPII", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "other"),
        ("LANGUAGE", "other"),
        ("BRAND_NEW", "other"),
    ],
)
def test_finish(said, reason):
    decoder = GeminiDecoder()
    assert decoder.feed_chunk({"candidates": [{"finishReason": said}]}) == [Finish(reason)]
    assert (decoder.finished, decoder.done) == (reason, False)


@pytest.mark.parametrize("said", [None, "", "FINISH_REASON_UNSPECIFIED", 5])
def test_no_finish(said):
    assert feed(finish(said)) == []


@pytest.mark.parametrize(
    "fields, usage",
    [
        ({"promptTokenCount": 5, "candidatesTokenCount": 2}, Usage(5, 2)),
        ({"promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 7}, Usage(5, 9, 7)),
        ({"promptTokenCount": 5, "thoughtsTokenCount": 7}, Usage(5, 7, 7)),
        ({"promptTokenCount": 5, "toolUsePromptTokenCount": 3, "cachedContentTokenCount": 4},
         Usage(8, None, cached_tokens=4)),
        ({"prompt_token_count": 5, "candidates_token_count": 2, "cached_content_token_count": 4},
         Usage(5, 2, cached_tokens=4)),
        ({"promptTokenCount": "5", "candidatesTokenCount": None}, Usage()),
    ],
)
def test_usage(fields, usage):
    decoder = GeminiDecoder()
    assert feed_events(decoder, {"usageMetadata": fields}) == []
    assert decoder.usage == usage
    assert feed_events(decoder, {"candidates": [{"finishReason": "STOP"}]}) == [
        Finish("stop"), usage,
    ]


WHOLE = dict(candidate({"text": "Hi"}, finishReason="STOP"), usageMetadata={"promptTokenCount": 3})


@pytest.mark.parametrize("answer", [WHOLE, [WHOLE], [candidate({"text": "Hi"}), dict(
    finish("STOP"), usageMetadata={"promptTokenCount": 3}
)]])
def test_whole(answer):
    decoder = GeminiDecoder()
    assert decoder.feed_whole(answer) == [TextDelta("Hi"), Finish("stop"), Usage(3)]
    assert decoder.done


def test_whole_without_a_finish():
    assert GeminiDecoder().feed_whole([candidate({"text": "Hi"})]) == [TextDelta("Hi"), Usage(10)]


def test_whole_that_is_blocked():
    answer = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}}
    assert GeminiDecoder().feed_whole(answer) == [Finish("content_filter")]


def test_an_empty_array_is_no_answer():
    with pytest.raises(DecodeError, match="a Gemini answer must be an object, got list"):
        GeminiDecoder().feed_whole([])


def details(*all, **fields):
    return dict({"code": 400, "message": "no", "status": "INVALID_ARGUMENT", "details": list(all)}, **fields)


@pytest.mark.parametrize(
    "error, status, code, retryable, after",
    [
        pytest.param({"code": 503, "message": "no", "status": "UNAVAILABLE"}, 503, "upstream_unavailable",
                     True, None, id="overloaded"),
        pytest.param({"message": "no", "status": "RESOURCE_EXHAUSTED"}, None, "upstream_rate_limited", True,
                     None, id="no-code"),
        pytest.param(
            details({"@type": "type.googleapis.com/google.rpc.QuotaFailure"}, {"retryDelay": "34.5s"},
                    code=429, status="RESOURCE_EXHAUSTED"),
            429, "upstream_rate_limited", True, 34.5, id="quota",
        ),
        pytest.param(details({"retryDelay": "soon"}, code=429, status="RESOURCE_EXHAUSTED"),
                     429, "upstream_rate_limited", True, None, id="odd-delay"),
        pytest.param(details({"retryDelay": "1s"}), 400, "upstream_rejected", False, None, id="rejected"),
        pytest.param(details({"reason": "API_KEY_INVALID", "domain": "googleapis.com"}), 400, "upstream_auth",
                     False, None, id="key"),
        pytest.param(details("odd"), 400, "upstream_rejected", False, None, id="odd-detail"),
        pytest.param(details(details=5), 400, "upstream_rejected", False, None, id="odd-details"),
        pytest.param({"code": 403, "message": "no", "status": "PERMISSION_DENIED"}, 403, "upstream_auth",
                     False, None, id="permission"),
        pytest.param({"code": 504, "message": "no", "status": "DEADLINE_EXCEEDED"}, 504, "upstream_timeout",
                     True, None, id="deadline"),
        pytest.param({"code": 500, "message": "no", "status": "INTERNAL"}, 500, "upstream_unavailable", True,
                     None, id="internal"),
    ],
)
@pytest.mark.parametrize("make", [lambda error: error, lambda error: [error]])
def test_errors(make, error, status, code, retryable, after):
    with pytest.raises(UpstreamError, match="stream: no$") as caught:
        feed(make({"error": error}))
    found = caught.value
    assert (found.status, found.code, found.retryable, found.retry_after) == (status, code, retryable, after)


@pytest.mark.parametrize(
    "chunk, message",
    [
        (candidate({"text": ["secret"]}), "text must be a string, got list"),
        (candidate("secret"), "a part must be an object, got str"),
        (candidate({"functionCall": "secret"}), "a function call must be an object, got str"),
        ({"candidates": "secret"}, "candidates must be an array, got str"),
        ({"candidates": ["secret"]}, "a candidate must be an object, got str"),
        ({"candidates": [{"content": "secret"}]}, "content must be an object, got str"),
        ({"candidates": [{"content": {"parts": "secret"}}]}, "parts must be an array, got str"),
        ([["secret"]], "must be an object, got list"),
        (candidate({"functionCall": {"name": "secret", "willContinue": True}}), "streamFunctionCall"),
        (candidate({"functionCall": {"partialArgs": [{"jsonPath": "$.secret"}]}}), "comes in pieces"),
    ],
)
def test_what_is_no_text_is_a_decode_error_that_quotes_nothing(chunk, message):
    with pytest.raises(DecodeError, match=message) as caught:
        feed(chunk)
    assert "secret" not in str(caught.value)
