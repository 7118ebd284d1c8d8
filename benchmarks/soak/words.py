"""What the upstream says in a life, known to all processes: its text and the script that asks for it."""

from __future__ import annotations

from typing import Any, Dict
from urllib.parse import parse_qs, urlencode

__all__ = ["read_script", "script", "text", "word"]

#: What must come through unchanged, whatever it is cut and framed by.
_PIECES = ["{} ", "é{} ", "\n{}", '"{}\\ ', "😀{} ", "data: {} ", "{}\r\n"]


def word(key: str, number: int) -> str:
    """Return one piece of the answer called *key*."""
    return _PIECES[number % len(_PIECES)].format(f"{key}.{number}")


def text(key: str, count: int) -> str:
    """Return the first *count* pieces."""
    return "".join(word(key, number) for number in range(count))


def script(key: str, count: int, pause: float, **more: Any) -> str:
    """Return the name of a model that says *count* pieces, one each *pause* seconds.

    :param more: ``hold``, seconds before its head; ``end``, how it ends, see
        :mod:`benchmarks.soak.upstream`; ``close=1``, the connection is not used again.
    """
    return urlencode(dict(more, key=key, count=count, pause=round(pause, 4)))


def read_script(model: str) -> Dict[str, str]:
    """Return what :func:`script` was called with."""
    return {name: values[0] for name, values in parse_qs(model).items()}
