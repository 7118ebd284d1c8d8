"""What the live tests ask the apps beside this file, and how they read the answers."""

from __future__ import annotations

import contextlib
import itertools
import json
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional
from urllib.parse import urlencode

from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.sse import SSEDecoder
from flask_llmstream.testing import LiveServer, StreamReader, wait_until

APPS = Path(__file__).with_name("apps")

#: Coverage off in the servers of tests that interrupt many threads: CPython 3.11 spins under a tracer,
#: holding the interpreter, while an exception is pending in any of them.
UNTRACED: Dict[str, Optional[str]] = {"COVERAGE_PROCESS_START": None, "COVERAGE_PROCESS_CONFIG": None}

_numbers = itertools.count(1)


def new_key() -> str:
    """Return a key for the notes of one generator."""
    return f"k{next(_numbers)}"


def ask(server: LiveServer, path: str) -> Any:
    """Return the JSON that *path* answers with."""
    reader = server.request(path)
    with contextlib.closing(reader.sock):
        assert reader.status == 200, reader.read()
        return reader.json()


def note_when(server: LiveServer, key: str, is_there: Callable[[Dict[str, Any]], Any]) -> Dict[str, Any]:
    """Return what was noted under *key*, once *is_there* of it is true."""
    last: Dict[str, Any] = {}

    def look() -> bool:
        last.clear()
        last.update(ask(server, f"/notes/{key}"))
        return bool(is_there(last))

    wait_until(look, 10.0, lambda: f"the notes on {key}, which are {last}; the log:\n{server.log()}")
    return last


def ended(server: LiveServer, key: str) -> Dict[str, Any]:
    """Return what was noted under *key*, once its stream is over."""
    return note_when(server, key, lambda note: note["ends"])


def events_of(data: bytes) -> List[Event]:
    """Return the events in *data*."""
    return SSEDecoder().feed(data)


def text_of(data: bytes) -> str:
    """Return the text of the events in *data*."""
    return "".join(json.loads(event.data)["text"] for event in events_of(data) if event.event is None)


def log_lines(server: LiveServer, stream_id: str) -> List[str]:
    """Return the lines of the log that name the stream."""
    return [line for line in server.log().splitlines() if stream_id in line]


@contextlib.contextmanager
def leaving(reader: StreamReader) -> Iterator[StreamReader]:
    """Close the connection at the end of the block, if that was not done before."""
    with contextlib.closing(reader.sock):
        yield reader


def produce(
    server: LiveServer, name: str, key: str, options: Optional[Dict[str, Any]] = None, **arguments: Any
) -> StreamReader:
    """Ask for the generator *name* of ``apps/producers.py``.

    :param options: what ``stream_response`` gets.
    :param arguments: what the generator gets, as the query of its request.
    """
    return server.request(address(name, key, options, **arguments))


def address(name: str, key: str, options: Optional[Dict[str, Any]] = None, **arguments: Any) -> str:
    """Return the path that :func:`produce` asks for."""
    query = dict(arguments, key=key, options=json.dumps(options or {}))
    return f"/produce/{name}?{urlencode(query)}"
