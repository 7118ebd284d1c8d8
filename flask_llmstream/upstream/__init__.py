"""LLM calls as sources of a stream: their deltas, their errors, and their end when nobody listens.

Every name is imported on first use: whoever only adapts an SDK never loads what calls use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from flask_llmstream.upstream.adapt import adapt
    from flask_llmstream.upstream.anthropic import anthropic_messages
    from flask_llmstream.upstream.gemini import gemini_chat
    from flask_llmstream.upstream.ollama import ollama_chat
    from flask_llmstream.upstream.openai import openai_chat, openai_responses

__all__ = [
    "adapt",
    "anthropic_messages",
    "gemini_chat",
    "ollama_chat",
    "openai_chat",
    "openai_responses",
]

#: Where each public name comes from.
_EXPORTS = {
    "adapt": "flask_llmstream.upstream.adapt",
    "anthropic_messages": "flask_llmstream.upstream.anthropic",
    "gemini_chat": "flask_llmstream.upstream.gemini",
    "ollama_chat": "flask_llmstream.upstream.ollama",
    "openai_chat": "flask_llmstream.upstream.openai",
    "openai_responses": "flask_llmstream.upstream.openai",
}


def __getattr__(name: str) -> Any:
    """Import the public *name* on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    """Name the public names, whether or not they have been imported yet."""
    return sorted(__all__ + [name for name in globals() if name.startswith("__")])
