"""Both ways to read a stream are exact to the WHATWG specification, however its bytes arrive.

https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation

Each case goes over real HTTP: in one piece, in single bytes, and cut once at every position, as a
chunked body and as one that ends with its connection.
"""

from __future__ import annotations

from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import pytest
import requests
from scripted import Exchange, Serve, chunk

from flask_llmstream.client import StreamClient, sse_client

#: (name, data, id) as an EventSource would see them; no id was set yet: None.
Seen = Tuple[str, str, Optional[str]]


class Case(NamedTuple):
    wire: bytes
    events: List[Seen]
    retry: Optional[int] = None
    last_event_id: str = ""


def message(*data: str) -> List[Seen]:
    return [("message", each, None) for each in data]


CASES = {
    # where a line ends
    "LF": Case(b"data: a\n\ndata: b\n\n", message("a", "b")),
    "CR": Case(b"data: a\r\rdata: b\r\r", message("a", "b")),
    "CRLF": Case(b"data: a\r\n\r\ndata: b\r\n\r\n", message("a", "b")),
    "LF then CRLF": Case(b"data: a\n\r\ndata: b\n\r\n", message("a", "b")),
    "CRLF then LF": Case(b"data: a\r\n\ndata: b\r\n\n", message("a", "b")),
    "CR then CRLF": Case(b"data: a\r\r\ndata: b\r\r\n", message("a", "b")),
    "CRLF then CR": Case(b"data: a\r\n\rdata: b\r\n\r", message("a", "b")),
    "LF then CR": Case(b"data: a\n\rdata: b\n\r", message("a", "b")),
    "CR then LF is one end": Case(b"data: a\r\ndata: b\r\n\r\n", message("a\nb")),
    "many blank lines": Case(b"\n\n\r\r\n\ndata: a\n\n\n\r\n\rdata: b\n\n\n", message("a", "b")),
    "other ends of Unicode are data": Case(
        "data: a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg\n\n".encode(),
        message("a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"),
    ),
    # the byte order mark
    "BOM": Case(b"\xef\xbb\xbfdata: a\n\n", message("a")),
    "BOM alone": Case(b"\xef\xbb\xbf", []),
    "BOM before a blank line": Case(b"\xef\xbb\xbf\ndata: a\n\n", message("a")),
    "only one BOM": Case(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", message("b")),
    "a BOM later is a character": Case(
        b"data: a\n\n\xef\xbb\xbfdata: b\n\ndata: \xef\xbb\xbfc\n\n", message("a", "\ufeffc")
    ),
    # what a field is
    "no space": Case(b"data:a\n\n", message("a")),
    "one space goes": Case(b"data:  a \n\n", message(" a ")),
    "a tab stays": Case(b"data:\ta\n\n", message("\ta")),
    "colons in the value": Case(b"data: a: b:c\n\ndata::\n\n", message("a: b:c", ":")),
    "no colon": Case(b"data\n\n", message("")),
    "no colon twice": Case(b"data\ndata\n\n", message("\n")),
    "empty data": Case(b"data:\n\ndata: \n\n", message("", "")),
    "several lines": Case(b"data: a\ndata:\ndata: b\n\n", message("a\n\nb")),
    "blank line inside data": Case(b"data: a\ndata\ndata\ndata: b\ndata\n\n", message("a\n\n\nb\n")),
    "names are exact": Case(b"Data: a\n data: b\ndata : c\n\xef\xbc\xa4ata: d\ndatax: e\n\n", []),
    "unknown fields": Case(b"foo: 1\nbar\ndata: a\nbaz: \n\n", message("a")),
    "fields after data": Case(b"data: a\nevent: x\nid: 1\n\n", [("x", "a", "1")], None, "1"),
    # comments
    "comments": Case(b":\n: a\n:data: b\ndata: c\n:d\n\n:e\n\n", message("c")),
    "comment inside data": Case(b"data: a\n: hb\ndata: b\n\n", message("a\nb")),
    "heartbeat after an id": Case(b"id: 1\ndata: a\n\n: hb\n\n: hb\n\n", [("message", "a", "1")], None, "1"),
    "opening padding": Case(b":" + b" " * 80 + b"\ndata: a\n\n", message("a")),
    # event names
    "name": Case(b"event: x\ndata: a\n\ndata: b\n\n", [("x", "a", None), ("message", "b", None)]),
    "empty name": Case(b"event: x\nevent:\ndata: a\n\nevent\ndata: b\n\n", message("a", "b")),
    "the last name counts": Case(b"event: x\ndata: a\nevent: y\n\n", [("y", "a", None)]),
    "a name without data is forgotten": Case(b"event: x\n\ndata: a\n\n", message("a")),
    "strange name": Case("event:  e\u00e9:\x00 \ndata: a\n\n".encode(), [(" e\u00e9:\x00 ", "a", None)]),
    "reserved names": Case(
        b"event: error\ndata: a\n\nevent: open\ndata: b\n\n", [("error", "a", None), ("open", "b", None)]
    ),
    # ids
    "id": Case(b"id: 1\ndata: a\n\n", [("message", "a", "1")], None, "1"),
    "an id stays": Case(b"id: 1\ndata: a\n\ndata: b\n\nevent: x\ndata: c\n\n",
                        [("message", "a", "1"), ("message", "b", "1"), ("x", "c", "1")], None, "1"),
    "an empty id resets": Case(b"id: 1\ndata: a\n\nid\ndata: b\n\ndata: c\n\n",
                               [("message", "a", "1"), ("message", "b", ""), ("message", "c", "")], None, ""),
    "an id without data counts": Case(b"id: 1\n\ndata: a\n\n", [("message", "a", "1")], None, "1"),
    "only an id": Case(b"id: 1\n\n", [], None, "1"),
    "id with NUL": Case(b"id: 1\x002\ndata: a\n\n", message("a")),
    "id with NUL after one without": Case(
        b"id: 1\nid: 2\x00\ndata: a\n\n", [("message", "a", "1")], None, "1"
    ),
    "id keeps inner and outer spaces": Case(
        b"id:  1 2 \ndata: a\n\n", [("message", "a", " 1 2 ")], None, " 1 2 "
    ),
    "id beyond ASCII": Case("id: \u0416\ndata: a\n\n".encode(), [("message", "a", "\u0416")], None, "\u0416"),
    "id of an unfinished block": Case(b"id: 1\ndata: a\n\nid: 2\n", [("message", "a", "1")], None, "1"),
    # retry
    "retry": Case(b"retry: 1000\ndata: a\n\n", message("a"), 1000),
    "retry alone": Case(b"retry: 1000\n\ndata: a\n\n", message("a"), 1000),
    "retry without a blank line": Case(b"data: a\n\nretry: 0\n", message("a"), 0),
    "the last retry counts": Case(b"retry: 1\nretry: 2\ndata: a\n\n", message("a"), 2),
    "retry with leading zeros": Case(b"retry: 007\ndata: a\n\n", message("a"), 7),
    "retry that is no number": Case(
        b"retry: 10x\nretry: -1\nretry: +1\nretry: 1.5\nretry: 1_0\nretry:\nretry:  1\ndata: a\n\n",
        message("a"),
    ),
    "retry in other digits": Case("retry: \u0661\u0662\nretry: \u00b2\ndata: a\n\n".encode(), message("a")),
    # UTF-8
    "two, three and four bytes": Case(
        "data: \u00e9\u20ac\U0001f600\n\n".encode(), message("\u00e9\u20ac\U0001f600")
    ),
    "invalid byte": Case(b"data: a\xffb\n\n", message("a\ufffdb")),
    "invalid in a comment": Case(b": \xff\xfe\ndata: a\n\n", message("a")),
    "invalid in a name": Case(b"event: \x80\ndata: a\n\n", [("\ufffd", "a", None)]),
    "character cut by the end of a line": Case(
        b"data: \xe2\x82\ndata: \xf0\x9f\x98\n\n", message("\ufffd\n\ufffd")
    ),
    "surrogate in UTF-8": Case(b"data: \xed\xa0\x80\n\n", message("\ufffd\ufffd\ufffd")),
    "overlong": Case(b"data: \xc0\xaf\n\n", message("\ufffd\ufffd")),
    "NUL in data": Case(b"data: a\x00b\n\n", message("a\x00b")),
    # the end
    "nothing": Case(b"", []),
    "only blank lines": Case(b"\n\r\n\r\r", []),
    "no blank line at the end": Case(b"data: a\n\ndata: b\n", message("a")),
    "no end of line at the end": Case(b"data: a\n\ndata: b", message("a")),
    "only a half event": Case(b'data: {"text":"a', []),
    "cut inside a character": Case(b"data: a\n\ndata: \xe2\x82", message("a")),
    "ends with the CR of a blank line": Case(b"data: a\n\r", message("a")),
    # the examples of the specification
    "stock ticker": Case(b"data: YHOO\ndata: +2\ndata: 10\n\n", message("YHOO\n+2\n10")),
    "four blocks": Case(
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event",
        [("message", "first event", "1"), ("message", "second event", "")], None, "",
    ),
    "two of three": Case(b"data\n\ndata\ndata\n\ndata:", message("", "\n")),
    "identical": Case(b"data:test\n\ndata: test\n\n", message("test", "test")),
}


def pieces_of(wire: bytes) -> Iterator[List[bytes]]:
    """Yield the ways in which *wire* is cut: not at all, everywhere, and once at each position."""
    yield [wire]
    yield [wire[i : i + 1] for i in range(len(wire))]
    for cut in range(1, len(wire)):
        yield [wire[:cut], wire[cut:]]


def by_stream_client(session: requests.Session, url: str) -> Tuple[List[Seen], Optional[int], str]:
    with StreamClient(url, session=session, terminal=None) as stream:
        events = [(event.event or "message", event.data, event.id) for event in stream]
        return events, stream.retry, stream.last_event_id


def by_sse_client(session: requests.Session, url: str) -> Tuple[List[Seen], Any, None]:
    retries = []
    events = []
    for event in sse_client(session.get(url, stream=True)).events():
        events.append((event.event, event.data, event.id))
        if event.retry is not None:
            retries.append(event.retry)
    return events, retries, None


def checked(case: Case, found: Tuple[List[Seen], Any, Optional[str]]) -> bool:
    events, retry, last_event_id = found
    if last_event_id is not None:
        return (events, retry, last_event_id) == (case.events, case.retry, case.last_event_id)
    # sseclient-py has retry only as text, on an event.
    told = [str(case.retry)] if case.retry is not None and case.events else []
    return events == case.events and set(retry) <= set(told) and len(retry) <= 1


@pytest.mark.parametrize("read", [by_stream_client, by_sse_client])
@pytest.mark.parametrize("name", sorted(CASES))
def test_chunked_bodies_are_read_as_the_specification_says(serve: Serve, read: Any, name: str) -> None:
    case = CASES[name]
    ways = list(pieces_of(case.wire))

    def script(exchange: Exchange) -> None:
        exchange.head()
        pieces: Iterable[bytes] = ways[exchange.number]
        exchange.send(b"".join(chunk(piece) for piece in pieces if piece))
        exchange.end()

    server = serve(script)
    with requests.Session() as session:
        for pieces in ways:
            found = read(session, server.url)
            assert checked(case, found), (pieces, found)
    assert len(server.requests) == len(ways)


@pytest.mark.parametrize("read", [by_stream_client, by_sse_client])
def test_bodies_that_end_with_their_connection_are_read_the_same(serve: Serve, read: Any) -> None:
    names = sorted(CASES)

    def script(exchange: Exchange) -> None:
        wire = CASES[names[exchange.number // 2]].wire
        exchange.head(Connection="close")
        if exchange.number % 2:
            for i in range(len(wire)):
                exchange.send(wire[i : i + 1])
        else:
            exchange.send(wire)

    server = serve(script)
    with requests.Session() as session:
        for name in names:
            for _ in range(2):
                found = read(session, server.url)
                assert checked(CASES[name], found), (name, found)
