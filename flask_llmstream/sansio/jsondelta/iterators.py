"""Iterables of tokens in, iterators of deltas or snapshots out, for any source.

Decisions
    1. Objects, not generators: their ``ready`` and ``close()`` are the source's, so that bursts
       leave in one write, and a client that leaves ends the LLM call, as if the source were read
       without them.
    2. What the source has ready is read at once. One token may make no delta, or many: how many
       there are can only be said after reading.
    3. What came before a fault, of the text or of the source, is handed out before it is raised.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Generic, Iterable, Iterator, List, Optional, TypeVar

from flask_llmstream.sansio.events import JsonDelta, TextDelta
from flask_llmstream.sansio.jsondelta.document import JsonDocument
from flask_llmstream.sansio.jsondelta.options import JsonOptions
from flask_llmstream.sansio.jsondelta.reader import JsonReader

__all__ = ["JsonDeltas", "Snapshot", "Snapshots", "json_deltas", "snapshots"]

T = TypeVar("T")


class _Tokens(Generic[T]):
    """What both iterators share: a source, a reader, and what waits to be handed out."""

    def __init__(self, tokens: Iterable[Any], options: JsonOptions) -> None:
        self._source: Any = tokens
        self._tells_ready = hasattr(tokens, "ready")
        self._iterator: Optional[Iterator[Any]] = None
        # The same while it runs, where nothing is said of what is ready.
        self._lone: Optional[Iterator[Any]] = None
        self._reader = JsonReader(options)
        self._pending: Deque[T] = deque()
        self._failure: Optional[Exception] = None
        self._ended = False

    @property
    def ready(self) -> int:
        """How many can be had without waiting."""
        return len(self._pending)

    def close(self) -> None:
        """End it, and close the source if it can be closed; may be called more than once."""
        self._ended = True
        self._lone = None
        self._pending.clear()
        self._failure = None
        opened = [] if self._iterator is self._source else [self._iterator]
        for closable in (*opened, self._source):
            close = getattr(closable, "close", None)
            if close is not None:
                close()

    def _take(self, deltas: List[JsonDelta]) -> None:
        """Queue what one token has made."""
        raise NotImplementedError

    def _pass(self, item: Any) -> None:
        """Queue, or leave out, what is not text."""
        raise NotImplementedError

    def _next(self) -> T:
        while not self._pending:
            failure, self._failure = self._failure, None
            if failure is not None:
                self._ended = True
                self._lone = None
                try:
                    raise failure
                finally:
                    del failure  # its traceback holds this frame
            if self._ended:
                raise StopIteration
            self._pull()
        return self._pending.popleft()

    def _pull(self) -> None:
        """Wait for an item of the source; take it, and all that are ready with it."""
        iterator = self._iterator
        if iterator is None:
            iterator = self._iterator = iter(self._source)
            if not self._tells_ready:
                self._lone = iterator
        self._read(next(iterator, self))
        if not self._tells_ready:
            return
        ready = self._source.ready
        for _ in range(ready if isinstance(ready, int) else 0):
            if self._failure is not None or self._ended:
                break
            try:
                item = next(iterator, self)
            except Exception as exc:
                self._failure = exc
                break
            self._read(item)

    def _read(self, item: Any) -> None:
        """Take *item*; this object itself stands for the end."""
        if item.__class__ is TextDelta:
            deltas, self._failure = self._reader.feed(item.text)
        elif isinstance(item, str):
            deltas, self._failure = self._reader.feed(item)
        elif item is not self:
            self._pass(item)
            return
        elif self._ended:
            return  # by close(): the text is not cut, it is not wanted
        else:
            self._ended = True
            self._lone = None
            deltas, self._failure = self._reader.flush()
        if deltas:
            self._take(deltas)


class JsonDeltas(_Tokens[Any]):
    """The changes of a JSON value that is still being written; see :func:`json_deltas`."""

    def __iter__(self) -> JsonDeltas:
        return self

    def __next__(self) -> Any:
        if self._pending:
            return self._pending.popleft()
        if self._lone is None:
            return self._next()  # which raises what there is to raise
        # As _next(), for what comes most often: a piece of text alone that makes one change.
        item = next(self._lone, self)
        if item.__class__ is str or item.__class__ is TextDelta:
            text = item if item.__class__ is str else item.text  # type: ignore[union-attr]
            deltas, self._failure = self._reader.feed(text)
            if len(deltas) == 1 and self._failure is None:
                return deltas[0]
            self._pending.extend(deltas)
        else:
            self._read(item)
        return self._next()

    def _take(self, deltas: List[JsonDelta]) -> None:
        self._pending.extend(deltas)

    def _pass(self, item: Any) -> None:
        self._pending.append(item)


class Snapshot:
    """A JSON value that is still being written, as it is after one token; see :func:`snapshots`."""

    __slots__ = ("_document", "deltas")

    def __init__(self, document: JsonDocument, deltas: List[JsonDelta]) -> None:
        self._document = document
        #: What the token has changed.
        self.deltas = deltas

    @property
    def value(self) -> Any:
        """The value so far; put together when it is looked at.

        It is the value itself, not a copy: it grows with the next snapshot.
        """
        return self._document.value

    @property
    def complete(self) -> bool:
        """Whether the value is final."""
        return self._document.complete


class Snapshots(_Tokens[List[JsonDelta]]):
    """The states of a JSON value that is still being written; see :func:`snapshots`."""

    def __init__(self, tokens: Iterable[Any], options: JsonOptions) -> None:
        super().__init__(tokens, options)
        self._document = JsonDocument()

    def __iter__(self) -> Snapshots:
        return self

    def __next__(self) -> Snapshot:
        deltas = self._next()
        # Not before: what is read ahead must not show yet.
        for delta in deltas:
            self._document.apply(delta)
        return Snapshot(self._document, deltas)

    def _take(self, deltas: List[JsonDelta]) -> None:
        self._pending.append(deltas)

    def _pass(self, item: Any) -> None:
        pass


def json_deltas(tokens: Iterable[Any], **options: Any) -> JsonDeltas:
    """Yield the changes of the JSON value that *tokens* are writing, as soon as they are known.

    ::

        @stream
        def form():
            yield from json_deltas(openai_chat(model, messages))

    What is no text (reasoning, usage, the finish reason) passes through in its place; prose around
    the JSON does not. See :class:`~flask_llmstream.sansio.jsondelta.options.JsonOptions` for the
    dialects that are read, and for limits.

    :param tokens: text, as ``str`` or :class:`~flask_llmstream.sansio.events.TextDelta`.
    :param options: those of ``JsonOptions``, by name.
    :returns: an iterator of :class:`~flask_llmstream.sansio.events.JsonDelta` and what passes
        through; with ``close()`` and ``ready``, as the source has them.
    :raises ValueError: an option makes no sense.
    :raises DecodeError: when it is iterated: the text breaks the rules, with the position.
    :raises JsonLimitExceeded: when it is iterated: the text goes past a limit.
    """
    return JsonDeltas(tokens, JsonOptions(**options))


def snapshots(tokens: Iterable[Any], **options: Any) -> Snapshots:
    """Yield a :class:`Snapshot` for each token that changes the JSON value that *tokens* write.

    ::

        for snapshot in snapshots(openai_chat(model, messages)):
            show(snapshot.value)

    A snapshot costs next to nothing until its ``value`` is looked at; then it costs what the text
    costs that is growing just now. What is no text is left out.

    :param tokens: as for :func:`json_deltas`.
    :param options: as for :func:`json_deltas`.
    :raises ValueError: an option makes no sense.
    :raises DecodeError: when it is iterated, as :func:`json_deltas`.
    :raises JsonLimitExceeded: when it is iterated, as :func:`json_deltas`.
    """
    return Snapshots(tokens, JsonOptions(**options))
