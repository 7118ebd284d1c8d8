"""The contract of an event log, and how one is opened by its URL.

Decisions
    1. Entries are bytes; what they mean is the caller's business, and so is whose stream it is.
    2. Numbers are given by the caller, from 1. So an append may be repeated after a failure that
       left its outcome open, and a gap says what it means: these entries were lost.
    3. Nothing is opened before the first use, and everything is opened anew in a forked process.
"""

from __future__ import annotations

import re
from importlib import import_module
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple
from urllib.parse import urlsplit

from flask_llmstream.exceptions import ConfigurationError

__all__ = ["Batch", "EventLog", "FINISHED", "FIRST_LEASE", "INTERRUPTED", "OPEN", "Page", "open_log"]

#: The states of a stream: entries may come; it has ended as it should; its worker has gone.
OPEN, FINISHED, INTERRUPTED = "open", "finished", "interrupted"

#: Seconds that a worker has, from its first stream, until it must renew its lease.
FIRST_LEASE = 30.0

#: Bytes of entries after which a page is full.
PAGE_BYTES = 256 * 1024

#: A stream, the number of the first entry, the entries.
Batch = Tuple[str, int, Sequence[bytes]]

#: What a log of somebody's own says that was written for less.
_NO_KEYS = "{} cannot be asked by a key which stream runs; add {} to it, or leave resume_key out"

_ID = re.compile(r"[0-9a-f]{1,64}", re.ASCII)


class Page(NamedTuple):
    """What :meth:`EventLog.read` found."""

    #: Number of the first of the entries; where there are none, of the one that may come next.
    #: Greater than ``after + 1`` says that the entries between are lost.
    first: int
    #: The entries, numbered without a gap.
    entries: List[bytes]
    #: Number of the last entry that the log has got; 0 for none.
    last: int
    #: ``open``, ``finished`` or ``interrupted``.
    state: str


class EventLog:
    """Keeps the entries of streams, for readers in any worker; one object per process.

    Every method may be called from any thread or greenlet, blocks only its caller, and raises
    :class:`~flask_llmstream.exceptions.LogUnavailable` where the log cannot be used right now; the
    next call tries again. Derive from this for a log of your own, and from
    :class:`flask_llmstream.testing.eventlog.EventLogContract` to test it.
    """

    #: What the log is called in messages, without a password.
    name = ""

    def create(self, stream: str, worker: str, keep: float, max_events: int, max_bytes: int) -> None:
        """Begin a stream; doing so again changes nothing.

        A worker that has no lease yet gets one of :data:`FIRST_LEASE` seconds.

        :param stream: its id: up to 64 hexadecimal digits, in lower case.
        :param worker: id of the process that writes it; see :meth:`renew`.
        :param keep: seconds that it stays readable after its end.
        :param max_events: how many entries are kept; beyond it the oldest go.
        :param max_bytes: how many bytes of entries are kept; the newest entry always is.
        :raises ValueError: if *stream* is no such id.
        """
        raise NotImplementedError

    def append_many(self, batches: Sequence[Batch]) -> List[str]:
        """Append to several streams at once; return those that took nothing.

        Entries whose numbers the stream has already are left out. A number beyond the next says
        that entries were lost: a page ends before such a gap, and the next begins behind it.

        :param batches: for each stream, in the order of the numbers: its id, the number of the
            first entry, and the entries.
        :returns: ids of streams that have been sealed, have gone or never were; all others have
            got their entries.
        """
        raise NotImplementedError

    def append(self, stream: str, first: int, entries: Sequence[bytes]) -> bool:
        """Append to one stream; return whether it is open. See :meth:`append_many`."""
        return not self.append_many([(stream, first, entries)])

    def seal(self, stream: str, state: str) -> bool:
        """End the stream; return whether it was this call that did so: the first one wins.

        :param state: ``finished`` or ``interrupted``.
        """
        raise NotImplementedError

    def seal_many(self, ends: Sequence[Tuple[str, str]]) -> None:
        """End several streams, each given with its state; see :meth:`seal`.

        A log for which that is cheaper than one after the other overrides this. Where it fails, some of
        them may have been sealed.
        """
        for stream, state in ends:
            self.seal(stream, state)

    def read(self, stream: str, after: int, limit: int = 256) -> Optional[Page]:
        """Return the entries with a greater number than *after*, or ``None`` for an unknown stream.

        :param limit: how many entries at most; a page also ends at about 256 KB. Defaults to 256.
        """
        raise NotImplementedError

    def wait(self, stream: str, after: int, timeout: float) -> None:
        """Return as soon as there may be more to read than *after*, or after *timeout* seconds.

        At once where the stream has entries after it, has been sealed, or is unknown. Where the log
        tells writers of readers (:meth:`on_attend`), whoever waits has said so before (:meth:`attend`).
        """
        raise NotImplementedError

    def request_stop(self, stream: str) -> bool:
        """Ask the worker that writes the stream to stop; return whether there is such an open one."""
        raise NotImplementedError

    def on_stop(self, callback: Callable[[str], None]) -> None:
        """Have ``callback(stream)`` called for each stream created here that is asked to stop.

        It is called at least once for each, in a thread or greenlet of the log's, and must not
        block for long.
        """
        raise NotImplementedError

    def on_attend(self, callback: Callable[[str], None]) -> bool:
        """Have ``callback(stream)`` called when somebody says that they read a stream created here.

        It is called as for :meth:`on_stop`, within moments of :meth:`attend`, and again while they
        read on. So what nobody reads can be written more rarely.

        :returns: whether this log can do so. Other logs need not: all is written at once to them.
        """
        return False

    def on_leave(self, callback: Callable[[str], None]) -> bool:
        """Have ``callback(stream)`` called when somebody has left a stream created here: see :meth:`leave`.

        It is called as for :meth:`on_stop`. Others may still read, which :meth:`attended` tells.

        :returns: whether this log can do so. Other logs need not: who has left is missed in time.
        """
        return False

    def claim(self, key: str, stream: str, keep: float) -> str:
        """Bind *key* to *stream* unless it is bound already; return the stream that it is bound to.

        :param keep: seconds until the key may be bound anew.
        """
        raise NotImplementedError

    def bind(self, key: str, stream: str, keep: float) -> None:
        """Bind *key* to *stream*, whatever it was bound to; the last one wins.

        Keys are those of :meth:`claim`. Only ``resume_key=`` needs this and :meth:`bound`.

        :param keep: seconds until the key is forgotten.
        :raises ValueError: if *stream* is no id.
        """
        raise NotImplementedError(_NO_KEYS.format(type(self).__name__, "bind(key, stream, keep)"))

    def bound(self, key: str) -> Optional[str]:
        """Return the stream that *key* is bound to, ``None`` for none."""
        raise NotImplementedError(_NO_KEYS.format(type(self).__name__, "bound(key)"))

    def attend(self, stream: str, seconds: float) -> None:
        """Say that somebody reads the stream, and will for so many seconds.

        Made of :meth:`claim`, which does not prolong what it holds: who reads on says so more often
        than every *seconds*, and may be missed for the time between.
        """
        self.claim(f"reader:{stream}", "1", seconds)

    def attended(self, stream: str) -> bool:
        """Return whether somebody has said that they read the stream; see :meth:`attend`."""
        return self.claim(f"reader:{stream}", "0", 0.05) == "1"

    def leave(self, stream: str) -> None:
        """Say that nobody reads the stream any more in this process, whatever :meth:`attend` has promised.

        Others are not spoken for. A log that keeps who reads apart for each process overrides this;
        else what was promised runs out by itself.
        """

    def renew(self, worker: str, lease: float) -> None:
        """Promise that *worker* comes again within *lease* seconds.

        An open stream whose worker has not kept its promise is sealed as ``interrupted`` by
        whoever looks at it next.
        """
        raise NotImplementedError

    def prune(self) -> int:
        """Drop some of what is past its time, and return how much; 0 when nothing is left to drop.

        The log also does so by itself, little by little.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of connections, threads and files; whoever waits returns. A later call opens it again."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


def checked_id(stream: str) -> str:
    """Return *stream* if it is an id.

    :raises ValueError: if it is not.
    """
    if not isinstance(stream, str) or not _ID.fullmatch(stream):
        raise ValueError(f"an id of a stream is 1 to 64 digits of 0-9 and a-f, got {stream!r:.80}")
    return stream


def checked_seal(state: str) -> str:
    """Return *state* if a stream can be sealed with it.

    :raises ValueError: if it cannot.
    """
    if state not in (FINISHED, INTERRUPTED):
        raise ValueError(f"a stream is sealed as {FINISHED!r} or {INTERRUPTED!r}, got {state!r}")
    return state


def public_url(url: str) -> str:
    """Return *url* as messages may show it: without a user's name, a password and options."""
    scheme, mark, rest = url.partition("://")
    if not mark:
        return scheme.partition("?")[0] if "@" not in scheme else "..."
    rest = rest.partition("?")[0]
    return scheme + mark + rest[rest.rfind("@") + 1 :]


#: Scheme -> module and class. The class takes the URL.
_LOGS = {
    "memory": ("memory", "MemoryEventLog"),
    "sqlite": ("sqlite", "SQLiteEventLog"),
    "redis": ("redis", "RedisEventLog"),
    "rediss": ("redis", "RedisEventLog"),
    "unix": ("redis", "RedisEventLog"),
}

_EXPECTED = "memory://, sqlite:///path, sqlite:////absolute/path or redis://host:6379/0"


def open_log(url: str) -> EventLog:
    """Return the event log at *url*. Nothing is opened yet.

    ``memory://``
        one process only; nothing survives it.
    ``sqlite:///log.db`` (relative), ``sqlite:////var/lib/app/log.db`` (absolute)
        all workers of one machine; ``?timeout=`` seconds to wait for a lock, 5 by default.
    ``redis://``, ``rediss://``, ``unix://``
        all workers of all machines; needs ``pip install "flask-llmstream[redis]"``.

    :raises ConfigurationError: if *url* is none of these.
    """
    if not isinstance(url, str):
        raise ConfigurationError("LLMSTREAM_EVENT_LOG", url, f"a URL such as {_EXPECTED}")
    try:
        module, name = _LOGS[urlsplit(url).scheme if "://" in url else ""]
    except (KeyError, ValueError):
        raise ConfigurationError("LLMSTREAM_EVENT_LOG", public_url(url), _EXPECTED) from None
    make = getattr(import_module(f"flask_llmstream.eventlog.{module}"), name)
    log: EventLog = make(url)
    return log
