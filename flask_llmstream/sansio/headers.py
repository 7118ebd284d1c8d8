"""Header fields of a streaming response, and of the answers that it is made from.

Decisions: 1. ``Connection`` and its kin are refused rather than dropped: they belong to the
server (PEP 3333), some servers answer 500 to them, and every old recipe for streaming sets one.
2. ``no-transform`` stands in ``Cache-Control`` because compressing hops hold back what they compress.
3. ``nosniff``: to look for HTML in it, Chromium holds the first KiB of ``text/plain`` back from an
XMLHttpRequest, which is all of a short answer.
"""

from __future__ import annotations

import re
from calendar import monthrange, timegm
from email.utils import parsedate_tz
from typing import Iterable, List, Mapping, Optional, Tuple, Union

__all__ = [
    "Headers", "adopted_headers", "check_passed", "essence", "may_pass", "parse_retry_after",
    "stream_headers",
]

#: What callers may pass: a mapping, or pairs where a name may come twice.
Headers = Union[Mapping[str, str], Iterable[Tuple[str, str]]]

_CACHE_CONTROL = "no-cache, no-transform"
_OURS = (
    ("Cache-Control", _CACHE_CONTROL), ("X-Accel-Buffering", "no"), ("X-Content-Type-Options", "nosniff"),
)

#: https://www.rfc-editor.org/rfc/rfc9110#section-7.6.1 and the names of older ones.
_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",  # codespell:ignore te
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
    )
)
#: Both need a body that is known before it is sent.
_NEEDS_WHOLE_BODY = frozenset(("content-length", "etag"))

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN_IN_VALUE = re.compile("[\r\n\0]")
#: Latin-1 without control characters; servers answer the others with 500, or send them.
_FOREIGN = re.compile("[\t -~\xa0-\xff]*")
# Ten digits are three centuries; "inf", "1e9" and signs are not what RFC 9110 means.
_SECONDS = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?")


def stream_headers(
    content_type: str, extra: Optional[Headers] = None, *, identity: bool = False
) -> List[Tuple[str, str]]:
    """Return the header fields of a stream.

    :param content_type: of the stream's wire format.
    :param extra: fields of the caller's; where a name is one of ours, theirs count.
    :param identity: add ``Content-Encoding: identity``, which keeps compressing extensions off
        types that they would otherwise hold back. Defaults to ``False``.
    :raises ValueError: for a field that a stream cannot have, or that would break the message.
    :raises TypeError: for a name or value that is not a ``str``.
    """
    ours = [("Content-Type", content_type), *_OURS]
    if identity:
        ours.append(("Content-Encoding", "identity"))
    if extra is None:
        return ours
    given = _checked(extra)
    names = {name.lower() for name, _ in given}
    return [field for field in ours if field[0].lower() not in names] + given


def adopted_headers(headers: Iterable[Tuple[str, str]]) -> List[Tuple[str, str]]:
    """Return the fields of a route that streamed before we came, with what its stream lacks.

    Hop-by-hop fields and ``ETag`` go: the routes that we adopt were written after recipes, and
    must not start to fail. All else stays as the route has set it.
    """
    kept = []
    missing = {field[0].lower(): field for field in _OURS}
    for name, value in headers:
        lower = name.lower()
        if lower in _HOP_BY_HOP or lower in _NEEDS_WHOLE_BODY:
            continue
        missing.pop(lower, None)
        if lower == "cache-control" and "no-transform" not in value.lower():
            value = f"{value}, no-transform" if value.strip() else _CACHE_CONTROL
        kept.append((name, value))
    return kept + list(missing.values())


def may_pass(value: str) -> bool:
    """Say whether *value*, which somebody else has sent in a header field, may be sent on in one."""
    return _FOREIGN.fullmatch(value) is not None


def check_passed(names: Iterable[str]) -> List[str]:
    """Return *names* of header fields of somebody else's answer in lower case.

    :raises ValueError: for one that says how that answer's body is sent, and so nothing true of ours.
    """
    passed = [name.lower() for name in names]
    for name in passed:
        if name in _HOP_BY_HOP or name in _NEEDS_WHOLE_BODY or name == "content-encoding":
            raise ValueError(
                f"{name} of another answer cannot be passed on: it says how that body was sent; leave it out"
            )
    return passed


def essence(content_type: Optional[str]) -> str:
    """Return the media type without its parameters, in lower case; ``""`` for ``None``."""
    return (content_type or "").partition(";")[0].strip().lower()


def parse_retry_after(value: Optional[str], now: float) -> Optional[float]:
    """Return how many seconds a ``Retry-After`` asks to wait, ``None`` where it says nothing.

    Takes seconds, with a fraction too as LLM providers send it, and all three forms of HTTP-date.

    :param value: the field as received.
    :param now: the time, in seconds since 1970. A date that has passed gives 0.
    """
    text = (value or "").strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    try:
        moment = _parse_http_date(text)
    except (IndexError, OverflowError, TypeError, ValueError):
        # What email.utils and calendar make of something that only looks like a date.
        return None
    return max(0.0, moment - now)


def _parse_http_date(text: str) -> int:
    parsed = parsedate_tz(text)
    if parsed is None:
        raise ValueError("not a date")
    year, month, day, hour, minute, second = parsed[:6]
    # timegm() would take the 32nd for the 1st of the next month.
    if not (1 <= day <= monthrange(year, month)[1] and hour <= 23 and minute <= 59 and second <= 60):
        raise ValueError("no such day or time")
    # An HTTP-date is always GMT, also in the form that does not say so.
    return timegm((year, month, day, hour, minute, second, 0, 0, 0)) - (parsed[9] or 0)


def _checked(headers: Headers) -> List[Tuple[str, str]]:
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    return [_check(name, value) for name, value in pairs]


def _check(name: object, value: object) -> Tuple[str, str]:
    if not isinstance(name, str) or not isinstance(value, str):
        raise TypeError(f"a header field is two str, got {name!r} and a {type(value).__name__}")
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header field")
    lower = name.lower()
    if lower in _HOP_BY_HOP:
        raise ValueError(
            f"{name} is hop-by-hop: only the server may send it (PEP 3333); leave it out"
        )
    if lower in _NEEDS_WHOLE_BODY:
        raise ValueError(f"{name} needs the whole body beforehand, a stream has none; leave it out")
    # The value may be a secret, so it is not shown.
    found = _FORBIDDEN_IN_VALUE.search(value)
    if found:
        raise ValueError(
            f"the value of {name} may not contain CR, LF or NUL, got {found.group()!r} at"
            f" position {found.start()}"
        )
    try:
        value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(
            f"the value of {name} must be Latin-1 (PEP 3333); percent-encode it"
        ) from None
    return name, value
