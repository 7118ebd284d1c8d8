"""What tells one request from another that calls itself the same.

Decisions
    1. A view that has not read its body yet must find it as it was, by whatever way it reads it later:
       from ``request.json``, from a form, or from ``request.stream``.
    2. A body too large to be held is compared by its length. So is one that somebody else has read.
    3. Of a form the fields count and not the bytes: a browser draws a new boundary each time.
"""

from __future__ import annotations

import hashlib
import io
from typing import Any, Iterator

from flask import request

__all__ = ["fingerprint"]

#: Bytes of a body, and of each file of a form, that are looked at.
_MOST = 1 << 20
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


def fingerprint() -> str:
    """Return 64 hexadecimal digits that another query or body than this request's does not have."""
    digest = hashlib.sha256()
    for part in _parts():
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.hexdigest()


def _parts() -> Iterator[bytes]:
    yield request.query_string
    yield request.mimetype.encode()
    if _may_be_read():
        _read_and_put_back()
    # What the view has parsed is there already; what was just read is parsed from memory.
    seen = vars(request)
    data = getattr(request, "_cached_data", None)
    if request.mimetype in _FORMS and (data or "form" in seen):
        yield from _form()
    elif data is not None:
        yield data
    else:
        yield str(request.content_length).encode()


def _may_be_read() -> bool:
    """Whether nobody has begun to read the body, and it can be held."""
    seen = vars(request)
    if "stream" in seen or "form" in seen or getattr(request, "_cached_data", None) is not None:
        return False
    length = request.content_length
    return length is not None and length <= _MOST


def _read_and_put_back() -> None:
    """Read the body, for whoever asks Werkzeug for it, and for whoever reads it as a file."""
    request.environ["wsgi.input"] = io.BytesIO(request.get_data(cache=True))
    vars(request).pop("stream", None)


def _form() -> Iterator[bytes]:
    seen = vars(request)
    parsed = "form" in seen
    for name, value in request.form.items(multi=True):
        yield from (_bytes(name), _bytes(value))
    for name, file in request.files.items(multi=True):
        yield from (_bytes(name), _bytes(str(file.filename)))
        yield from _beginning(file.stream)
    if not parsed:
        # Flask closes the files of a request that has been answered, if they are there by then.
        request.close()
        for name in ("stream", "form", "files"):
            seen.pop(name, None)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _beginning(file: Any) -> Iterator[bytes]:
    """Yield the length of *file* and what it begins with, and leave it where it was."""
    place = file.tell()
    yield str(file.seek(0, io.SEEK_END)).encode()
    file.seek(0)
    yield file.read(_MOST)
    file.seek(place)
