"""A stream read from the event log, as the source of another stream.

Decisions
    1. What the log has comes at full speed, many items in one write; then the log is waited for.
    2. A reader that comes too late for a part is told so once, and gets the rest.
    3. A stream that nobody writes any more ends with ``interrupted``, never with an endless wait; so
       does one whose log cannot be read for as long as a worker's lease.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Deque, Optional, Union

from flask_llmstream.current import running
from flask_llmstream.eventlog import EventLog
from flask_llmstream.eventlog.base import OPEN
from flask_llmstream.exceptions import LLMStreamError, LogUnavailable
from flask_llmstream.failures import Failure, describe_failure, failure_of_code
from flask_llmstream.journal import LEASE
from flask_llmstream.readers import Presence, Readers
from flask_llmstream.recording import Numbered
from flask_llmstream.runtime import current_runtime
from flask_llmstream.sansio.events import Event
from flask_llmstream.sansio.stored import Done, Failed, load

__all__ = ["LoggedSource", "Replayed", "describe_replayed"]

#: Seconds between looks at whether anybody still reads; also on threads, which nobody can wake.
_LOOKS = 1.0


class Replayed(LLMStreamError):
    """What the log has of the end of a stream is that it has failed.

    :param failed: as its first reader was told; ``None`` where its worker has gone without a word.
    """

    #: Each of a thousand readers hears of it; the log of the app has heard already.
    was_logged = True

    def __init__(self, failed: Optional[Failed]) -> None:
        super().__init__("its worker has gone" if failed is None else failed.code)
        self.failed = failed


class LoggedSource:
    """Iterates over what the log has of a stream behind *after*, and over what comes.

    :param log: the event log.
    :param stream: id of the stream.
    :param after: number of the last entry that the reader has got.
    :param presence: says that it is read. Defaults to one of its own.
    :raises Replayed: when it is iterated: the stream has failed.
    :raises LogUnavailable: when it is iterated: the log could not be read for too long.
    """

    def __init__(
        self, log: EventLog, stream: str, after: int, presence: Optional[Presence] = None
    ) -> None:
        self._log = log
        self._presence = presence or Readers(log).enter(stream)
        self._stream = stream
        self._after = after
        self._items: Deque[Any] = deque()
        self._closed = False
        self._caught_up = False
        self._away_since: Optional[float] = None
        #: How the stream has ended, once that is known.
        self.end: Union[Done, Failed, None] = None
        #: Whether there will never be more than what was read.
        self.over = False

    @property
    def stream(self) -> str:
        """Id of the stream that is read."""
        return self._stream

    @property
    def ready(self) -> int:
        """How many items can be had without waiting."""
        return len(self._items)

    def __iter__(self) -> LoggedSource:
        return self

    def __next__(self) -> Any:
        while not self._items:
            if self._closed:
                raise StopIteration
            if isinstance(self.end, Failed):
                raise Replayed(self.end)
            if self.end is not None:
                raise StopIteration
            self._try_to_read()
        return self._items.popleft()

    def close(self) -> None:
        """Read no more."""
        self._closed = True
        self._presence.leave()

    def _try_to_read(self) -> None:
        try:
            self._read()
        except LogUnavailable:
            runtime = current_runtime()
            if self._away_since is None:
                self._away_since = runtime.now()
            elif runtime.now() - self._away_since > LEASE:
                raise
            runtime.flag().wait(_LOOKS)
            self._look_up()
        else:
            self._away_since = None

    def _read(self) -> None:
        if self._caught_up:
            self._wait()
            if self._closed:
                return
        else:
            self._presence.attend()
        page = self._log.read(self._stream, self._after)
        if page is None:
            self.over = True
            raise Replayed(None)
        if page.entries and page.first > self._after + 1:
            self._items.append(Event({"lost": page.first - self._after - 1}, "resync"))
        for number, entry in enumerate(page.entries, page.first):
            self._after = number
            item = load(entry)
            if isinstance(item, (Done, Failed)):
                self.end, self.over = item, True
                return
            self._items.append(Numbered(number, item))
        if not page.entries and page.state != OPEN:
            self.over = True
            raise Replayed(None)
        self._caught_up = not page.entries

    def _wait(self) -> None:
        self._presence.attend()
        self._log.wait(self._stream, self._after, _LOOKS)
        self._look_up()

    def _look_up(self) -> None:
        """Read no more where nobody wants it any more."""
        stream = running()
        if stream is not None and stream.cancelled:
            self._closed = True


def describe_replayed(error: BaseException, expose: bool = False) -> Failure:
    """Return what the reader of a logged stream is told about *error*."""
    if isinstance(error, Replayed):
        if error.failed is None:
            return failure_of_code("interrupted", True)
        return Failure(502, error.failed.code, error.failed.message, error.failed.retryable)
    if isinstance(error, LogUnavailable):
        return failure_of_code("interrupted", True)
    return describe_failure(error, expose)
