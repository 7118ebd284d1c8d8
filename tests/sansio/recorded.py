"""Streams as the providers' documentation shows them, and what is in them."""

from __future__ import annotations

import json
from typing import Any, Dict, List, NamedTuple, Tuple

from flask_llmstream.sansio.events import (
    Delta,
    Event,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)
from flask_llmstream.sansio.ndjson_decoder import NDJSONDecoder
from flask_llmstream.sansio.providers.anthropic import MessagesDecoder
from flask_llmstream.sansio.providers.base import ProviderDecoder
from flask_llmstream.sansio.providers.gemini import GeminiDecoder
from flask_llmstream.sansio.providers.ollama import OllamaDecoder
from flask_llmstream.sansio.providers.openai_chat import ChatChunkDecoder
from flask_llmstream.sansio.providers.openai_responses import ResponsesDecoder
from flask_llmstream.sansio.sse import SSEDecoder

ARGUMENTS = ['{"city":', ' "Zürich"}']
CALL = [
    ToolCallDelta(0, "call_1", "look_up"),
    ToolCallDelta(0, arguments=ARGUMENTS[0]),
    ToolCallDelta(0, arguments=ARGUMENTS[1]),
]


class Recorded(NamedTuple):
    """What a provider has sent for an answer."""

    make: Any
    chunks: List[Dict[str, Any]]
    deltas: List[Delta]


def read_all(decoder: ProviderDecoder, wire: bytes, size: int = 0) -> List[Delta]:
    """Return the deltas in *wire*, fed in pieces of *size* bytes."""
    size = size or len(wire) or 1
    pieces = [wire[i : i + size] for i in range(0, len(wire), size)]
    if isinstance(decoder, OllamaDecoder):
        lines = NDJSONDecoder()
        values = [value for piece in pieces for value in lines.feed(piece)] + lines.flush()
        return [delta for value in values for delta in decoder.feed_chunk(value)]
    events = SSEDecoder()
    found = [event for piece in pieces for event in events.feed(piece)] + events.flush()
    return [delta for event in found for delta in decoder.feed_event(event)]


def write_all(recorded: Recorded) -> bytes:
    """Return a recorded stream as its provider writes it."""
    lines = [json.dumps(chunk, ensure_ascii=False) for chunk in recorded.chunks]
    if recorded.make is OllamaDecoder:
        return "".join(f"{line}\n" for line in lines).encode()
    if recorded.make is ChatChunkDecoder:
        lines.append("[DONE]")
    named = recorded.make in (ResponsesDecoder, MessagesDecoder)
    names = [f"event: {chunk['type']}\n" if named else "" for chunk in recorded.chunks] + [""]
    return "".join(f"{name}data: {line}\n\n" for name, line in zip(names, lines)).encode()


def feed(decoder: ProviderDecoder, *chunks: Any) -> List[Delta]:
    """Return the deltas in *chunks*, each as an event of its own."""
    deltas: List[Delta] = []
    for chunk in chunks:
        deltas += decoder.feed_event(Event(chunk if isinstance(chunk, str) else json.dumps(chunk)))
    return deltas


def numbered(*chunks: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Put numbers on the events of a response."""
    return [dict(chunk, sequence_number=number) for number, chunk in enumerate(chunks)]


# -- OpenAI: chat completions ---------------------------------------------------------------


def chat_chunk(delta: Dict[str, Any], finish_reason: Any = None) -> Dict[str, Any]:
    """Return a chunk of a chat completion."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return dict(CHAT_FIELDS, choices=[choice])


CHAT_FIELDS = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-x"}
CHAT = Recorded(
    ChatChunkDecoder,
    [
        chat_chunk({"role": "assistant", "content": ""}),
        chat_chunk({"content": "Let me "}),
        chat_chunk({"content": "see."}),
        chat_chunk({"tool_calls": [
            {"index": 0, "id": "call_1", "type": "function",
             "function": {"name": "look_up", "arguments": ""}},
        ]}),
        chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS[0]}}]}),
        chat_chunk({"tool_calls": [{"index": 0, "function": {"arguments": ARGUMENTS[1]}}]}),
        chat_chunk({}, "tool_calls"),
        dict(CHAT_FIELDS, choices=[], usage={
            "prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16,
            "prompt_tokens_details": {"cached_tokens": 4},
            "completion_tokens_details": {"reasoning_tokens": 0},
        }),
    ],
    [TextDelta("Let me "), TextDelta("see."), *CALL, Finish("tool_calls"), Usage(9, 7, 0, 4)],
)

# -- OpenAI: responses ----------------------------------------------------------------------

RESPONSE = {
    "id": "resp_1", "object": "response", "created_at": 1700000000.0, "status": "in_progress",
    "error": None, "incomplete_details": None, "instructions": None, "max_output_tokens": None,
    "metadata": {}, "model": "gpt-x", "output": [], "parallel_tool_calls": True,
    "temperature": 1.0, "tool_choice": "auto", "tools": [], "top_p": 1.0, "usage": None,
}
RESPONSE_USAGE = {
    "input_tokens": 36, "input_tokens_details": {"cached_tokens": 12, "cache_write_tokens": 0},
    "output_tokens": 20, "output_tokens_details": {"reasoning_tokens": 8}, "total_tokens": 56,
}
THOUGHT = {
    "id": "rs_1", "type": "reasoning", "summary": [{"type": "summary_text", "text": "**Look** it up."}],
}
MESSAGE = {
    "id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
    "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
}
FUNCTION_CALL = {
    "id": "fc_1", "type": "function_call", "status": "completed", "call_id": "call_1",
    "name": "look_up", "arguments": "".join(ARGUMENTS),
}
SEARCH = {
    "id": "ws_1", "type": "web_search_call", "status": "completed",
    "action": {"type": "search", "query": "Zürich", "queries": ["Zürich"]},
}
WHOLE_RESPONSE = dict(
    RESPONSE, status="completed", output=[SEARCH, THOUGHT, MESSAGE, FUNCTION_CALL], usage=RESPONSE_USAGE
)


def of_item(type: str, place: int, item: Dict[str, Any], **fields: Any) -> Dict[str, Any]:
    """Return an event about an item."""
    return dict(fields, type=f"response.{type}", output_index=place, item_id=item["id"])


def item_event(step: str, place: int, item: Dict[str, Any], **changed: Any) -> Dict[str, Any]:
    """Return the event that an item begins or ends with."""
    return {"type": f"response.output_item.{step}", "output_index": place, "item": dict(item, **changed)}


RESPONSES = Recorded(
    ResponsesDecoder,
    numbered(
        {"type": "response.created", "response": RESPONSE},
        {"type": "response.in_progress", "response": RESPONSE},
        item_event("added", 0, SEARCH, status="in_progress"),
        of_item("web_search_call.in_progress", 0, SEARCH),
        of_item("web_search_call.searching", 0, SEARCH),
        of_item("web_search_call.completed", 0, SEARCH),
        item_event("done", 0, SEARCH),
        item_event("added", 1, THOUGHT, summary=[]),
        of_item("reasoning_summary_part.added", 1, THOUGHT, summary_index=0,
                part={"type": "summary_text", "text": ""}),
        of_item("reasoning_summary_text.delta", 1, THOUGHT, summary_index=0, delta="**Look**"),
        of_item("reasoning_summary_text.delta", 1, THOUGHT, summary_index=0, delta=" it up."),
        of_item("reasoning_summary_text.done", 1, THOUGHT, summary_index=0, text="**Look** it up."),
        of_item("reasoning_summary_part.done", 1, THOUGHT, summary_index=0,
                part=THOUGHT["summary"][0]),
        item_event("done", 1, THOUGHT),
        item_event("added", 2, MESSAGE, status="in_progress", content=[]),
        of_item("content_part.added", 2, MESSAGE, content_index=0,
                part={"type": "output_text", "text": "", "annotations": []}),
        of_item("output_text.delta", 2, MESSAGE, content_index=0, delta="Let me ", logprobs=[]),
        of_item("output_text.delta", 2, MESSAGE, content_index=0, delta="see.", logprobs=[]),
        of_item("output_text.annotation.added", 2, MESSAGE, content_index=0, annotation_index=0,
                annotation={"type": "url_citation", "url": "https://example.com", "title": "E",
                            "start_index": 0, "end_index": 3}),
        of_item("output_text.done", 2, MESSAGE, content_index=0, text="Let me see.", logprobs=[]),
        of_item("content_part.done", 2, MESSAGE, content_index=0, part=MESSAGE["content"][0]),
        item_event("done", 2, MESSAGE),
        item_event("added", 3, FUNCTION_CALL, status="in_progress", arguments=""),
        of_item("function_call_arguments.delta", 3, FUNCTION_CALL, delta=ARGUMENTS[0]),
        of_item("function_call_arguments.delta", 3, FUNCTION_CALL, delta=ARGUMENTS[1]),
        of_item("function_call_arguments.done", 3, FUNCTION_CALL, name="look_up",
                arguments="".join(ARGUMENTS)),
        item_event("done", 3, FUNCTION_CALL),
        {"type": "response.completed", "response": WHOLE_RESPONSE},
    ),
    [ReasoningDelta("**Look**"), ReasoningDelta(" it up."), TextDelta("Let me "), TextDelta("see."),
     *CALL, Finish("tool_calls"), Usage(36, 20, 8, 12)],
)

# -- Anthropic ------------------------------------------------------------------------------


def block(index: int, start: Dict[str, Any], *deltas: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Return the events of a block."""
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def json_piece(text: str) -> Dict[str, Any]:
    """Return a piece of a tool's input."""
    return {"type": "input_json_delta", "partial_json": text}


MESSAGE_START = {"type": "message_start", "message": {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [],
    "stop_reason": None, "stop_sequence": None,
    "usage": {"input_tokens": 25, "cache_creation_input_tokens": 3, "cache_read_input_tokens": 12,
              "output_tokens": 1, "service_tier": "standard"},
}}
MESSAGES = Recorded(
    MessagesDecoder,
    [
        MESSAGE_START,
        {"type": "ping"},
        *block(0, {"type": "thinking", "thinking": "", "signature": ""},
               {"type": "thinking_delta", "thinking": "Look "},
               {"type": "thinking_delta", "thinking": "it up."},
               {"type": "signature_delta", "signature": "EqQBCgIYAhIM1gbcDa9GJwZA2b3h"}),
        *block(1, {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix"}),
        *block(2, {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
               json_piece(""), json_piece('{"query": "Z'), json_piece('"}')),
        *block(3, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [
            {"type": "web_search_result", "url": "https://example.com", "title": "E",
             "encrypted_content": "Eo8BCioIAhgB", "page_age": None},
        ]}),
        *block(4, {"type": "text", "text": ""},
               {"type": "text_delta", "text": "Let me "},
               {"type": "citations_delta", "citation": {
                   "type": "web_search_result_location", "url": "https://example.com", "title": "E",
                   "encrypted_index": "Eo8B", "cited_text": "Z"}},
               {"type": "text_delta", "text": "see."}),
        *block(5, {"type": "tool_use", "id": "call_1", "name": "look_up", "input": {}},
               json_piece(""), json_piece(ARGUMENTS[0]), json_piece(ARGUMENTS[1])),
        *block(6, {"type": "tool_use", "id": "call_2", "name": "now", "input": {}}, json_piece("")),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"output_tokens": 89, "output_tokens_details": {"thinking_tokens": 40}}},
        {"type": "message_stop"},
    ],
    [ReasoningDelta("Look "), ReasoningDelta("it up."), TextDelta("Let me "), TextDelta("see."), *CALL,
     ToolCallDelta(1, "call_2", "now"), ToolCallDelta(1, arguments="{}"), Finish("tool_calls"),
     Usage(40, 89, 40, 12)],
)

# -- Ollama ---------------------------------------------------------------------------------


def line(message: Dict[str, Any], **fields: Any) -> Dict[str, Any]:
    """Return a line of a chat with Ollama."""
    head: Dict[str, Any] = {"model": "qwen3", "created_at": "2026-01-01T00:00:00.000000Z"}
    return dict(head, message=dict({"role": "assistant", "content": ""}, **message), done=False, **fields)


ENDED = {
    "done": True, "done_reason": "stop", "total_duration": 8, "load_duration": 1,
    "prompt_eval_count": 26, "prompt_eval_duration": 2, "eval_count": 30, "eval_duration": 4,
}
OLLAMA = Recorded(
    OllamaDecoder,
    [
        line({"thinking": "Look "}),
        line({"thinking": "it up."}),
        line({"content": "Let me "}),
        line({"content": "see."}),
        line({"tool_calls": [
            {"function": {"name": "look_up", "arguments": {"city": "Zürich"}}},
            {"id": "call_2", "function": {"index": 1, "name": "now", "arguments": {}}},
        ]}),
        dict(line({}), **ENDED),
    ],
    [ReasoningDelta("Look "), ReasoningDelta("it up."), TextDelta("Let me "), TextDelta("see."),
     ToolCallDelta(0, None, "look_up", '{"city":"Zürich"}'), ToolCallDelta(1, "call_2", "now", "{}"),
     Finish("tool_calls"), Usage(26, 30)],
)

# -- Gemini ---------------------------------------------------------------------------------


def candidate(*parts: Dict[str, Any], **fields: Any) -> Dict[str, Any]:
    """Return a chunk of a Gemini answer; *fields* are of the candidate."""
    content = {"parts": list(parts), "role": "model"}
    return {
        "candidates": [dict(fields, content=content, index=0)],
        "usageMetadata": {"promptTokenCount": 10, "totalTokenCount": 10},
        "modelVersion": "gemini-x", "responseId": "r1",
    }


GEMINI_USAGE = {
    "promptTokenCount": 10, "toolUsePromptTokenCount": 2, "candidatesTokenCount": 15,
    "thoughtsTokenCount": 40, "cachedContentTokenCount": 4, "totalTokenCount": 67,
}
GEMINI = Recorded(
    GeminiDecoder,
    [
        candidate({"text": "Look ", "thought": True}),
        candidate({"text": "it up.", "thought": True}),
        candidate({"text": "Let me "}),
        candidate({"text": "see."}, {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
                  {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}}),
        candidate({"functionCall": {"name": "look_up", "args": {"city": "Zürich"}},
                   "thoughtSignature": "AY89a18i"},
                  {"functionCall": {"id": "call_2", "name": "now"}}),
        dict(candidate({"text": ""}, finishReason="STOP"), usageMetadata=GEMINI_USAGE),
    ],
    [ReasoningDelta("Look "), ReasoningDelta("it up."), TextDelta("Let me "), TextDelta("see."),
     ToolCallDelta(0, None, "look_up", '{"city":"Zürich"}'), ToolCallDelta(1, "call_2", "now", "{}"),
     Finish("tool_calls"), Usage(12, 55, 40, 4)],
)

ALL: List[Tuple[str, Recorded]] = [
    ("openai", CHAT), ("responses", RESPONSES), ("messages", MESSAGES), ("ollama", OLLAMA),
    ("gemini", GEMINI),
]
