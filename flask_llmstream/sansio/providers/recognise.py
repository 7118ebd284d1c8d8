"""Which provider's format is this? Answered from one event or line of it, by the keys that only it has."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Optional

__all__ = ["make_decoder", "recognise"]

#: The decoders by name, relative to this package; each is imported when it is first asked for.
_DECODERS = {
    "openai": "openai_chat.ChatChunkDecoder",
    "openai-responses": "openai_responses.ResponsesDecoder",
    "anthropic": "anthropic.MessagesDecoder",
    "ollama": "ollama.OllamaDecoder",
    "gemini": "gemini.GeminiDecoder",
}
_ANTHROPIC = ("message_", "content_block_", "ping")


def recognise(chunk: Any) -> Optional[str]:
    """Return the name of the format that *chunk* is written in, ``None`` where it could be any.

    :param chunk: the parsed JSON of an event or line, or of an answer in one piece.
    :returns: ``openai``, ``openai-responses``, ``anthropic``, ``ollama`` or ``gemini``.
    """
    if isinstance(chunk, list):
        chunk = chunk[0] if chunk else None
    if not isinstance(chunk, dict):
        return None
    kind = chunk.get("type")
    if isinstance(kind, str):
        if kind.startswith("response."):
            return "openai-responses"
        # An answer in one piece is a "message".
        if kind == "message" or kind.startswith(_ANTHROPIC):
            return "anthropic"
    if "choices" in chunk:
        return "openai"
    if chunk.get("object") == "response":
        return "openai-responses"
    if "candidates" in chunk or "usageMetadata" in chunk or "promptFeedback" in chunk:
        return "gemini"
    if "done" in chunk and ("message" in chunk or "response" in chunk):
        return "ollama"
    return None


def make_decoder(name: str, *arguments: Any) -> Any:
    """Return a new decoder for the format called *name*; *arguments* are those of its class."""
    module, _, attribute = _DECODERS[name].partition(".")
    return getattr(import_module(f"{__package__}.{module}"), attribute)(*arguments)
