"""Objects that do more than others of their kind, by their class: the others need not even ask."""

from __future__ import annotations

from typing import Any, Dict, Tuple, Type

__all__ = ["with_mixin"]

_classes: Dict[Tuple[type, type], Type[Any]] = {}


def with_mixin(mixin: type, base: type) -> Type[Any]:
    """Return *base* with *mixin* in front of it, made once for each pair.

    It has no attributes of its own, so an object may become one of it, and stays as small as it is.
    """
    found = _classes.get((mixin, base))
    if found is None:
        name = mixin.__name__.replace("ResponseMixin", "")
        if base.__name__.endswith("Stream"):
            name = name.replace("Stream", "")
        name += base.__name__
        found = _classes[mixin, base] = type(name, (mixin, base), {"__slots__": ()})
    return found
