"""Streams that were opened elsewhere, as sources that end when their client leaves.

Decisions
    1. Nothing is imported to recognise an SDK's object: whoever has one has imported the SDK.
    2. An SDK's stream that ends without a finish reason was cut. The SDK calls that a normal end.
"""

from __future__ import annotations

import codecs
import json
from functools import partial
from typing import Any, Dict, Iterator

import requests

from flask_llmstream.exceptions import DecodeError, UpstreamInterrupted
from flask_llmstream.reading import READ_ERRORS, read_available
from flask_llmstream.sansio.events import TextDelta
from flask_llmstream.sansio.headers import essence
from flask_llmstream.sansio.openai import ChatChunkDecoder
from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.chat import ChatAnswer
from flask_llmstream.upstream.errors import invalid, name_of, read_failed, texts_in
from flask_llmstream.upstream.foreign import foreign_error

__all__ = ["adapt"]

_KNOWN = (
    "a requests.Response made with stream=True, a chat completion stream of the openai SDK,"
    " or an iterable with close()"
)
#: Beginnings of what chat.completions.stream() says in addition to its chunks.
_EXTRA_EVENTS = ("content.", "refusal.", "tool_calls.", "logprobs.")


def adapt(obj: Any) -> DeltaSource:
    """Return a source of deltas that reads from *obj*, and closes it when its client leaves.

    :param obj: one of

        - a ``requests.Response`` made with ``stream=True``: an event stream is read as OpenAI's
          chat completion chunks, anything else as text;
        - a chat completion stream of the ``openai`` SDK, version 1 to 3;
        - an iterable with ``close()``: its items are passed through.
    :raises TypeError: for anything else.
    :raises ValueError: for a response whose format is known and not adapted.
    """
    if isinstance(obj, DeltaSource):
        return obj
    if isinstance(obj, requests.Response):
        return _adapt_response(obj)
    package = type(obj).__module__.partition(".")[0]
    if hasattr(obj, "__iter__") and callable(getattr(obj, "close", None)):
        if package == "openai":
            return _SDKChat(obj)
        if package != "anthropic":
            return _Passed(obj)
    kind = f"{type(obj).__module__}.{type(obj).__qualname__}"
    hint = ""
    if hasattr(obj, "__aiter__"):
        hint = "; an async stream needs an event loop, use the SDK's synchronous client"
    elif package in ("httpx", "httpx2"):
        hint = "; pass its iter_text(), and current_stream.bind() the response"
    elif hasattr(obj, "__iter__") and package != "anthropic":
        hint = "; an iterable without close() has nothing to close, use it as it is"
    raise TypeError(f"cannot adapt {kind}, known are {_KNOWN}{hint}")


def _adapt_response(response: requests.Response) -> DeltaSource:
    kind = essence(response.headers.get("Content-Type"))
    if response.status_code != 200 or kind == "text/event-stream":
        return _ResponseChat(response)
    if kind in ("application/x-ndjson", "application/ndjson", "application/jsonl"):
        raise ValueError(f"cannot adapt a response of type {kind}: NDJSON is not read by adapt()")
    return _ResponseText(response)


class _ResponseChat(ChatAnswer):
    """A chat answer that the application has asked for itself."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__(name_of(response.url or ""), partial(_sent, response.request))
        self._source = response

    def _open(self) -> None:
        self._accept(self._source)

    def _let_go(self) -> None:
        super()._let_go()
        self._source.close()


def _sent(request: Any) -> Iterator[str]:
    """Yield what no message may quote."""
    yield str(getattr(request, "headers", {}).get("Authorization", ""))
    try:
        yield from texts_in(json.loads(request.body)["messages"])
    except (AttributeError, KeyError, TypeError, ValueError):
        pass  # not made by requests, or not of this shape


class _ResponseText(DeltaSource):
    """A response whose body is the text."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__()
        self._source = response
        self._name = name_of(response.url or "")
        self._reader = read_available(response)
        self._text = codecs.getincrementaldecoder(_charset(response))("strict")

    def _pull(self) -> None:
        try:
            block = next(self._reader, None)
            text = self._text.decode(block or b"", block is None)
        except READ_ERRORS as exc:
            raise read_failed(exc, self._name, self._received) from exc
        except UnicodeDecodeError as exc:
            message = f"{self._name} sent bytes that are not {exc.encoding}"
            raise invalid(message, error=exc) from exc
        self._ended = block is None
        if text:
            self._add([TextDelta(text)])

    def _let_go(self) -> None:
        self._reader.close()


def _charset(response: requests.Response) -> str:
    # Not response.encoding: without a charset that is ISO-8859-1 for every text, which no server
    # has meant for twenty years.
    named = requests.utils.get_encoding_from_headers(
        {"content-type": response.headers.get("Content-Type", "").replace("text/", "application/")}
    )
    try:
        return codecs.lookup(named or "utf-8").name
    except LookupError:
        return "utf-8"


class _SDKChat(DeltaSource):
    """A stream of the openai SDK."""

    def __init__(self, stream: Any) -> None:
        super().__init__()
        self._source = stream
        self._iterator: Iterator[Any] = stream if hasattr(stream, "__next__") else iter(stream)
        self._decoder = ChatChunkDecoder()

    @property
    def _name(self) -> str:
        response = getattr(self._source, "response", None) or getattr(self._source, "_response", None)
        return name_of(str(getattr(response, "url", "")))

    def _pull(self) -> None:
        try:
            chunk = next(self._iterator, None)
        except Exception as exc:
            mapped = foreign_error(exc, self._name, self._received)
            if mapped is None:
                raise
            raise mapped from exc
        if chunk is None:
            self._ended = True
            if self._decoder.finished is None:
                raise UpstreamInterrupted(f"{self._name} ended without a finish reason")
            return
        # chat.completions.stream() wraps each chunk in an event, and adds events of its own.
        kind = getattr(chunk, "type", None)
        if kind == "chunk":
            chunk = chunk.chunk
        elif isinstance(kind, str) and kind.startswith(_EXTRA_EVENTS):
            return
        if not hasattr(chunk, "choices"):
            raise TypeError(
                f"the stream yields {type(chunk).__qualname__}, expected ChatCompletionChunk; of the"
                " openai SDK only streams of chat.completions can be adapted"
            )
        try:
            self._add(self._decoder.feed_chunk(_plain(chunk)))
        except DecodeError as exc:
            raise invalid(f"{self._name} sent a chunk that is not valid: {exc}", error=exc) from exc
        finally:
            self.finish_reason = self._decoder.finished
            self.usage = self._decoder.usage

    def _let_go(self) -> None:
        self._source.close()


def _plain(chunk: Any) -> Dict[str, Any]:
    """Return an SDK's object as the JSON that it was made from."""
    try:
        # Servers that are nearly compatible would otherwise warn once per token.
        plain = chunk.model_dump(warnings=False)
    except (TypeError, ValueError):
        plain = chunk.model_dump()  # pydantic 1 knows no such argument
    return dict(plain)


class _Passed(DeltaSource):
    """Any iterable with ``close()``; its items are none of our business."""

    def __init__(self, source: Any) -> None:
        super().__init__()
        self._source = source
        self._iterator = iter(source)

    @property
    def ready(self) -> int:
        return int(getattr(self._source, "ready", 0)) + len(self._pending)

    def _pull(self) -> None:
        for item in self._iterator:
            self._add([item])
            return
        self._ended = True

    def _let_go(self) -> None:
        self._source.close()
