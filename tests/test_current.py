"""Which stream runs here: one per thread or greenlet, and none elsewhere."""

from __future__ import annotations

import copy
import threading
from typing import Any, Iterator, List

import pytest
from serving import Served

from flask_llmstream import current, current_stream
from flask_llmstream.current import running
from flask_llmstream.runtime import current_runtime


def test_nothing_runs_outside_of_a_stream() -> None:
    assert running() is None and not current_stream
    assert repr(current_stream) == "<current_stream None>"
    for name in ("id", "cancelled", "send", "bind", "no_such_thing"):
        with pytest.raises(RuntimeError, match=f"current_stream.{name} was used where no stream"):
            getattr(current_stream, name)


def test_special_attributes_do_not_ask_for_a_stream() -> None:
    assert not hasattr(current_stream, "__len__")
    assert copy.copy(current_stream) is not None


def test_stream_is_known_in_its_own_thread_only() -> None:
    seen: List[Any] = []

    def source() -> Iterator[str]:
        seen.append((running(), bool(current_stream), current_stream.id, repr(current_stream)))
        other = threading.Thread(target=lambda: seen.append(running()))
        other.start()
        other.join()
        yield current_stream.id

    with Served(source()) as served:
        assert served.stream.id.encode() in served.read()
    stream = served.stream
    assert seen == [(stream, True, stream.id, f"<current_stream <Stream {stream.id} running>>"), None]
    assert current._running == {}


def test_stream_is_known_in_its_callbacks_and_not_afterwards() -> None:
    seen: List[Any] = []

    def source() -> Iterator[str]:
        current_stream.on_end(lambda end: seen.append(running()))
        yield "a"

    with Served(source()) as served:
        served.read()
    assert seen == [served.stream] and current._running == {}


def test_place_is_given_back_only_by_who_holds_it() -> None:
    ident = current_runtime().ident()
    first, second = object(), object()
    current.enter(ident, first)
    current.enter(ident, second)
    current.leave(ident, first)
    assert running() is second
    current.leave(ident, second)
    current.leave(ident, second)
    assert running() is None
