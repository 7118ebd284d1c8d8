"""Several sources in one response, each in a greenlet or thread of its own.

The work is done by :mod:`flask_llmstream.gathering`; here is what Flask adds to it.

Decisions
    1. The sources see the very objects of the request (``request``, ``g``, ``session``), not copies:
       Flask's own ``copy_current_request_context`` makes a new ``g``, and tears it down with each.
       So nothing is torn down before all of them have ended.
    2. From Flask 2.2 on these are context variables, and a copy of the context is all it takes.
       Older ones keep stacks, on which they are put for as long as the source runs.
"""

from __future__ import annotations

import contextvars
from typing import Any, Callable, List, Mapping

import flask.globals

from flask_llmstream.gathering import Gathering
from flask_llmstream.responses import check_source
from flask_llmstream.sansio.channels import check_names

__all__ = ["multiplex"]


def multiplex(sources: Mapping[str, Any], *, max_pending: int = 32) -> Gathering:
    """Run several sources at the same time; return an iterator over what they yield, as it comes.

    For :func:`~flask_llmstream.stream_response`, or a view under :func:`~flask_llmstream.stream`. Every
    item goes out with the name of its channel, in the formats that can say it. Each channel ends in
    one ``done`` or ``failed`` of its own; one that fails does not end the others. The stream ends in
    ``done`` when all channels have ended, and in ``failed`` where all have failed. Who ends the
    stream ends them all.

    Inside of a source ``request``, ``g``, ``session`` and ``current_app`` are those of the request, and
    ``current_stream`` is its stream. What is sent by it belongs to the channel, and ``shield()``
    protects this one source.

    :param sources: channel's name to what :func:`~flask_llmstream.stream_response` takes. At most 255;
        formats count them in this order.
    :param max_pending: how many items of a channel may wait until they are sent; the source waits
        where there are more. Defaults to 32.
    :raises TypeError: where *sources* is no mapping of names to iterables.
    :raises ValueError: for a name or number that cannot be.
    """
    if not isinstance(sources, Mapping):
        raise TypeError(f"expected a mapping of channel names to sources, got {type(sources).__name__}")
    check_names(sources)
    for name, source in sources.items():
        try:
            check_source(source)
        except TypeError as exc:
            raise TypeError(f"channel {name!r}: {exc}") from None
        if isinstance(source, Gathering):
            raise TypeError(f"channel {name!r} is a multiplex() itself; name all channels in one")
    if not isinstance(max_pending, int) or max_pending < 1:
        raise ValueError(f"max_pending is a number of items, at least 1, got {max_pending!r}")
    return Gathering(sources, max_pending, _carry)


def _carry(run: Callable[[], None]) -> Callable[[], None]:
    """Return what calls *run* with the contexts in which this is called."""
    if hasattr(flask.globals, "_cv_app"):
        # One copy for each: none can be entered twice at the same time.
        context = contextvars.copy_context()
        return lambda: context.run(run)
    stacks: List[Any] = [getattr(flask.globals, name) for name in ("_app_ctx_stack", "_request_ctx_stack")]
    tops = [stack.top for stack in stacks]

    def run_there() -> None:
        for stack, top in zip(stacks, tops):
            if top is not None:
                stack.push(top)
        try:
            run()
        finally:
            for stack, top in zip(stacks, tops):
                # Not the context's own pop(), which would tear it down under the others.
                if top is not None:
                    stack.pop()

    return run_there
