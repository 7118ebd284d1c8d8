"""Events to bytes: what goes out is what every tested client survives, and nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from splitting import decode_every_way

from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.sse import HEARTBEAT, SSEDecoder, encode_comment, encode_event, opening


@pytest.mark.parametrize(
    "event, wire",
    [
        pytest.param(Event("hello"), b"data: hello\n\n", id="text"),
        pytest.param(Event(""), b"data: \n\n", id="empty"),
        pytest.param(Event(" a "), b"data:  a \n\n", id="outer-spaces"),
        pytest.param(Event("a\nb"), b"data: a\ndata: b\n\n", id="lf"),
        pytest.param(Event("a\rb"), b"data: a\ndata: b\n\n", id="cr"),
        pytest.param(Event("a\rb\r\nc\n"), b"data: a\ndata: b\ndata: c\ndata: \n\n", id="cr-crlf-lf"),
        pytest.param(Event("\n\r"), b"data: \ndata: \ndata: \n\n", id="lf-cr-are-two"),
        pytest.param(Event("a\ndata: b"), b"data: a\ndata: data: b\n\n", id="looks-like-a-field"),
        pytest.param(
            Event("a\u2028b\x0bc\x85d"), "data: a\u2028b\x0bc\x85d\n\n".encode(), id="no-other-line-ends"
        ),
        pytest.param(Event("é€😀"), "data: é€😀\n\n".encode(), id="utf8"),
        pytest.param(Event("\ud83d\ude00"), "data: 😀\n\n".encode(), id="surrogate-pair"),
        pytest.param(Event("a\ud83db"), "data: a\ufffdb\n\n".encode(), id="lone-surrogate"),
        pytest.param(Event({"a": [1, None, "é"]}), 'data: {"a":[1,null,"é"]}\n\n'.encode(), id="json"),
        pytest.param(Event("1"), b"data: 1\n\n", id="str-is-text"),
        pytest.param(Event(None), b"data: null\n\n", id="none-is-json"),
        pytest.param(Event(["\0\r\n"]), b'data: ["\\u0000\\r\\n"]\n\n', id="json-escapes-controls"),
        pytest.param(Event(["\ud83d"]), b'data: ["\\ud83d"]\n\n', id="json-escapes-lone-surrogates"),
        pytest.param(
            Event("x", event="token", id="a:1", retry=3000),
            b"event: token\nid: a:1\nretry: 3000\ndata: x\n\n",
            id="all-fields",
        ),
        pytest.param(Event("x", event=""), b"data: x\n\n", id="empty-name-is-no-name"),
        pytest.param(Event("x", event=" é "), "event:  é \ndata: x\n\n".encode(), id="name-is-any-text"),
        pytest.param(Event("x", id=""), b"id: \ndata: x\n\n", id="empty-id-resets"),
        pytest.param(Event("x", id="a b~!"), b"id: a b~!\ndata: x\n\n", id="id-with-inner-space"),
        pytest.param(Event("x", retry=0), b"retry: 0\ndata: x\n\n", id="retry-0"),
        pytest.param(Event({"a": 1}, event="e"), b'event: e\ndata: {"a":1}\n\n', id="named-json"),
    ],
)
def test_encode_event(event, wire):
    assert encode_event(event) == wire


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\r\n", "a\0", "\ndata: injected", "a\ud800"])
def test_name_that_would_break_the_frame_is_refused(name):
    with pytest.raises(ValueError) as caught:
        encode_event(Event("x", event=name))
    assert str(caught.value) == f"event may not contain CR, LF, NUL or a lone surrogate, got {name!r}"


@pytest.mark.parametrize("name", ["error", "open"])
def test_name_that_an_eventsource_fires_itself_is_refused(name):
    with pytest.raises(ValueError, match=f"may not be named '{name}'.*choose another name"):
        encode_event(Event("x", event=name))


@pytest.mark.parametrize("id", ["a\nb", "a\r", "\0", " a", "a ", "é", "\x7f", "a\tb", "\ud800"])
def test_id_that_clients_cannot_send_back_is_refused(id):
    with pytest.raises(ValueError) as caught:
        encode_event(Event("x", id=id))
    assert str(caught.value).startswith("id must be printable ASCII")
    assert str(caught.value).endswith(f"got {id!r}")


@pytest.mark.parametrize(
    "event, error, message",
    [
        pytest.param(
            Event("x", retry=-1), ValueError, "retry must be 0 or more .*got -1",
            id="negative-retry",
        ),
        pytest.param(Event("x", retry=True), TypeError, "retry must be an int, got True", id="bool-retry"),
        pytest.param(Event("x", retry=1.5), TypeError, "retry must be an int, got 1.5", id="float-retry"),
        pytest.param(Event("x", id=5), TypeError, "id must be a str, got 5", id="int-id"),
        pytest.param(Event("x", event=b"e"), TypeError, "event must be a str, got b'e'", id="bytes-name"),
        pytest.param(
            Event("a\0b"), ValueError, "data may not contain NUL.*send it as JSON",
            id="nul-in-text",
        ),
        pytest.param(Event([float("nan")]), ValueError, "NaN and Infinity", id="nan"),
        pytest.param(Event(object()), TypeError, "not JSON serializable", id="not-json"),
    ],
)
def test_what_cannot_be_sent_is_refused(event, error, message):
    with pytest.raises(error, match=message):
        encode_event(event)


@pytest.mark.parametrize(
    "text, wire",
    [
        pytest.param("hb", HEARTBEAT, id="one-line"),
        pytest.param("", b":\n", id="empty"),
        pytest.param("a\nb\r\nc\rd", b": a\n: b\n: c\n: d\n", id="lines"),
        pytest.param("a\n\ndata: b", b": a\n:\n: data: b\n", id="no-blank-line-gets-out"),
        pytest.param("é\ud800", ": é\ufffd\n".encode(), id="utf8"),
    ],
)
def test_encode_comment(text, wire):
    assert encode_comment(text) == wire
    decode_every_way(SSEDecoder, wire + b"data: 1\n\n", [Event("1")])


def test_comment_with_nul_is_refused():
    with pytest.raises(ValueError, match="may not contain NUL"):
        encode_comment("a\0b")


@pytest.mark.parametrize("padding", [-1, 0, 1, 8, 9, 1024, 1032, 1033, 2048, 65536])
def test_opening_is_comments_of_at_least_that_size(padding):
    wire = opening(padding)
    assert padding <= len(wire) < max(padding, 8) + 1024
    lines = wire.split(b"\n")
    assert lines.pop() == b""
    assert all(line.startswith(b":") and len(line) < 1024 for line in lines)


names = st.text(st.characters(blacklist_characters="\r\n\0", blacklist_categories=("Cs",)))
ids = st.from_regex(r"\A([!-~]([ -~]*[!-~])?)?\Z")
data = st.text(st.one_of(st.sampled_from("\r\n :"), st.characters(blacklist_categories=("Cs",)))).filter(
    lambda text: "\0" not in text
)


@given(data, names.filter(lambda name: name not in ("error", "open")), ids, st.integers(0, 10**9))
def test_what_is_encoded_is_decoded(text, name, id, retry):
    wire = encode_event(Event(text, event=name, id=id, retry=retry))
    decoder = SSEDecoder()
    # CR and CRLF cannot be told from LF any more; all else comes back as it was.
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    assert decoder.feed(b": open\n" + wire) == [Event(lines, name or None, id)]
    assert decoder.retry == retry
    assert decoder.last_event_id == id
    assert wire.endswith(b"\n\n") and wire.count(b"\n\n") == 1
    assert b"\r" not in wire and b"\0" not in wire
