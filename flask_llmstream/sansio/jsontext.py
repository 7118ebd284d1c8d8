"""JSON as it goes over the wire: compact, UTF-8 rather than ``\\u`` escapes, and always valid.

Decisions: 1. NaN and Infinity are refused: ``json`` writes them as words that no browser parses.
2. A lone surrogate is written as its escape ``\\udXXX``: models emit halves of a pair in two
deltas, UTF-8 has no bytes for one, and a browser that appends both texts gets the character.
3. So are the characters at which any language's idea of a line ends. Python's ``str.splitlines()``,
and with it ``iter_lines()`` of httpx and of ``requests`` (``decode_unicode=True``), cuts at U+0085,
U+2028 and U+2029: for such a reader a model that writes one could begin a line of its own.
"""

from __future__ import annotations

from json.encoder import JSONEncoder, encode_basestring
from typing import Any

__all__ = ["dump", "dump_bytes", "quote", "to_utf8"]

#: Write one ``str`` as a JSON string (C code); the result still holds lone surrogates as they are.
quote = encode_basestring

_encode = JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dump(value: Any) -> str:
    """Write *value* as one line of JSON, lone surrogates as they are; see :func:`to_utf8`.

    :raises ValueError: for NaN, Infinity or a value that contains itself.
    :raises TypeError: for what JSON has no form for, such as a ``datetime``.
    """
    try:
        return _encode(value)
    except ValueError as error:
        if "Out of range float" in str(error):
            raise ValueError(
                "NaN and Infinity cannot be written as JSON, no browser would parse them;"
                " send None or a string instead"
            ) from error
        raise ValueError(f"cannot be written as JSON: {error}") from error


def to_utf8(text: str) -> bytes:
    """Encode JSON *text*, escaping what UTF-8 has no bytes for, and what ends a line somewhere."""
    if text.isascii():
        return text.encode()
    # They can only stand inside a JSON string. All control characters of ASCII are escaped already.
    if "\u2028" in text or "\u2029" in text or "\x85" in text:
        text = text.replace("\x85", "\\u0085").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    # So can a surrogate, and there this handler's "\udXXX" is just the escape that JSON wants.
    return text.encode("utf-8", "backslashreplace")


def dump_bytes(value: Any) -> bytes:
    """Write *value* as one line of JSON in UTF-8; errors as :func:`dump`."""
    return to_utf8(dump(value))
