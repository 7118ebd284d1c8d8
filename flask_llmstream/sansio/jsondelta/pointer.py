"""JSON Pointers: where in a value something is.

https://www.rfc-editor.org/rfc/rfc6901
"""

from __future__ import annotations

from typing import Any, List, Union

__all__ = ["child_of", "find", "key_in", "token_of"]

#: What cannot be followed. Says nothing of the path itself, which is text of the answer.
_NOWHERE = "the path of a delta leads nowhere in this document; was a delta left out?"


def token_of(key: str) -> str:
    """Return *key* as a part of a path."""
    # "~" first: the other way round, the "~" of "~1" would be escaped again.
    return key.replace("~", "~0").replace("/", "~1") if "~" in key or "/" in key else key


def key_in(parent: Any, token: str) -> Union[str, int]:
    """Return the key or index in *parent* that *token* stands for; it need not exist.

    :raises ValueError: *parent* has no such keys.
    """
    if isinstance(parent, dict):
        return token.replace("~1", "/").replace("~0", "~") if "~" in token else token
    if isinstance(parent, list):
        if token == "-":
            return len(parent)
        # "digits without leading zeros"; isdigit() alone also takes those of other scripts
        if token.isdigit() and token.isascii() and (token == "0" or token[0] != "0"):
            # More digits than any list has members: int() of them all would be slow.
            index = int(token[:18])
            if index <= len(parent):
                return index
    raise ValueError(_NOWHERE)


def child_of(parent: Any, token: str) -> Any:
    """Return what *token* stands for in *parent*.

    :raises ValueError: there is no such thing.
    """
    try:
        return parent[key_in(parent, token)]
    except LookupError:
        raise ValueError(_NOWHERE) from None


def find(document: Any, path: str) -> Any:
    """Return what is at *path*.

    :raises ValueError: nothing is.
    """
    tokens: List[str] = path.split("/")
    if tokens[0]:
        raise ValueError("the path of a delta must be empty or begin with '/' (RFC 6901)")
    for token in tokens[1:]:
        document = child_of(document, token)
    return document
