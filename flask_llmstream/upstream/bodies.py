"""Answers that the application has asked for itself, of requests and of httpx."""

from __future__ import annotations

import codecs
import json
import socket
import time
from functools import partial
from typing import Any, Iterator, List, Optional, Tuple
from urllib.parse import parse_qsl, urlsplit

import requests
import urllib3.exceptions

from flask_llmstream.reading import READ_ERRORS, read_available
from flask_llmstream.sansio.events import TextDelta
from flask_llmstream.sansio.headers import essence
from flask_llmstream.upstream.answer import Answer
from flask_llmstream.upstream.base import DeltaSource
from flask_llmstream.upstream.decoding import EVENT_STREAM, NDJSON, AnswerDecoder
from flask_llmstream.upstream.errors import invalid, name_of, prompts_in, read_failed

__all__ = ["adapt_httpx", "adapt_response"]

#: Header fields that carry keys.
_SECRET = ("Authorization", "x-api-key", "api-key", "x-goog-api-key")
#: JSON that does not say so is taken for text, as ever.
_LINES: Tuple[str, ...] = tuple(kind for kind in NDJSON if kind != "application/json")


def adapt_response(response: requests.Response) -> DeltaSource:
    """Return what reads a ``requests.Response``."""
    kind = essence(response.headers.get("Content-Type"))
    if response.status_code != 200 or kind in EVENT_STREAM:
        return _ResponseAnswer(response, None, "sse")
    if kind in _LINES:
        return _ResponseAnswer(response, "ollama", "ndjson")
    return _ResponseText(response)


class _ResponseAnswer(Answer):
    """An answer of a model, over requests."""

    def __init__(self, response: requests.Response, provider: Optional[str], framing: str) -> None:
        name = name_of(response.url or "")
        sent = partial(_sent, response.request)
        super().__init__(name, AnswerDecoder(name, provider, framing, sent), sent)
        self._source = response

    def _open(self) -> None:
        self._accept(self._source)

    def _let_go(self) -> None:
        super()._let_go()
        self._source.close()


def _sent(request: Any) -> Iterator[str]:
    """Yield what no message may quote."""
    headers = getattr(request, "headers", {})
    for name in _SECRET:
        yield str(headers.get(name, ""))
    for _, value in parse_qsl(urlsplit(str(getattr(request, "url", ""))).query):
        yield value
    try:
        body = getattr(request, "body", None) or getattr(request, "content", None)
        yield from prompts_in(json.loads(body))  # type: ignore[arg-type]
    except Exception:
        pass  # a stream, or no JSON


class _ResponseText(DeltaSource):
    """A response whose body is the text."""

    def __init__(self, response: requests.Response) -> None:
        super().__init__()
        self._source = response
        self._name = name_of(response.url or "")
        self._reader = read_available(response)
        self._text = codecs.getincrementaldecoder(_charset(response.headers))("strict")

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


def _charset(headers: Any) -> str:
    # Not response.encoding: without a charset that is ISO-8859-1 for every text, which no server
    # has meant for twenty years.
    named = requests.utils.get_encoding_from_headers(
        {"content-type": headers.get("Content-Type", "").replace("text/", "application/")}
    )
    try:
        return codecs.lookup(named or "utf-8").name
    except LookupError:
        return "utf-8"


def adapt_httpx(response: Any) -> DeltaSource:
    """Return what reads an ``httpx.Response`` that was opened with ``client.stream()``.

    :raises TypeError: if it is one of an asynchronous client, or its body is read already.
    :raises ValueError: if it is no answer of a model.
    """
    if not hasattr(response.stream, "__iter__") or response.is_stream_consumed or response.is_closed:
        raise TypeError(
            "an httpx.Response can be adapted while it is open and unread, of a synchronous client:"
            " with client.stream(…) as response: adapt(response)"
        )
    kind = essence(response.headers.get("Content-Type"))
    if response.status_code == 200 and kind not in EVENT_STREAM + _LINES:
        raise ValueError(
            f"cannot adapt an httpx.Response of type {kind!r}; pass its iter_text(), and"
            " current_stream.bind() the response"
        )
    return _HTTPXAnswer(response, "ollama" if kind in _LINES else None)


class _HTTPXAnswer(Answer):
    """An answer of a model, over httpx."""

    def __init__(self, response: Any, provider: Optional[str]) -> None:
        name = name_of(str(response.url))
        sent = partial(_sent, response.request)
        framing = "ndjson" if provider else "sse"
        super().__init__(name, AnswerDecoder(name, provider, framing, sent), sent)
        self._source = response

    def _open(self) -> None:
        self._accept(self._source, reader=_HTTPXBody(self._source))


class _HTTPXBody:
    """Reads an ``httpx.Response`` as :class:`~flask_llmstream.reading.BodyReader` reads others.

    Its connection is not used again: what follows the last word could not be waited for with a limit.
    """

    def __init__(self, response: Any) -> None:
        self.ended = False
        self._response = response
        self._blocks: Iterator[bytes] = response.iter_bytes()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            block = next(self._blocks, None)
        except Exception as exc:
            kinds = [kind.__name__ for kind in type(exc).__mro__]
            if "TimeoutException" in kinds:
                raise socket.timeout("timed out") from exc
            if "HTTPError" in kinds or "StreamError" in kinds:
                raise urllib3.exceptions.ProtocolError(kinds[0]) from exc
            raise
        if block is None:
            self.ended = True
            raise StopIteration
        return block

    def take(self, seconds: float, size: int) -> bytes:
        """Return what is left of the body, within bounds."""
        deadline = time.monotonic() + seconds
        taken: List[bytes] = []
        try:
            while size > 0 and time.monotonic() < deadline:
                taken.append(next(self))
                size -= len(taken[-1])
        except (StopIteration,) + READ_ERRORS:
            pass
        return b"".join(taken)

    def drain(self, seconds: float, size: int) -> bool:
        """Give the connection up."""
        self.close()
        return False

    def limit_silence(self, seconds: float) -> bool:
        """Say that this is not possible: the limits are the client's."""
        return False

    def close(self) -> None:
        """Close the response."""
        self._response.close()
