"""What one process knows, by being told, of the streams that are followed in it.

A thousand followers of a stream cost one subscription, one look at the log when they begin, and
one reading of each page: whoever wants the page that another is just reading, waits for it.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Hashable, List, Optional

from flask_llmstream.eventlog.base import OPEN, Page
from flask_llmstream.eventlog.waiters import Waiters
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import Runtime

__all__ = ["Followed", "Following"]

#: Seconds that a page is good for others, unless anything is heard before.
FRESH = 0.05
#: Seconds that a stream stays subscribed to when nobody waits for it any more.
LINGER = 2.0
#: Seconds after which a reader does not count on another one.
_PATIENCE = 10.0
#: Pages of one stream that are kept.
_PAGES = 16


class _Reading:
    """A page that somebody is reading."""

    __slots__ = ("done", "error", "flag", "page", "version", "when")

    def __init__(self, flag: Any, version: int) -> None:
        self.flag = flag
        self.version = version
        self.done = False
        self.page: Optional[Page] = None
        self.error: Optional[LogUnavailable] = None
        self.when = 0.0


class Followed:
    """One stream."""

    __slots__ = ("known", "last", "live", "open", "readings", "used", "version")

    def __init__(self) -> None:
        #: Whether nothing can be missed: it is subscribed to.
        self.live = False
        #: Whether ``last`` and ``open`` were looked up since then.
        self.known = False
        self.last = 0
        self.open = True
        #: Counts what was heard, to notice what came while one was looking.
        self.version = 0
        #: When somebody last began to wait, or was woken.
        self.used = 0.0
        self.readings: Dict[Hashable, _Reading] = {}

    def quiet(self, after: int) -> bool:
        """Whether there is surely nothing to read after *after*."""
        return self.live and self.known and self.open and self.last <= after


class Following:
    """All streams that are followed in this process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lock = runtime.lock()
        self._streams: Dict[str, Followed] = {}
        #: Who waits.
        self.waiters = Waiters(runtime)

    def get(self, stream: str) -> Optional[Followed]:
        """Return what is known of *stream* if it is followed."""
        return self._streams.get(stream)

    def use(self, stream: str) -> Followed:
        """Return the same, and have it followed from now on."""
        with self._lock:
            followed = self._streams.get(stream)
            if followed is None:
                followed = self._streams[stream] = Followed()
            followed.used = self._runtime.now()
            return followed

    def names(self) -> List[str]:
        """Return the streams to be subscribed to, and forget the others."""
        waited, now = self.waiters.seen(), self._runtime.now()
        with self._lock:
            for stream in [
                name for name, each in self._streams.items()
                if name not in waited and now - each.used > LINGER
            ]:
                # Whoever holds it yet sees that nobody tells it anything any more.
                self._streams.pop(stream).live = False
            return list(self._streams)

    def waited(self) -> Dict[str, Followed]:
        """Return the streams that somebody waits for."""
        waited = self.waiters.seen()
        with self._lock:
            return {name: self._streams[name] for name in waited if name in self._streams}

    def hear(self, stream: str, last: Optional[int]) -> None:
        """Take in that *stream* has got entry *last*, or, if that is ``None``, that it has ended."""
        with self._lock:
            followed = self._streams.get(stream)
            if followed is None or (followed.last >= last if last is not None else not followed.open):
                return
            followed.used = self._runtime.now()  # who is woken comes again
            followed.version += 1
            if last is None:
                followed.open = False
            else:
                followed.last = last
        self.waiters.wake([stream])

    def doubt(self, stream: str, live: bool) -> None:
        """Have *stream* looked at again; *live* says whether it is subscribed to."""
        with self._lock:
            followed = self._streams.get(stream)
            if followed is None:
                return
            followed.used = self._runtime.now()
            followed.version += 1
            followed.live, followed.known = live, False
        self.waiters.wake([stream])

    def doubt_all(self) -> None:
        """Have everything looked at again: nobody tells anything any more."""
        for stream in list(self._streams):
            self.doubt(stream, False)

    def _look(
        self, stream: str, followed: Followed, reading: _Reading, fetch: Callable[[], Optional[Page]]
    ) -> None:
        """Put into *reading* what *fetch* finds, and learn from it unless anything was heard meanwhile."""
        page = reading.page = fetch()
        news = False
        if page is not None:
            with self._lock:
                if followed.version == reading.version:
                    now_open = page.state == OPEN
                    news = followed.last != page.last or followed.open != now_open
                    followed.last, followed.open = page.last, now_open
                    followed.known = followed.live
                    if news:
                        followed.version = reading.version = followed.version + 1
        reading.when = self._runtime.now()
        reading.done = True
        if news:
            # What is told of it, later, will be no news any more; others may sleep on an older page.
            self.waiters.wake([stream])

    def share(
        self, stream: str, followed: Followed, key: Hashable, fetch: Callable[[], Optional[Page]]
    ) -> Optional[Page]:
        """Return what *fetch* finds, or what another has just found for the same *key*."""
        with self._lock:
            reading = followed.readings.get(key)
            # What was begun before the last news, or before the subscription, may lack something.
            if reading is not None and (
                reading.version != followed.version
                or (reading.done and self._runtime.now() - reading.when > FRESH)
            ):
                reading = None
            mine = reading is None
            if reading is None:
                if len(followed.readings) >= _PAGES:
                    followed.readings.clear()
                reading = followed.readings[key] = _Reading(self._runtime.flag(), followed.version)
        if not mine:
            reading.flag.wait(_PATIENCE)
            if reading.error is not None:
                raise LogUnavailable(reading.error.log, reading.error.cause) from reading.error
            return reading.page if reading.done else fetch()
        try:
            self._look(stream, followed, reading, fetch)
            return reading.page
        except LogUnavailable as error:
            reading.error = error
            raise
        finally:
            if not reading.done:
                with self._lock:
                    if followed.readings.get(key) is reading:
                        del followed.readings[key]
            reading.flag.set()
