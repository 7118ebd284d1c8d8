"""Events to the bytes of an event stream; :class:`SSEDecoder` is the way back.

https://html.spec.whatwg.org/multipage/server-sent-events.html

Decisions: what goes out is narrower than the specification, because clients are.
1. A comment is never followed by a blank line: several SDKs take a blank line behind an id for
an event without data, and try to parse that as JSON.
2. An event always has data; ``id`` and ``retry`` never stand alone, many clients lose them there.
3. ``id`` is printable ASCII: it comes back in a request header.
4. No event is named ``error`` or ``open``: an EventSource fires those for its own connection.
5. What cannot be said is refused, not repaired: a silently changed id resumes at the wrong place.
"""

from __future__ import annotations

import re

from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.jsontext import dump_bytes
from flask_llmstream.sansio.sse_decoder import SSEDecoder
from flask_llmstream.sansio.utf8 import plain_utf8

__all__ = ["HEARTBEAT", "SSEDecoder", "encode_comment", "encode_event", "opening"]

#: Keeps a silent connection alive. May stand between any two events.
HEARTBEAT = b": hb\n"

# The specification knows these three; str.splitlines() would also cut at U+2028, VT, FF and others.
_LINE_END = re.compile("\r\n|\r|\n")
_PRINTABLE_ASCII = re.compile("[ -~]*")
_FORBIDDEN_IN_NAME = re.compile("[\r\n\0\ud800-\udfff]")
_RESERVED_NAMES = ("error", "open")
#: Some readers give up on longer lines; 64 KiB is a common limit, this stays far below.
_PADDING_LINE = b":" + b" " * 1022 + b"\n"


def encode_event(event: Event) -> bytes:
    """Write *event* with its blank line. Data that is not a ``str`` is written as JSON.

    Data of several lines becomes as many ``data`` lines; a client puts them together with LF,
    whichever of CRLF, CR and LF was between them.

    :raises ValueError: for a field that cannot be sent as it is; the message says why.
    :raises TypeError: for a field of a wrong type, or data that JSON has no form for.
    """
    head = b""
    if event.event is not None or event.id is not None or event.retry is not None:
        head = _encode_head(event)
    data = event.data
    if not isinstance(data, str):
        return b"%bdata: %b\n\n" % (head, dump_bytes(data))
    if "\0" in data:
        raise ValueError(
            "data may not contain NUL, some clients cut it there; send it as JSON: any data"
            " that is not a str is"
        )
    if "\n" in data or "\r" in data:
        data = _LINE_END.sub("\ndata: ", data)
    return b"%bdata: %b\n\n" % (head, plain_utf8(data))


def encode_comment(text: str) -> bytes:
    """Write *text* as comment lines, one for each of its lines, and no blank line behind them.

    :raises ValueError: for NUL.
    """
    if "\0" in text:
        raise ValueError("a comment may not contain NUL")
    lines = _LINE_END.split(text)
    return plain_utf8("".join(f": {line}\n" if line else ":\n" for line in lines))


def opening(padding: int) -> bytes:
    """Write the comment that opens a stream, so that a client hears of it before the first event.

    :param padding: length in bytes that it has at least; for clients and hops that hold back the
        first bytes of a body. 0 for none.
    """
    first = b": open\n"
    lines = -(-max(0, padding - len(first)) // len(_PADDING_LINE))
    return first + _PADDING_LINE * lines


def _encode_head(event: Event) -> bytes:
    """Write the fields that stand above the data."""
    head = ""
    name, id, retry = event.event, event.id, event.retry
    if name is not None:
        found = _FORBIDDEN_IN_NAME.search(_expect_str("event", name))
        if found:
            raise ValueError(
                f"event may not contain CR, LF, NUL or a lone surrogate, got {name!r}"
            )
        if name in _RESERVED_NAMES:
            raise ValueError(
                f"an event may not be named {name!r}: an EventSource fires that name for its own"
                " connection; choose another name"
            )
        if name:
            head = f"event: {name}\n"
    if id is not None:
        if not _PRINTABLE_ASCII.fullmatch(_expect_str("id", id)) or id != id.strip(" "):
            raise ValueError(
                "id must be printable ASCII without CR, LF or NUL and without outer spaces,"
                f" because clients send it back in a header, got {id!r}"
            )
        head += f"id: {id}\n"
    if retry is not None:
        if isinstance(retry, bool) or not isinstance(retry, int):
            raise TypeError(f"retry must be an int, got {retry!r}")
        if retry < 0:
            raise ValueError(f"retry must be 0 or more milliseconds, got {retry!r}")
        head += f"retry: {retry}\n"
    return head.encode()


def _expect_str(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{field} must be a str, got {value!r}")
    return value
