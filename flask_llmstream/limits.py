"""How many streams may run: in this worker, for one owner, on one route.

Decisions
    1. The worker's limit guards what a process has: connections and memory. So each counts its own. The
       limits of owners and routes guard what stands behind all workers, the bill and the model: they
       hold for all workers of the machine.
    2. What is counted by all of them is a lock on one byte of a file. The system takes it back when its
       process ends, however that ends: there is nothing to clean up, and nobody who has to.
    3. Closing *any* descriptor of such a file would give back all its locks. So a process opens each
       once, and never closes it.
    4. A place is given back without waiting for anything: the garbage collector may do it, anywhere.
    5. Places of owners and routes are free when the source has ended, before its client can know; those
       of the worker when the server has sent the last byte. So whoever has read the end may ask again at
       once, and a client that does not take it still counts as a connection.

What POSIX says of such locks: https://pubs.opengroup.org/onlinepubs/9699919799/functions/fcntl.html
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import sys
import threading
import time
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from flask_llmstream import signals
from flask_llmstream.exceptions import LimitReached
from flask_llmstream.folders import app_folder
from flask_llmstream.measuring import tallies_of
from flask_llmstream.runtime import current_runtime, per_process
from flask_llmstream.settings import MOST_COUNTED, Settings

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["OWNER_KEY", "Limits", "Seat", "Slots", "current_limits"]

_log = logging.getLogger(__name__)

#: Says in a WSGI environ who has sent the request.
OWNER_KEY = "flask_llmstream.owner"

#: Seconds after which who was refused should ask again: at least, at most. By chance, so that a crowd
#: does not come back as one.
_SOONEST, _LATEST = 2, 6
#: Seconds for which the log does not repeat that a limit is reached.
_PAUSE = 60.0
#: Among so many files the locks are spread: the system looks through all those of one file.
_FILES = 16
#: So many names are told apart; an offset has 63 bits.
_NAMES = 2 ** 50
#: Who has found all places taken does not look again for so many times the time that it took, and for so
#: many seconds at most: a crowd that is refused must not hold up who was not. So many names are remembered.
_REST, _LONGEST_REST, _REMEMBERED = 20.0, 0.5, 1024
_TOLD = {
    "worker": "streams are refused: this worker has %d, all that LLMSTREAM_MAX_STREAMS allows",
    "owner": "streams are refused: one owner has %d on this machine, all that"
             " LLMSTREAM_MAX_STREAMS_PER_OWNER allows",
    "route": "streams of a route are refused: it has %d on this machine, all that its max_streams allows",
}
_ALONE = "the limits of owners and routes hold for each worker alone from now on: %s"


class Seat:
    """What one stream holds of the limits; it is given back once, whoever asks how often.

    A seat that nobody has any more gives itself back: an app may throw a response away.
    """

    __slots__ = ("_connection", "_source", "__weakref__")

    def __init__(self) -> None:
        self._connection: List[Callable[[], None]] = []
        self._source: List[Callable[[], None]] = []

    def hold(self, give_back: Callable[[], None], source: bool) -> None:
        """Call *give_back* at the end.

        :param source: that of the source, not that of the connection.
        """
        (self._source if source else self._connection).append(give_back)

    def source_ended(self) -> None:
        """Give back the places of the owner and of the route."""
        _call_each(self._source)

    def leave(self) -> None:
        """Give back all places."""
        _call_each(self._source)
        _call_each(self._connection)

    def __del__(self) -> None:
        if not sys.is_finalizing():  # a process that ends holds nothing
            self.leave()


def _call_each(functions: List[Callable[[], None]]) -> None:
    while functions:
        try:
            function = functions.pop()
        except IndexError:  # pragma: no cover - another thread was faster
            return
        function()


class Slots:
    """Counts by name, for all processes that use *folder*.

    :param folder: its path; without one, or where it cannot be used, each process counts for itself.
    """

    def __init__(self, folder: Optional[str]) -> None:
        self._folder = folder
        self._files: Dict[int, int] = {}
        #: File and offset of what this process holds: its own locks do not keep it out.
        self._held: Set[Tuple[int, int]] = set()
        #: Until when nobody looks whether another process has given back a place, by name and limit.
        self._full: Dict[Tuple[int, int], float] = {}
        #: Another one whenever a place of this process was given back.
        self._given: object = None

    def take(self, name: str, limit: int) -> Optional[Callable[[], None]]:
        """Return what gives back a place under *name*, ``None`` where all *limit* are taken.

        Only one thread at a time may call this; what it returns can be called anywhere.
        """
        digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).digest()
        number = int.from_bytes(digest[:8], "big")
        first = number % _NAMES * MOST_COUNTED
        began = time.monotonic()
        if began < self._full.get((first, limit), began):
            return None
        given = self._given
        begin = random.randrange(limit)  # or all would look through what is taken at the beginning
        for each in range(begin, begin + limit):
            place = (number + each % limit) % _FILES, first + each % limit
            if place not in self._held and self._lock(*place):
                self._held.add(place)
                return partial(self._give_back, place, (first, limit))
        if len(self._full) >= _REMEMBERED:
            self._full.clear()
        now = time.monotonic()
        self._full[first, limit] = now + min(_LONGEST_REST, _REST * (now - began))
        if self._given is not given:  # it may be one that was looked at before that
            self._full.pop((first, limit), None)
        return None

    def _lock(self, file: int, offset: int) -> bool:
        if self._folder is None or fcntl is None:
            return True
        try:
            fcntl.lockf(self._open(file), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError) as error:
            if error.filename is not None:
                self._do_without(error)
                return True
            return False  # EAGAIN or EACCES: somebody else has it
        except OSError as error:
            self._do_without(error)
        return True

    def _open(self, file: int) -> int:
        fd = self._files.get(file)
        if fd is None:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
            fd = self._files[file] = os.open(os.path.join(self._folder or "", f"{file:x}"), flags, 0o600)
        return fd

    def _do_without(self, error: OSError) -> None:
        _log.warning(_ALONE, error)
        self._folder = None

    def _give_back(self, place: Tuple[int, int], counted: Tuple[int, int]) -> None:
        file, offset = place
        try:
            if file in self._files:
                fcntl.lockf(self._files[file], fcntl.LOCK_UN, 1, offset)
        except OSError:  # pragma: no cover - a server for files that does not answer
            _log.exception("a place could not be given back")
        finally:
            # Not before: who takes it meanwhile would lose it to this unlocking.
            self._held.discard(place)
            self._given = object()
            self._full.pop(counted, None)


class Limits:
    """The streams that this process has, as far as they are limited."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._here: Set[object] = set()
        self._slots: Dict[Tuple[str, ...], Slots] = {}
        self._told: Dict[str, float] = {}

    def running(self) -> int:
        """Return how many streams count for ``max_streams`` now."""
        return len(self._here)

    def admit(
        self, seat: Seat, app: Any, settings: Settings, owner: str = "", route: str = "", route_limit: int = 0
    ) -> None:
        """Have *seat* hold what a stream needs, or raise.

        :param app: the app; it sends the signal.
        :param settings: the settings in force.
        :param owner: who has sent the request; empty for nobody in particular, who is not counted.
        :param route: its endpoint.
        :param route_limit: streams of it on this machine; 0 for no limit.
        :raises LimitReached: where there is no place; the seat holds nothing then.
        """
        wanted: List[Tuple[str, str, int]] = []
        if route_limit:
            wanted.append(("route", route, route_limit))
        if settings.max_streams_per_owner and owner:
            wanted.append(("owner", owner, settings.max_streams_per_owner))
        full, most = "", settings.max_streams
        with self._lock:
            if most:
                if len(self._here) >= most:
                    full = "worker"
                else:
                    place = object()
                    self._here.add(place)
                    seat.hold(partial(self._here.discard, place), source=False)
            if wanted and not full:
                slots = self._slots_of(app, settings)
                for kind, name, most in wanted:
                    give_back = slots.take(f"{kind}:{name}", most)
                    if give_back is None:
                        full = kind
                        break
                    seat.hold(give_back, source=True)
        if full:
            seat.leave()
            self._refuse(app, full, most)

    def _slots_of(self, app: Any, settings: Settings) -> Slots:
        key = settings.shared_dir, app.import_name, app.root_path
        found = self._slots.get(key)
        if found is None:
            found = self._slots[key] = Slots(None if fcntl is None else _folder(app, settings))
        return found

    def _refuse(self, app: Any, limit: str, most: int) -> None:
        now = current_runtime().now()
        if now >= self._told.get(limit, now):
            self._told[limit] = now + _PAUSE
            _log.warning(_TOLD[limit] + "; further ones are not logged for a minute", most)
        error = LimitReached(limit, random.randint(_SOONEST, _LATEST))
        tallies = tallies_of(app)
        if tallies is not None:
            tallies.refuse(limit)
        if signals.stream_refused.receivers:
            signals.stream_refused.send(app, limit=limit, retry_after=error.retry_after)
        raise error


def _folder(app: Any, settings: Settings) -> Optional[str]:
    try:
        return app_folder(app, settings.shared_dir, "limits")
    except OSError as error:
        _log.warning(_ALONE, error)
        return None


#: Return the :class:`Limits` of this process.
current_limits = per_process(Limits)
