"""``chunk=`` in streams, and the page about it."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from flask import Flask
from serving import Served, events_of

from flask_llmstream import stream_response
from flask_llmstream.sansio.chunkers import make_chunker
from flask_llmstream.testing import wait_until

PAGE = Path(__file__).resolve().parent.parent / "docs" / "chunks.md"


def texts(body: bytes) -> List[str]:
    """Return the texts of *body*'s events."""
    return [json.loads(event.data)["text"] for event in events_of(body) if event.event is None]


def test_whole_sentences_are_sent() -> None:
    tokens = ["I", " met", " Dr.", " Who", ".", " It", " cost", " 3", ".", "5", " $", ".", " Yes"]
    with Served(tokens, chunker=make_chunker("sentence"), max_delay=30) as served:
        assert texts(served.read()) == ["I met Dr. Who. ", "It cost 3.5 $. ", "Yes"]


class Plain:
    """Cuts at semicolons, and does not tell what it holds."""

    def __init__(self) -> None:
        self._inner: Any = make_chunker(re.compile(";"))

    def feed(self, text: str) -> List[str]:
        segments: List[str] = self._inner.feed(text)
        return segments

    def flush(self) -> List[str]:
        segments: List[str] = self._inner.flush()
        return segments


@pytest.mark.parametrize(
    "chunker, token, sent",
    [
        pytest.param("sentence", "Two halves", ["Two halves"], id="nothing-was-sent"),
        pytest.param("sentence", "One. And a half", ["One. ", "And a half"], id="behind-a-sentence"),
        pytest.param(Plain, "One;and a half", ["One;", "and a half"], id="foreign"),
    ],
)
def test_what_is_held_goes_out_when_the_source_is_silent(chunker: Any, token: str, sent: List[str]) -> None:
    done = []

    def source() -> Iterator[str]:
        yield token
        wait_until(lambda: done, 10.0)
        yield " more"

    with Served(source(), chunker=make_chunker(chunker), max_delay=0.05) as served:
        body = b""
        while texts(body) != sent:
            body += served.read_until(b"\n\n")
        assert not served.ends, "and the source is still silent"
        done.append(True)
        assert texts(served.read()) == [" more"]


def test_what_was_held_with_nothing_left_is_not_waited_for() -> None:
    """A line leaves nothing behind, so the ticker has nothing to come for."""
    seen = []
    streams: List[Any] = []

    def source() -> Iterator[str]:
        wait_until(lambda: streams, 10.0)
        yield "half "
        seen.append(streams[0]._held_since < float("inf"))
        yield "a line\n"
        seen.append(streams[0]._held_since < float("inf"))

    with Served(source(), chunker=make_chunker("line"), max_delay=30) as served:
        streams.append(served.stream)
        assert texts(served.read()) == ["half a line\n"]
    assert seen == [True, False]


@pytest.mark.parametrize("chunk", ["token", "word", "sentence", "paragraph", "markdown", "json", len])
def test_option_of_a_response(chunk: Any) -> None:
    app = Flask(__name__)

    @app.route("/")
    def view() -> Any:
        return stream_response(["An a", "nswer."], chunk=chunk)

    assert "".join(texts(app.test_client().get("/").data)) == "An answer."


# -- docs/chunks.md ---------------------------------------------------------------------------


def rows() -> List[Any]:
    """Return what the examples of the page name: the chunker, the text, and what comes out."""
    page = PAGE.read_text(encoding="utf-8")
    return re.findall(r"^\| `\"(\w+)\"` \|.*\| `(\".*\")` \| (.*) \|$", page, re.M)


@pytest.mark.checkout
def test_examples_of_the_page_are_true() -> None:
    examples = rows()
    assert {name for name, _, _ in examples} == {
        "token", "word", "sentence", "line", "paragraph", "markdown", "json"
    }
    for name, text, out in examples:
        chunker: Any = make_chunker(name)
        expected = [ast.literal_eval(segment) for segment in re.findall(r"`(\".*?\")`(?:,|$)", out)]
        assert chunker.feed(ast.literal_eval(text)) + chunker.flush() == expected, name
