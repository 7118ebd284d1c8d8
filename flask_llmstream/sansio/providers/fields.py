"""Fields of a provider's JSON, read with care.

Decisions
    1. What is left out or ``null`` is empty. What is there in another form than the format knows is
       an error where it could be a part of the answer, and nothing where it could not.
    2. An error names the kind of what was found only: the value may be a part of an answer.
"""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from flask_llmstream.exceptions import DecodeError
from flask_llmstream.sansio.jsontext import dump

__all__ = ["arguments_of", "count", "kind_of", "list_in", "name_of", "object_of", "text_in"]


def count(fields: Any, key: str) -> Optional[int]:
    """Return the whole number under *key*, ``None`` where there is none."""
    value = fields.get(key) if isinstance(fields, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def name_of(value: Any) -> Optional[str]:
    """Return *value* if it is a text and not empty."""
    return value if value and isinstance(value, str) else None


def text_in(fields: Dict[str, Any], key: str) -> str:
    """Return the text under *key*.

    :raises DecodeError: there is something else.
    """
    value = fields.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DecodeError(f"{key} must be a string, got {kind_of(value)}")
    return value


def list_in(fields: Dict[str, Any], key: str) -> List[Any]:
    """Return the array under *key*.

    :raises DecodeError: there is something else.
    """
    value = fields.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise DecodeError(f"{key} must be an array, got {kind_of(value)}")
    return value


def object_of(value: Any, what: str) -> Dict[str, Any]:
    """Return *value*, which must be an object.

    :param what: what it is called in the error.
    :raises DecodeError: it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DecodeError(f"{what} must be an object, got {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    """Return the name of the type of *value*, for an error that must not quote it."""
    return type(value).__name__


def arguments_of(value: Any) -> str:
    """Return the arguments of a tool call that come as a JSON value as the text of that.

    A text is taken for JSON already. No arguments are an empty object.

    :raises DecodeError: *value* has no form in JSON.
    """
    if isinstance(value, str):
        return value
    try:
        return dump({} if value is None else value)
    except (TypeError, ValueError, RecursionError):
        # NaN, which Python's parser lets pass, or what an SDK made of a date. Without the error,
        # which may quote it.
        pass
    raise DecodeError("the arguments of a tool call cannot be written as JSON")
