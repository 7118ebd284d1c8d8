"""Streams LLM output from the synchronous Flask app you already have.

Every public name is imported on first use, so that ``import flask_llmstream`` costs next to
nothing, loads neither Flask nor gevent, and may stand above a ``gevent.monkey.patch_all()``.

Decisions: 1. The submodule ``stream`` shares its name with the public decorator; as an attribute of
this package the name always means the decorator (``_Package`` sees to it).
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from flask_llmstream.current import current_stream
    from flask_llmstream.ending import StreamEnd
    from flask_llmstream.exceptions import LLMStreamError, StreamCancelled, UpstreamError
    from flask_llmstream.extension import LLMStream
    from flask_llmstream.joining import resume_response
    from flask_llmstream.middleware import LLMStreamMiddleware
    from flask_llmstream.multiplex import multiplex
    from flask_llmstream.relay import relay
    from flask_llmstream.responses import stream, stream_response
    from flask_llmstream.sansio.events import (
        Comment,
        Custom,
        Event,
        Finish,
        JsonDelta,
        ReasoningDelta,
        TextDelta,
        ToolCallDelta,
        Usage,
    )
    from flask_llmstream.sansio.formats import register_format
    from flask_llmstream.sansio.jsondelta import json_deltas, snapshots

__version__ = "0.1.0"

__all__ = [
    "Comment",
    "Custom",
    "Event",
    "Finish",
    "JsonDelta",
    "LLMStream",
    "LLMStreamError",
    "LLMStreamMiddleware",
    "ReasoningDelta",
    "StreamCancelled",
    "StreamEnd",
    "TextDelta",
    "ToolCallDelta",
    "UpstreamError",
    "Usage",
    "current_stream",
    "json_deltas",
    "multiplex",
    "register_format",
    "relay",
    "resume_response",
    "snapshots",
    "stream",
    "stream_response",
]

#: Where each public name comes from, relative to this package.
_EXPORTS = {
    "Comment": ".sansio.events",
    "Custom": ".sansio.events",
    "Event": ".sansio.events",
    "Finish": ".sansio.events",
    "JsonDelta": ".sansio.events",
    "LLMStream": ".extension",
    "LLMStreamError": ".exceptions",
    "LLMStreamMiddleware": ".middleware",
    "ReasoningDelta": ".sansio.events",
    "StreamCancelled": ".exceptions",
    "StreamEnd": ".ending",
    "TextDelta": ".sansio.events",
    "ToolCallDelta": ".sansio.events",
    "UpstreamError": ".exceptions",
    "Usage": ".sansio.events",
    "current_stream": ".current",
    "json_deltas": ".sansio.jsondelta",
    "multiplex": ".multiplex",
    "register_format": ".sansio.formats",
    "relay": ".relay",
    "resume_response": ".joining",
    "snapshots": ".sansio.jsondelta",
    "stream": ".responses",
    "stream_response": ".responses",
}


def __getattr__(name: str) -> Any:
    """Import the public *name* on first use (PEP 562)."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_EXPORTS[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> List[str]:
    """Name the public names, whether or not they have been imported yet."""
    return sorted(__all__ + [name for name in globals() if name.startswith("__")])


class _Package(ModuleType):
    """This package, minus one habit of the import system.

    Importing a submodule sets it as an attribute of its package: ``flask_llmstream.stream`` would
    turn from the decorator into the module, depending on who imported what before. Imports
    *from* the submodule do not go through that attribute and work as ever.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _EXPORTS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
