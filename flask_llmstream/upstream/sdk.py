"""The streams of SDKs, whose items are read as the JSON that they were made from.

Decisions
    1. Items are recognised, not streams: an SDK's generator, a helper around its stream, and an
       application's own generator over it all yield the same items.
    2. What no SDK has made is passed on as it is, and so are its errors.
    3. A provider's stream that ends without a finish reason was cut. The SDKs call that a normal
       end. LangChain does not always know the reason, so there an end is an end.
    4. A bare generator cannot be closed while it runs. On threads the socket is broken that its
       thread is provably reading.
"""

from __future__ import annotations

from typing import Any, Dict, Iterator, List, Mapping, Optional

from flask_llmstream.blocked import pooled_client, reading_socket, waiting_socket
from flask_llmstream.exceptions import DecodeError, UpstreamInterrupted
from flask_llmstream.runtime import current_runtime
from flask_llmstream.sansio.events import Delta, Usage
from flask_llmstream.sansio.providers.recognise import make_decoder, recognise
from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.errors import invalid, name_of
from flask_llmstream.upstream.foreign import foreign_error
from flask_llmstream.upstream.langchain import MessageReader
from flask_llmstream.upstream.sockets import generator_frame, sever

__all__ = ["SDKStream", "package_of"]

#: Packages whose items are a provider's JSON in another shape.
_PROVIDERS = ("openai", "anthropic", "ollama", "litellm", "google.genai")
_LANGCHAIN = "langchain"
#: What the stream helpers of OpenAI and Anthropic say in addition: the same once more, or so far.
_EXTRA_KINDS = frozenset({"text", "thinking", "citation", "signature", "input_json", "compaction"})
_EXTRA_BEGINNINGS = ("content.", "refusal.", "tool_calls.", "logprobs.")


def package_of(obj: Any) -> Optional[str]:
    """Return the SDK that *obj* comes from: a stream, an item, or a generator of an SDK; or ``None``."""
    frame = generator_frame(obj)
    module = type(obj).__module__ if frame is None else str(frame.f_globals.get("__name__", ""))
    for package in _PROVIDERS:
        if (module + ".").startswith(package + "."):
            return package
    return _LANGCHAIN if module.startswith(_LANGCHAIN) else None


class SDKStream(DeltaSource):
    """The deltas in the items of an iterable; what is no item of an SDK is passed on."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._source = stream
        self._iterator: Iterator[Any] = stream if hasattr(stream, "__next__") else iter(stream)
        self._package = package_of(stream)
        self._items: Any = None
        self._kind: Any = None
        self._task: Any = None
        self._runtime: Any = None

    @property
    def ready(self) -> int:
        """How many deltas can be had without waiting."""
        return int(getattr(self._source, "ready", 0) or 0) + len(self._pending)

    @property
    def _name(self) -> str:
        response = getattr(self._source, "response", None) or getattr(self._source, "_response", None)
        url = str(getattr(response, "url", ""))
        return name_of(url) if url or self._package is None else f"the {self._package} SDK's provider"

    @property
    def model(self) -> Optional[str]:
        """Which model has answered."""
        return getattr(self._items, "model", None)

    def traced(self) -> Mapping[str, str]:
        """Return what a trace says of the call."""
        response = getattr(self._source, "response", None) or getattr(self._source, "_response", None)
        return {"provider": self._package or "", "url": str(getattr(response, "url", ""))}

    def _start(self) -> None:
        self._runtime = current_runtime()  # first: from then on it may be closed
        self._task = self._runtime.task()
        super()._start()

    def _pull(self) -> None:
        try:
            item = next(self._iterator)
        except StopIteration:
            self._ended = True
            if self._is_cut():
                raise UpstreamInterrupted(f"{self._name} ended without a finish reason") from None
            return
        except Exception as exc:
            mapped = foreign_error(exc, self._name, self._received) if self._package else None
            if mapped is None:
                raise
            raise mapped from exc
        if item.__class__ is not self._kind and self._read_as(item) is None:
            self._add([item])
            return
        try:
            self._add(self._items.read(item))
        except DecodeError as exc:
            raise invalid(f"{self._name} sent a chunk that is not valid: {exc}", error=exc) from exc
        finally:
            self.finish_reason = self._items.finished
            self.usage = self._items.usage

    def _is_cut(self) -> bool:
        if self._package in (None, _LANGCHAIN):
            return False
        if self._items is None:  # texts that a helper of the SDK has taken out of its items
            return not self._received
        return self.finish_reason is None

    def _read_as(self, item: Any) -> Any:
        """Find out what reads items like this one; ``None`` for what is passed on."""
        package = package_of(item)
        if package is None or not hasattr(item, "model_dump"):
            return None
        if self._items is None:
            self._package = self._package or package
            self._items = MessageReader() if package == _LANGCHAIN else _Chunks(package)
            self._is_counted = True
        # Their streams yield objects of many classes, which one reader knows all.
        self._kind = item.__class__
        return self._items

    def close(self) -> None:
        """End the call now, see :meth:`DeltaSource.close`."""
        was_busy = self._busy
        super().close()
        if was_busy and self._package is not None and generator_frame(self._source) is not None:
            self._break_read()

    def _break_read(self) -> None:
        """Break what the generator is reading, which its thread or greenlet is blocked in."""
        frame = self._runtime.frame(self._task)
        if frame is not None and pooled_client(frame) is None:
            sever(waiting_socket(frame) or reading_socket(frame))

    def _estimate(self) -> None:
        if not (self._ended and self._package == _LANGCHAIN):
            super()._estimate()

    def _let_go(self) -> None:
        for obj in (self._source, getattr(self._source, "completion_stream", None)):
            close = getattr(obj, "close", None)
            if close is not None:
                close()
                return


class _Chunks:
    """Reads objects that were made from a provider's JSON."""

    def __init__(self, package: str) -> None:
        self._package = package
        self._decoder: Any = None

    @property
    def finished(self) -> Optional[str]:
        return None if self._decoder is None else self._decoder.finished

    @property
    def model(self) -> Optional[str]:
        return None if self._decoder is None else self._decoder.model

    @property
    def usage(self) -> Optional[Usage]:
        return None if self._decoder is None else self._decoder.usage

    def read(self, item: Any) -> List[Delta]:
        # chat.completions.stream() wraps each chunk in an event, and adds events of its own.
        kind = getattr(item, "type", None)
        if kind == "chunk":
            item = item.chunk
        elif isinstance(kind, str) and (kind in _EXTRA_KINDS or kind.startswith(_EXTRA_BEGINNINGS)):
            return []
        plain = _plain(item, self._package)
        if self._decoder is None:
            found = recognise(plain)
            if found is None or plain.get("object") == "text_completion":
                raise TypeError(
                    f"the stream yields {type(item).__qualname__}, which is no piece of a chat, a"
                    " response, a message or a generated content"
                )
            self._decoder = make_decoder(found)
        found_deltas: List[Delta] = self._decoder.feed_chunk(plain)
        return found_deltas


def _plain(item: Any, package: str) -> Dict[str, Any]:
    """Return an SDK's object as the JSON that it was made from."""
    if package == "google.genai":
        return dict(item.model_dump(mode="json", by_alias=True, exclude_none=True))
    try:
        # Servers that are nearly compatible would otherwise warn once per token.
        plain = item.model_dump(warnings=False)
    except (TypeError, ValueError):
        plain = item.model_dump()  # pydantic 1 knows no such argument
    return dict(plain)
