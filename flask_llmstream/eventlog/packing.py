"""Several entries of a stream as one item of a log: a row, or an item of a Redis stream.

What waits for the same write goes in together, so that a token costs a fraction of an item. An item has
the number of its last entry; its entries are read one by one, and dropped all at once.
"""

from __future__ import annotations

from typing import List, NamedTuple, Sequence

from flask_llmstream.eventlog.base import PAGE_BYTES

__all__ = ["Collector", "Item", "pack"]

#: Entries and bytes of them in one item, at most; one entry always fits.
_ITEM_ENTRIES, _ITEM_BYTES = 64, 8192
#: The share of a stream's bounds that one item may have: whole items are dropped.
_SHARE = 8


class Item(NamedTuple):
    """One item of a stream."""

    first: int
    last: int
    size: int
    lengths: bytes
    value: bytes


def pack(first: int, entries: Sequence[bytes], max_events: int, max_bytes: int) -> List[Item]:
    """Put *entries* into items.

    :param first: number of the first of them.
    :param max_events: how many entries the log keeps of their stream, and
    :param max_bytes: how many bytes.
    """
    most = max(1, min(_ITEM_ENTRIES, max_events // _SHARE))
    largest = max(1, min(_ITEM_BYTES, max_bytes // _SHARE))
    items: List[Item] = []
    held: List[bytes] = []
    size = 0

    def put() -> None:
        lengths = ",".join([str(len(each)) for each in held]).encode()
        items.append(Item(first, first + len(held) - 1, size, lengths, b"".join(held)))

    for entry in entries:
        if held and (len(held) >= most or size + len(entry) > largest):
            put()
            first += len(held)
            held, size = [], 0
        held.append(entry)
        size += len(entry)
    if held:
        put()
    return items


class Collector:
    """Puts the entries of a page together."""

    def __init__(self, after: int, limit: int) -> None:
        self.first = after + 1
        self.entries: List[bytes] = []
        self.size = 0
        #: Whether no more fits, or a gap follows.
        self.full = False
        self._limit = limit

    @property
    def next(self) -> int:
        """Number of the entry that comes next."""
        return self.first + len(self.entries)

    def missing(self, items: int) -> int:
        """Return how many more items fill the page, if they are like the *items* so far."""
        left = min(
            (self._limit - len(self.entries)) / max(1, len(self.entries)),
            (PAGE_BYTES - self.size) / max(1, self.size),
        )
        return max(1, int(items * left) + 1)

    def add(self, last: int, lengths: bytes, value: bytes) -> None:
        """Take those entries of an item that are wanted; after the one before it."""
        if self.full:
            return
        sizes = [int(each) for each in lengths.split(b",")]
        number, start = last - len(sizes), 0
        for size in sizes:
            number += 1
            begin, start = start, start + size
            if number < self.next:
                continue
            if not self.entries:
                self.first = number
            elif number != self.next or self.size + size > PAGE_BYTES:
                self.full = True
            if self.full or len(self.entries) >= self._limit:
                self.full = True
                return
            self.entries.append(value[begin:start])
            self.size += size
