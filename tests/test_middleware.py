"""The retrofit as WSGI: what is adopted, what passes, and that both stay good WSGI."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from flask_llmstream import LLMStreamMiddleware, current_stream
from flask_llmstream.exceptions import ConfigurationError

Headers = List[Tuple[str, str]]
SSE = [("Content-Type", "text/event-stream")]


class Answer:
    """What a WSGI app has answered, under the eyes of wsgiref's validator on both sides."""

    def __init__(self, app: Any, method: str = "GET", checked: bool = True) -> None:
        self.started: List[Tuple[str, Headers]] = []
        self.written: List[bytes] = []
        environ: Dict[str, Any] = {"REQUEST_METHOD": method, "QUERY_STRING": ""}
        setup_testing_defaults(environ)
        outer = LLMStreamMiddleware(validator(app) if checked else app, padding=16)
        body = (validator(outer) if checked else outer)(environ, self._start)
        try:
            self.pieces = [piece for piece in body]
        finally:
            if hasattr(body, "close"):
                body.close()

    def _start(self, status: str, headers: Headers, exc_info: Any = None) -> Callable[[bytes], Any]:
        self.started.append((status, headers))
        return self.written.append

    @property
    def adopted(self) -> bool:
        ((_, headers),) = self.started
        return ("X-Accel-Buffering", "no") in headers


class Body:
    """An iterable that counts how often it is closed."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        self.closed += 1


def app_of(status: str, headers: Headers, body: Iterable[bytes]) -> Callable[..., Iterable[bytes]]:
    def app(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response(status, headers)
        return body

    return app


def test_event_stream_is_adopted_and_closed_once() -> None:
    body = Body(b"data: a\n\n", b"data: b\n\n")
    answer = Answer(app_of("200 OK", [("Content-Type", "text/event-stream; charset=utf-8")], body))
    assert answer.adopted and body.closed == 1
    sent = b"".join(answer.pieces)
    assert sent.startswith(b": open\n") and sent.endswith(b"data: a\n\ndata: b\n\n")


def test_stream_that_becomes_too_long_is_broken_off() -> None:
    body = Body(*[b"data: a\n\n"] * 9)
    outer = LLMStreamMiddleware(app_of("200 OK", SSE, body), max_bytes=20)
    environ: Dict[str, Any] = {}
    setup_testing_defaults(environ)
    pieces: List[bytes] = []
    with closing(outer(environ, lambda *given: pieces.append)) as sent:
        pieces += sent
    said = b"".join(pieces)
    assert said.count(b"data: a\n\n") == 3 and b"too_long" in said and body.closed == 1


@pytest.mark.parametrize(
    "status, headers",
    [
        ("200 OK", [("Content-Type", "text/html")]),
        ("200 OK", [("Content-Type", "text/plain")]),
        ("200 OK", SSE + [("Content-Length", "2")]),
        ("500 Internal Server Error", SSE),
        ("302 Found", SSE),
    ],
)
def test_what_does_not_stream_passes_as_it_is(status: str, headers: Headers) -> None:
    body = Body(b"ab")
    answer = Answer(app_of(status, list(headers), body))
    assert answer.started == [(status, headers)]
    assert answer.pieces == [b"ab"] and body.closed == 1


def test_what_passes_is_the_very_object_of_the_app() -> None:
    body = Body(b"ab")
    outer = LLMStreamMiddleware(app_of("200 OK", [("Content-Type", "text/html")], body))
    assert outer({}, lambda status, headers: None) is body


def test_head_starts_nothing() -> None:
    body = Body()
    answer = Answer(app_of("200 OK", SSE, body), method="HEAD")
    assert answer.started == [("200 OK", SSE)] and answer.pieces == [] and body.closed == 1


@pytest.mark.parametrize("pieces", [[], [b""], [b"data: a\n\n"]])
def test_app_that_is_a_generator_is_adopted_with_its_first_item(pieces: List[bytes]) -> None:
    ended = []

    def app(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        start_response("200 OK", SSE)
        try:
            for piece in pieces:
                yield piece
        finally:
            ended.append(True)

    answer = Answer(app, checked=bool(pieces))
    if pieces:
        assert answer.adopted
    assert b"".join(answer.pieces).endswith(b"".join(pieces)) and ended == [True]


def test_app_that_writes_is_left_alone() -> None:
    def app(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        write = start_response("200 OK", SSE)
        write(b"data: a\n\n")
        write(b"data: b\n\n")
        return [b"data: c\n\n"]

    answer = Answer(app)
    assert answer.started == [("200 OK", SSE)]
    assert answer.written == [b"data: a\n\n", b"data: b\n\n"] and answer.pieces == [b"data: c\n\n"]


def test_app_may_change_its_mind_before_the_first_byte() -> None:
    def app(environ: Dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", SSE)
        try:
            raise ValueError("no")
        except ValueError:
            start_response("500 Oh", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    answer = Answer(app)
    assert answer.started == [("500 Oh", [("Content-Type", "text/plain")])]
    assert answer.pieces == [b"sorry"]


def test_exception_before_the_first_byte_reaches_the_server() -> None:
    def body() -> Iterator[bytes]:
        raise ValueError("told to")
        yield b""

    with pytest.raises(ValueError, match="told to"):
        Answer(app_of("200 OK", SSE, body()), checked=False)


def test_exception_after_it_is_said_and_then_reaches_the_server() -> None:
    def body() -> Iterator[bytes]:
        yield b"data: a\n\ndata: b"
        raise ValueError("told to")

    seen = []
    outer = LLMStreamMiddleware(app_of("200 OK", SSE, body()))
    items = iter(outer({"REQUEST_METHOD": "GET"}, lambda status, headers: seen.append))
    assert next(items) == b"data: a\n\ndata: b"
    said = next(items)
    assert said.startswith(b"\n\nevent: failed\n") and b"told to" not in said
    with pytest.raises(ValueError, match="told to"):
        next(items)


def test_current_stream_is_there_for_whoever_wants_it() -> None:
    ends = []

    def body() -> Iterator[bytes]:
        current_stream.on_end(lambda end: ends.append(end.reason))
        yield b"data: a\n\n"

    Answer(app_of("200 OK", SSE, body()))
    assert ends == ["finish"]


def test_body_that_is_not_bytes_is_named() -> None:
    body: Any = ["text"]
    with pytest.raises(TypeError, match="bytes.*got str"):
        Answer(app_of("200 OK", SSE, body), checked=False)


def test_types_are_a_setting() -> None:
    def answer(*types: str) -> Headers:
        started: List[Headers] = []
        outer = LLMStreamMiddleware(
            app_of("200 OK", [("Content-Type", "text/plain; charset=utf-8")], [b"a"]), retrofit=types
        )
        list(outer({"REQUEST_METHOD": "GET"}, lambda status, headers: started.append(headers)))
        return started[0]

    assert ("X-Accel-Buffering", "no") in answer("TEXT/plain")
    assert ("X-Accel-Buffering", "no") not in answer("text/event-stream")


def test_what_is_no_app_is_refused() -> None:
    not_an_app: Any = "module:app"
    with pytest.raises(TypeError, match="WSGI app, which is callable, got str"):
        LLMStreamMiddleware(not_an_app)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="LLMSTREAM_RETROFIT"):
        LLMStreamMiddleware(app_of("200 OK", SSE, []), retrofit="text/plain")
    with pytest.raises(TypeError, match="no setting 'colour'"):
        LLMStreamMiddleware(app_of("200 OK", SSE, []), colour="red")
