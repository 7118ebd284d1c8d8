"""What LangChain's models yield, whoever is behind them, as deltas."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from flask_llmstream.sansio.events import (
    Delta,
    Finish,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
    Usage,
)

__all__ = ["MessageReader"]

#: Why a model stopped, as the providers say it through LangChain.
_REASONS = {
    "stop": "stop", "end_turn": "stop", "stop_sequence": "stop", "completed": "stop",
    "length": "length", "max_tokens": "length", "max_output_tokens": "length",
    "tool_calls": "tool_calls", "tool_use": "tool_calls", "function_call": "tool_calls",
    "content_filter": "content_filter", "refusal": "content_filter", "safety": "content_filter",
}


class MessageReader:
    """Reads the ``AIMessageChunk`` of one answer."""

    def __init__(self) -> None:
        #: Why the model stopped, once that is known, which it not always is.
        self.finished: Optional[str] = None
        #: What the answer has cost, as far as it was said.
        self.usage: Optional[Usage] = None

    def read(self, item: Any) -> List[Delta]:
        """Return the deltas in *item*."""
        deltas: List[Delta] = []
        content = getattr(item, "content", None)
        for block in [content] if isinstance(content, str) else content or ():
            _read_block(block, deltas)
        thought = getattr(item, "additional_kwargs", {}).get("reasoning_content")
        if isinstance(thought, str) and thought:
            deltas.append(ReasoningDelta(thought))
        for position, call in enumerate(getattr(item, "tool_call_chunks", None) or ()):
            index = call.get("index")
            deltas.append(
                ToolCallDelta(
                    index if isinstance(index, int) else position,
                    call.get("id"), call.get("name"), call.get("args") or "",
                )
            )
        self._read_end(item, deltas)
        return deltas

    def _read_end(self, item: Any, deltas: List[Delta]) -> None:
        said = getattr(item, "response_metadata", None) or {}
        names = ("finish_reason", "stop_reason", "done_reason")
        reason = next((said[name] for name in names if isinstance(said.get(name), str)), None)
        if reason and self.finished is None:
            self.finished = _REASONS.get(reason.lower(), "other")
            deltas.append(Finish(self.finished))
        usage = getattr(item, "usage_metadata", None)
        if usage:
            self.usage = self._with(usage)
            deltas.append(self.usage)

    def _with(self, usage: Dict[str, Any]) -> Usage:
        """Return what is known with *usage*: chunks say a part each, to be summed up."""
        known = self.usage or Usage()
        return Usage(
            _sum(known.input_tokens, usage.get("input_tokens")),
            _sum(known.output_tokens, usage.get("output_tokens")),
            _sum(known.reasoning_tokens, (usage.get("output_token_details") or {}).get("reasoning")),
            _sum(known.cached_tokens, (usage.get("input_token_details") or {}).get("cache_read")),
        )


def _sum(one: Optional[int], other: Optional[int]) -> Optional[int]:
    return other if one is None else one + (other or 0)


def _read_block(block: Any, deltas: List[Delta]) -> None:
    """Read a content block: a text, or a dict as the provider's integration makes it."""
    if isinstance(block, str):
        block = {"type": "text", "text": block}
    kind = block.get("type")
    if kind == "text" and block.get("text"):
        deltas.append(TextDelta(block["text"]))
    elif kind in ("thinking", "reasoning"):
        text = block.get("thinking") or block.get("reasoning")
        summary = block.get("summary") or ()
        for each in [text] if text else [piece.get("text") for piece in summary]:
            if isinstance(each, str) and each:
                deltas.append(ReasoningDelta(each))
