"""How the entries of a stream lie in Redis.

All keys of one stream share the hash tag ``{stream}``, so that a cluster has them in one place:

``llmstream:{stream}:log``
    a Redis stream. Each of its items holds a few of our entries, and its id is ``N-0``, where N is
    the number of the last of them; its field names their sizes, its value is all of them. So an
    append that is repeated is refused by Redis itself. The first item, ``0-1``, makes the stream
    exist; the one with the highest id that there can be seals it: from then on Redis refuses every
    other, so the first seal wins and nothing comes after it, with no script.
``llmstream:{stream}:meta``
    a hash of what :meth:`~flask_llmstream.eventlog.EventLog.create` was given, and of a request to stop.
``llmstream:{stream}:readers``
    the names of the processes in which somebody reads the stream; there for as long as one has promised.
``llmstream:{stream}:news``
    a channel: the number of the last entry, or ``end``.
``llmstream:worker:ID``, ``llmstream:claim:HASH``, ``llmstream:home:ID``
    the lease of a worker; the stream that has a key; the channel of a process, for requests to stop.
"""

from __future__ import annotations

import hashlib
from collections import deque
from itertools import chain
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Sequence, Tuple

from flask_llmstream.eventlog.packing import Item
from flask_llmstream.eventlog.redis_client import Command

__all__ = [
    "BEGIN", "END", "FIELDS", "LEFT", "READ", "SEAL", "Keys", "Meta", "Writer", "fields_of", "number_of",
]

#: Id of the item that seals a stream.
SEAL = b"18446744073709551615-0"
#: Id of the item that makes it exist.
BEGIN = b"0-1"
#: What is said on its channel when it is sealed.
END = b"end"
#: Begins what is said to a process when one of its streams is read (behind id and colon: for how many
#: milliseconds), and when a process has left it. A bare id: it shall be stopped.
READ, LEFT = "read:", "left:"

#: Fields of the hash, in the order of :class:`Meta`.
FIELDS = ("worker", "lease", "home", "keep", "max_events", "max_bytes")


class Keys:
    """The names of everything."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def log(self, stream: str) -> str:
        """Key of the entries."""
        return f"{self._prefix}:{{{stream}}}:log"

    def meta(self, stream: str) -> str:
        """Key of the hash."""
        return f"{self._prefix}:{{{stream}}}:meta"

    def readers(self, stream: str) -> str:
        """Key of who reads it."""
        return f"{self._prefix}:{{{stream}}}:readers"

    def news(self, stream: str) -> str:
        """Name of the channel."""
        return f"{self._prefix}:{{{stream}}}:news"

    def stream_of(self, channel: bytes) -> str:
        """Return the stream whose channel this is."""
        return channel.decode("ascii", "replace")[len(self._prefix) + 2 :].partition("}")[0]

    def lease(self, worker: str) -> str:
        """Key of the lease of a worker."""
        return f"{self._prefix}:worker:{worker}"

    def claim(self, key: str) -> str:
        """Key of a claim; what somebody has chosen as a key is not shown in it."""
        return f"{self._prefix}:claim:{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def home(self, name: str) -> str:
        """Name of the channel of a process."""
        return f"{self._prefix}:home:{name}"


class Meta(NamedTuple):
    """What a stream was created with."""

    worker: str
    #: What the lease must hold: another value is a later lease, given when this one had run out.
    lease: str
    #: Name of the process that created it.
    home: str
    keep: float
    max_events: int
    max_bytes: int

    @classmethod
    def parse(cls, values: Sequence[Optional[bytes]]) -> Optional[Meta]:
        """Return what HMGET has found; ``None`` for nothing."""
        if None in values:
            return None
        worker, lease, home, keep, events, size = (value.decode() for value in values if value is not None)
        return cls(worker, lease, home, float(keep), int(events), int(size))


def number_of(item: Tuple[bytes, Any]) -> int:
    """Return the number of the last entry in *item*; 0 for the one that makes a stream exist."""
    return int(item[0].partition(b"-")[0])


def fields_of(item: Tuple[bytes, Dict[bytes, bytes]]) -> Tuple[bytes, bytes]:
    """Return the sizes of the entries in *item*, and all of them."""
    ((lengths, value),) = item[1].items()
    return lengths, value


class Writer:
    """What a process that appends to a stream must know of it."""

    def __init__(self, meta: Meta, begun: bool) -> None:
        self.meta = meta
        #: Whether ``items`` are all that there are.
        self.loaded = begun
        #: First and last number and size of each item.
        self.items: Deque[Tuple[int, int, int]] = deque()
        self.size = 0
        #: When its keys were last told to live on.
        self.refreshed = 0.0
        #: Whether the callbacks for a request to stop were called.
        self.stopped = False
        #: Number of the last entry that was written here, and until when somebody reads it elsewhere.
        self.written = 0
        self.read_until = 0.0

    def load(self, found: Sequence[Tuple[bytes, Dict[bytes, bytes]]]) -> None:
        """Take in all items that the log has."""
        self.items.clear()
        self.size = 0
        for item in found:
            if item[0] not in (BEGIN, SEAL):
                lengths, value = fields_of(item)
                self.add(Item(number_of(item) - lengths.count(b","), number_of(item), len(value), b"", b""))
        self.loaded = True

    def add(self, item: Item) -> None:
        """Take in one more."""
        self.items.append((item.first, item.last, item.size))
        self.size += item.size

    def surplus(self, items: Sequence[Item]) -> int:
        """Return how many of the oldest must go when *items* come."""
        meta, size, count = self.meta, self.size + sum(item.size for item in items), 0
        new = ((item.first, item.last, item.size) for item in items[:-1])
        for first, _, each in chain(self.items, new):
            if size <= meta.max_bytes and items[-1].last - first < meta.max_events:
                break
            size -= each
            count += 1
        return count

    def drop(self, count: int) -> None:
        """Forget the *count* oldest."""
        for _ in range(min(count, len(self.items) - 1)):
            self.size -= self.items.popleft()[2]

    def commands(self, log: str, items: Sequence[Item], surplus: int) -> List[Command]:
        """Return what adds *items*; the last of them drops what is too much, if it is taken itself."""
        commands: List[Command] = []
        for place, item in enumerate(items):
            command: Command = ("XADD", log, "NOMKSTREAM")
            if surplus and place == len(items) - 1:
                kept = surplus - len(self.items)
                oldest = items[kept].last if kept >= 0 else self.items[surplus][1]
                command += ("MINID", "=", f"{oldest}-0")
            commands.append((*command, f"{item.last}-0", item.lengths, item.value))
        return commands
