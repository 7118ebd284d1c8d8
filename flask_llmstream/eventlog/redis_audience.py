"""To whom the news of a stream are pushed: nobody, as a rule, and from the moment that somebody reads it.

A reader says that it reads, reads, subscribes, and reads again. Whatever is written until then it finds
in the log. What is written later is pushed, if the process that writes has heard of it; if it has not, it
does so in the next moment, and pushes the last number then: so it looks whether it has heard of a reader
after it has written something in silence, and whether it has written something when it hears of one. One
of the two sees the other.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Callable, Deque, List, Mapping, Sequence

from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import Runtime

__all__ = ["Audience"]

#: How much longer than it has promised a reader is taken to be there: it may be late to say so again, and
#: then it would have to be told of what it has missed.
_LENIENCY = 2.0


class Audience:
    """Those who read, elsewhere, what this process writes.

    :param writers: what is known of the streams that were created here; see ``redis_layout.Writer``.
    :param publish: pushes numbers of last entries.
    """

    def __init__(
        self, writers: Mapping[str, Any], publish: Callable[[Mapping[str, int]], None], runtime: Runtime
    ) -> None:
        self._writers = writers
        self._publish = publish
        self._runtime = runtime
        #: Whether nobody can begin to read without being heard of. Where somebody may, all is pushed.
        self.listening = False
        #: Those who are to be told the last number, as they are read from now on; who gets the lock does so.
        self._owed: Deque[str] = deque()
        self._pushing = runtime.lock()

    def wants(self, stream: str) -> bool:
        """Whether news of *stream* have to be pushed."""
        if not self.listening:
            return True
        writer = self._writers.get(stream)
        return writer is None or writer.read_until > self._runtime.now()

    def catch_up(self, streams: Sequence[str]) -> None:
        """Push the last numbers of those of *streams* that are read by now, after writing in silence.

        :raises LogUnavailable: they could not be pushed.
        """
        wanted = {stream: self._writers.get(stream) for stream in streams if self.wants(stream)}
        numbers = {stream: writer.written for stream, writer in wanted.items() if writer is not None}
        if numbers:
            self._publish(numbers)

    def heard_of(self, streams: Sequence[str], milliseconds: Sequence[int]) -> None:
        """Take note for how long each of *streams* will be read at least.

        Never waits: what new readers may have missed is pushed in the background.
        """
        now = self._runtime.now()
        for stream, left in zip(streams, milliseconds):
            writer = self._writers.get(stream)
            if writer is None or left <= 0:
                continue
            is_new = writer.read_until <= now
            writer.read_until = max(writer.read_until, now + _LENIENCY * left / 1000)
            if is_new and writer.written:
                self._owed.append(stream)
        if self._owed and not self._pushing.locked():
            self._runtime.spawn(self._push, "llmstream-audience")

    def _push(self) -> None:
        # Not given up before the last look: what comes behind that finds it free.
        while self._owed and self._pushing.acquire(False):
            streams: List[str] = []
            try:
                while self._owed:
                    streams.append(self._owed.popleft())
                self.catch_up(streams)
            except LogUnavailable:
                for stream in streams:
                    writer = self._writers.get(stream)
                    if writer is not None:
                        writer.read_until = 0.0  # its readers will say so again, and be new then
            finally:
                self._pushing.release()
