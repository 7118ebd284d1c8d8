"""Answers that bring the client no further: it asks again, and not for ever."""

from __future__ import annotations

from typing import Callable

import pytest
from scripted import Exchange, ScriptedServer, Serve

from flask_llmstream.client import StreamClient
from flask_llmstream.exceptions import StreamInterrupted, StreamRefused

FIRST = b'id: 1\ndata: {"text":"1"}\n\n'
COME_BACK = b'event: stream\nid: 1\nretry: 2000\ndata: {"url":"/streams/a"}\n\n'
REST = b'id: 2\ndata: {"text":"2"}\n\nevent: done\ndata: {"reason":"stop"}\n\n'


def client(server: ScriptedServer) -> StreamClient:
    return StreamClient(server.url, retries=3, sleep=lambda seconds: None)


def first_then(later: Callable[[Exchange], None]) -> Callable[[Exchange], None]:
    """Return a script that breaks off behind the first event, and goes on with *later*."""

    def script(exchange: Exchange) -> None:
        if exchange.number:
            later(exchange)
        else:
            exchange.head()
            exchange.body(FIRST)

    return script


def test_server_that_only_asks_to_come_back_is_left_after_the_retries(serve: Serve) -> None:
    server = serve(first_then(lambda exchange: exchange.answer(COME_BACK)))
    with pytest.raises(StreamInterrupted), client(server) as stream:
        list(stream)
    assert len(server.requests) == 1 + 3
    assert stream.retry == 2000


def test_server_that_asked_to_come_back_has_the_rest(serve: Serve) -> None:
    server = serve(first_then(
        lambda exchange: exchange.answer(COME_BACK if exchange.number < 3 else REST)
    ))
    with client(server) as stream:
        assert "".join(stream.text()) == "12"
    assert [request.headers.get("last-event-id") for request in server.requests] == [None, "1", "1", "1"]


@pytest.mark.parametrize("head", [
    "HTTP/1.1 200 OK\r\nConnection: close\r\n", "HTTP/1.1 200 OK\r\nContent-Type: text/even",
    "HTTP/1.1 200 OK\r\nContent-Type: application/x-nd",
])
def test_head_that_breaks_off_is_asked_for_again(serve: Serve, head: str) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.send(head.encode())
        else:
            exchange.answer(REST)

    server = serve(first_then(script))
    with client(server) as stream:
        assert "".join(stream.text()) == "12"
    assert len(server.requests) == 3


def test_another_type_is_refused(serve: Serve) -> None:
    server = serve(first_then(lambda exchange: exchange.head(Content_Type="text/html", Content_Length="0")))
    with pytest.raises(StreamRefused, match="text/html"), client(server) as stream:
        list(stream)
    assert len(server.requests) == 2
