"""Reading a stream with several channels."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner
from scripted import Serve

from flask_llmstream import cli
from flask_llmstream.client import StreamClient
from flask_llmstream.exceptions import StreamInterrupted
from flask_llmstream.sansio.channels import ChannelDone, ChannelFailed, Tagged
from flask_llmstream.sansio.events import Usage
from flask_llmstream.sansio.native import SSEFormat

ITEMS: Any = [
    Tagged("a", "Hel"), Tagged("b", "\ud83d"), Tagged("a", "lo"), Tagged("a", Usage(1, 2)),
    Tagged("a", ChannelDone("length", Usage(1, 2))), Tagged("b", "\ude00"),
    Tagged("b", ChannelFailed("sorry", "broken", False)),
]


def answer(end: bool = True) -> bytes:
    wire = SSEFormat()
    return b"".join(wire.encode(item) for item in ITEMS) + (wire.done("stop", Usage(3, 4)) if end else b"")


def test_texts_are_told_apart(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(answer()))
    with StreamClient(server.url) as stream:
        assert list(stream.channel_texts()) == [("a", "Hel"), ("a", "lo"), ("b", "\U0001f600")]
        assert (stream.finish_reason, stream.usage) == ("stop", Usage(3, 4))
    with StreamClient(server.url) as stream:
        assert "".join(stream.text("a")) == "Hello"


def test_the_end_of_a_channel_does_not_end_the_stream(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(answer()))
    with StreamClient(server.url) as stream:
        events = [event.event for event in stream]
    assert events == [None, None, None, "usage", "done", None, "failed", "done"]
    server = serve(lambda exchange: exchange.answer(answer(end=False)))
    with pytest.raises(StreamInterrupted), StreamClient(server.url) as stream:
        list(stream)


def test_tail_says_whose_text_it_is(serve: Serve) -> None:
    server = serve(lambda exchange: exchange.answer(answer()))
    result = CliRunner().invoke(cli.main, ["tail", server.url])
    assert (result.exit_code, result.output) == (0, "a: Hello\nb: \U0001f600\n")
