"""Header fields of streams, and Retry-After."""

from __future__ import annotations

from wsgiref.util import is_hop_by_hop

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_llmstream.sansio.headers import adopted_headers, essence, parse_retry_after, stream_headers

SSE = "text/event-stream; charset=utf-8"
OURS = [
    ("Content-Type", SSE),
    ("Cache-Control", "no-cache, no-transform"),
    ("X-Accel-Buffering", "no"),
    ("X-Content-Type-Options", "nosniff"),
]


@pytest.mark.parametrize(
    "extra, expected",
    [
        pytest.param(None, OURS, id="none"),
        pytest.param({}, OURS, id="empty"),
        pytest.param({"X-Model": "m"}, OURS + [("X-Model", "m")], id="added"),
        pytest.param(
            [("Link", "<a>"), ("Link", "<b>")], OURS + [("Link", "<a>"), ("Link", "<b>")], id="name-twice"
        ),
        pytest.param(
            {"cache-control": "no-store"},
            [OURS[0], *OURS[2:], ("cache-control", "no-store")],
            id="callers-value-counts",
        ),
        pytest.param({"X-A": ""}, OURS + [("X-A", "")], id="empty-value"),
        pytest.param({"X-A": "é\ta"}, OURS + [("X-A", "é\ta")], id="latin-1"),
    ],
)
def test_stream_headers(extra, expected):
    before = repr(extra)
    assert stream_headers(SSE, extra) == expected
    assert repr(extra) == before


def test_stream_headers_keep_compression_away_when_asked():
    assert stream_headers(SSE, identity=True) == OURS + [("Content-Encoding", "identity")]
    given = stream_headers(SSE, {"Content-Encoding": "br"}, identity=True)
    assert given == OURS + [("Content-Encoding", "br")]


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "keep-alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "TE",  # codespell:ignore te
        "Trailers",
        "Transfer-Encoding",
        "Upgrade",
    ],
)
def test_hop_by_hop_fields_are_refused(name):
    assert is_hop_by_hop(name)
    with pytest.raises(ValueError, match=f"^{name} is hop-by-hop: only the server may send it"):
        stream_headers(SSE, {name: "x"})


@pytest.mark.parametrize("name", ["Content-Length", "ETag"])
def test_fields_that_need_the_whole_body_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} needs the whole body beforehand"):
        stream_headers(SSE, {name: "5"})


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\n", "\r", "a\0b"])
def test_header_injection_is_refused(value):
    with pytest.raises(ValueError) as caught:
        stream_headers(SSE, {"X-Secret": value})
    assert "the value of X-Secret may not contain CR, LF or NUL, got '\\" in str(caught.value)
    assert "a" not in str(caught.value).partition("got")[2].replace("at position", "")


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "a\n", "é", "a\0"])
def test_name_that_is_none_is_refused(name):
    with pytest.raises(ValueError) as caught:
        stream_headers(SSE, {name: "x"})
    assert str(caught.value) == f"{name!r} is not the name of a header field"


def test_value_outside_latin_1_is_refused():
    with pytest.raises(ValueError, match="the value of X-A must be Latin-1"):
        stream_headers(SSE, {"X-A": "€"})


@pytest.mark.parametrize("name, value", [("X-A", 5), ("X-A", b"x"), (b"X-A", "x"), ("X-A", None)])
def test_fields_are_text(name, value):
    with pytest.raises(TypeError, match="a header field is two str"):
        stream_headers(SSE, [(name, value)])


@pytest.mark.parametrize(
    "headers, expected",
    [
        pytest.param([], OURS[1:], id="nothing"),
        pytest.param(
            [("Content-Type", "text/event-stream"), ("Connection", "keep-alive"), ("ETag", "x")],
            [("Content-Type", "text/event-stream")] + OURS[1:],
            id="old-recipe",
        ),
        pytest.param(
            [("cache-control", "no-cache"), ("X-Accel-Buffering", "no")],
            [("cache-control", "no-cache, no-transform"), ("X-Accel-Buffering", "no"), OURS[-1]],
            id="no-transform-is-added",
        ),
        pytest.param(
            [("Cache-Control", "private, NO-TRANSFORM"), ("x-accel-buffering", "yes")],
            [("Cache-Control", "private, NO-TRANSFORM"), ("x-accel-buffering", "yes"), OURS[-1]],
            id="what-is-said-stays",
        ),
        pytest.param(
            [("Cache-Control", " ")],
            [("Cache-Control", "no-cache, no-transform"), ("X-Accel-Buffering", "no"), OURS[-1]],
            id="empty-cache-control",
        ),
        pytest.param(
            [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")],
            [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")] + OURS[1:],
            id="name-twice",
        ),
    ],
)
def test_adopted_headers(headers, expected):
    before = list(headers)
    assert adopted_headers(headers) == expected
    assert headers == before


@pytest.mark.parametrize(
    "content_type, expected",
    [
        (None, ""),
        ("", ""),
        ("text/event-stream", "text/event-stream"),
        (" Text/Event-Stream ; charset=UTF-8; a=b", "text/event-stream"),
        (";charset=utf-8", ""),
    ],
)
def test_essence(content_type, expected):
    assert essence(content_type) == expected


#: Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110.
NOW = 784111777.0


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("1.5", 1.5),
        ("0.000000001", 1e-9),
        ("9999999999", 9999999999.0),
        ("99999999999", None),
        ("9" * 5000, None),
        ("-1", None),
        ("+1", None),
        ("1e3", None),
        ("1_0", None),
        (".5", None),
        ("1.", None),
        ("inf", None),
        ("nan", None),
        ("٣", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:47 GMT", 10.0),
        ("Sunday, 06-Nov-94 08:49:47 GMT", 10.0),
        ("Sun Nov  6 08:49:47 1994", 10.0),
        ("Sun, 06 Nov 1994 09:49:47 +0100", 10.0),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 1994 08:49:36 GMT", 0.0),
        ("Sun, 06 Nov 94 08:49:47 GMT", 10.0),
        ("Sun, 32 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Foo 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994", None),
        ("Sun, 00 Nov 1994 08:49:37 GMT", None),
        ("Tue, 29 Feb 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 24:00:00 GMT", None),
        ("Sun, 06 Nov 1994 08:60:00 GMT", None),
        ("Sun, 06 Nov 1994 08:49:61 GMT", None),
        ("Sun, 06 Nov 1994 23:59:60 GMT", 54623.0),
    ],
)
def test_parse_retry_after(value, expected):
    assert parse_retry_after(value, NOW) == expected


@given(st.text() | st.from_regex(r"\w{3}, \d+[ -]\w{3}[ -]\d+ \d+:\d+(:\d+)? ?(GMT|[+-]\d+)?"))
def test_parse_retry_after_never_raises(value):
    seconds = parse_retry_after(value, NOW)
    assert seconds is None or seconds >= 0
