"""What a log in Redis has in one process: connections, what it knows of streams, what it is told."""

from __future__ import annotations

import logging
import uuid
from collections import OrderedDict
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

from flask_llmstream.eventlog.attending import Attendance, Callbacks
from flask_llmstream.eventlog.base import INTERRUPTED, OPEN, Page
from flask_llmstream.eventlog.packing import Collector
from flask_llmstream.eventlog.redis_audience import Audience
from flask_llmstream.eventlog.redis_client import Command, RedisClients, RedisOptions, is_error
from flask_llmstream.eventlog.redis_following import Following
from flask_llmstream.eventlog.redis_layout import (
    END,
    FIELDS,
    LEFT,
    READ,
    SEAL,
    Keys,
    Meta,
    Writer,
    fields_of,
    number_of,
)
from flask_llmstream.eventlog.redis_listener import Listener, ListenerHost
from flask_llmstream.exceptions import LogUnavailable
from flask_llmstream.runtime import current_runtime

__all__ = ["Process", "is_over", "is_repeated"]

_log = logging.getLogger(__name__)

#: Seconds that an open stream lives without an append.
OPEN_FOR = 86400.0
#: Ticks of the listener between two looks at everything that is followed.
LOOK_EVERY = 5
#: Items of a page that are asked for first, and at most.
FIRST_ITEMS, MOST_ITEMS = 16, 256
#: Streams of others whose data are remembered.
_REMEMBERED = 10000


class Process(ListenerHost):
    """What a log has in one process."""

    def __init__(self, options: RedisOptions, keys: Keys, callbacks: Callbacks) -> None:
        self.closed = False
        self.runtime = current_runtime()
        self.home_name = uuid.uuid4().hex
        self.home = keys.home(self.home_name).encode()
        #: Streams that were created here and are open, as far as is known.
        self.mine: Dict[str, Writer] = {}
        #: What the leases of workers hold that have been given or renewed here.
        self.leases: Dict[str, bytes] = {}
        self.following = Following(self.runtime)
        self._others: OrderedDict[str, Writer] = OrderedDict()
        self._keys = keys
        self._callbacks = callbacks
        self.attendance = Attendance(self.runtime)
        self.audience = Audience(self.mine, self._publish, self.runtime)
        self._clients = RedisClients(options)
        self.listener = Listener(self, self._clients, self.runtime, options.timeout)
        self._ticks = 0

    def run(self, commands: Sequence[Command], strict: bool = True) -> List[Any]:
        """Run *commands*; the first error raises :class:`LogUnavailable` if *strict*."""
        replies = self._clients.run(commands)
        if strict:
            self.check(replies)
        return replies

    def check(self, replies: Any) -> None:
        """Raise what the first error among *replies* says."""
        for reply in replies:
            if is_error(reply):
                raise self._clients.failure(reply) from reply

    def close(self) -> None:
        """Let go of everything."""
        self.closed = True
        self.listener.close()
        self.following.waiters.wake_all()
        self._clients.close()

    def leasing(self, worker: str, seconds: float, value: Optional[bytes] = None) -> List[Command]:
        """Return what gives *worker* a lease if it has none, and what tells the value of the lease."""
        lease = self._keys.lease(worker)
        given = value or uuid.uuid4().hex
        return [("SET", lease, given, "PX", max(1, int(seconds * 1000)), "NX"), ("GET", lease)]

    # -- what streams were created with ----------------------------------------------------

    def living(self, stream: str, meta: Meta, seconds: float = OPEN_FOR) -> List[Command]:
        """Return what has the log, and then the rest, live for so long, or at least as it is kept."""
        left = int(max(meta.keep, seconds) * 1000)
        return [("PEXPIRE", self._keys.log(stream), left), ("PEXPIRE", self._keys.meta(stream), left)]

    def _writer(self, stream: str) -> Optional[Writer]:
        return self.mine.get(stream) or self._others.get(stream)

    def forget(self, stream: str) -> None:
        """Forget what is known of *stream*, which has ended."""
        self.mine.pop(stream, None)
        self._others.pop(stream, None)

    def _remember(self, stream: str, values: Sequence[Optional[bytes]]) -> Optional[Writer]:
        meta = Meta.parse(values)
        if meta is None:
            return None
        writer = self._others[stream] = Writer(meta, begun=False)
        while len(self._others) > _REMEMBERED:
            try:
                self._others.popitem(last=False)
            except KeyError:  # pragma: no cover - another thread was faster
                break
        return writer

    def meta(self, stream: str) -> Optional[Meta]:
        """Return what *stream* was created with."""
        writer = self._writer(stream)
        if writer is None:
            writer = self._remember(stream, self.run([("HMGET", self._keys.meta(stream), *FIELDS)])[0])
        return None if writer is None else writer.meta

    def writers(self, streams: Sequence[str]) -> Dict[str, Writer]:
        """Return what to know for appending to those of *streams* that there are."""
        found: Dict[str, Writer] = {}
        unknown = [stream for stream in streams if self._writer(stream) is None]
        if unknown:
            metas = self.run([("HMGET", self._keys.meta(stream), *FIELDS) for stream in unknown])
            for stream, values in zip(unknown, metas):
                self._remember(stream, values)
        for stream in streams:
            writer = self._writer(stream)
            if writer is not None:
                found[stream] = writer
        loading = [stream for stream, writer in found.items() if not writer.loaded]
        if loading:
            items = self.run([("XRANGE", self._keys.log(stream), "-", "+") for stream in loading])
            for stream, each in zip(loading, items):
                found[stream].load(each)
        return found

    def _publish(self, numbers: Mapping[str, int]) -> None:
        self.run([("PUBLISH", self._keys.news(stream), last) for stream, last in numbers.items()])

    # -- what more than one method does ----------------------------------------------------

    def fetch(self, stream: str, after: int, limit: int) -> Optional[Page]:
        """Read a page; seal the stream if its worker's lease has run out."""
        keys, log = self._keys, self._keys.log(stream)
        writer = self._writer(stream)
        collector = Collector(after, limit)
        count = FIRST_ITEMS
        unknown = ("HMGET", keys.meta(stream), *FIELDS)
        # The end first: what comes between must not look as if a stream had ended without it.
        ends, items, third = self.run([
            ("XREVRANGE", log, "+", "-", "COUNT", 2),
            ("XRANGE", log, f"{collector.next}-0", "+", "COUNT", count),
            unknown if writer is None else ("GET", keys.lease(writer.meta.worker)),
        ])
        if writer is None and ends:
            writer = self._remember(stream, third)
        if not ends or writer is None:
            self.forget(stream)
            return None
        state = ends[0][1][b"state"].decode() if ends[0][0] == SEAL else OPEN
        last = number_of(ends[-1] if state != OPEN else ends[0])
        if state == OPEN:
            if isinstance(third, list):
                (third,) = self.run([("GET", keys.lease(writer.meta.worker))])
            if third != writer.meta.lease.encode():
                self.seal(stream, INTERRUPTED)
                return self.fetch(stream, after, limit)
        while True:
            for item in items:
                if item[0] != SEAL:
                    collector.add(number_of(item), *fields_of(item))
            if collector.full or len(items) < count or len(collector.entries) >= limit:
                break
            # Enough of the same size to fill the page.
            count = min(MOST_ITEMS, collector.missing(len(items)))
            (items,) = self.run([("XRANGE", log, f"{collector.next}-0", "+", "COUNT", count)])
        if collector.entries:
            last = max(last, collector.next - 1)
        return Page(collector.first, collector.entries, last, state)

    def seal(self, stream: str, state: str) -> bool:
        """Seal *stream*; return whether it was this call that did."""
        meta, log, token = self.meta(stream), self._keys.log(stream), uuid.uuid4().hex
        if meta is None:
            return False
        sealed, _ = self.run([
            ("XADD", log, "NOMKSTREAM", SEAL, "state", state, "token", token),
            ("PUBLISH", self._keys.news(stream), END),
        ], strict=False)
        won = isinstance(sealed, bytes)
        if is_error(sealed):
            if not is_repeated(sealed):
                self.check([sealed])
            ends, left = self.run([("XREVRANGE", log, "+", "-", "COUNT", 1), ("PTTL", log)])
            # The first attempt of this call may have got there before its connection broke.
            won = bool(ends) and ends[0][1].get(b"token") == token.encode()
            late = won or left > meta.keep * 1000
        else:
            late = won
        if late:
            try:
                self.run(self.living(stream, meta, 0.0))
            except LogUnavailable as error:
                _log.warning("an ended stream is kept for longer than it should be: %s", error)
        self.forget(stream)
        self.following.hear(stream, None)
        return won

    def want(self, stream: str) -> None:
        """Have the listener subscribe to *stream*."""
        if self.listener.want(self._keys.news(stream).encode()):
            self.run([("PUBLISH", self.home, "")])

    # -- what the listener asks and tells --------------------------------------------------

    def needed(self) -> bool:
        return bool(self.following.names() or (self._callbacks and self.mine))

    def channels(self) -> Set[bytes]:
        return {self._keys.news(stream).encode() for stream in self.following.names()}

    def confirmed(self, channel: bytes) -> None:
        if channel == self.home:
            self._look_for_stops()
            self._look_for_readers()
            self.audience.listening = bool(self._callbacks.attend)
        else:
            self.following.doubt(self._keys.stream_of(channel), True)

    def left(self, channel: bytes) -> None:
        self.following.doubt(self._keys.stream_of(channel), False)

    def heard(self, channel: bytes, message: bytes) -> None:
        if channel == self.home:
            name = message.decode("ascii", "replace")
            if name.startswith(READ):
                stream, _, milliseconds = name[len(READ) :].partition(":")
                self.audience.heard_of([stream], [int(milliseconds) if milliseconds.isdigit() else 0])
                self._callbacks.call(self._callbacks.attend, stream)
            elif name.startswith(LEFT):
                self._callbacks.call(self._callbacks.leave, name[len(LEFT) :])
            elif name:
                self._stop(name)
        else:
            last = int(message) if message.isdigit() else None
            self.following.hear(self._keys.stream_of(channel), last)

    def lost(self) -> None:
        self.audience.listening = False
        self.following.doubt_all()

    def tick(self) -> None:
        """Look at leases each second, at everything else every few seconds."""
        self._ticks += 1
        followed = self.following.waited()
        writers = {stream: self._writer(stream) for stream in followed}
        metas = {stream: writer.meta for stream, writer in writers.items() if writer is not None}
        workers = sorted({meta.worker for meta in metas.values()})
        if workers:
            held = dict(zip(workers, self.run([("GET", self._keys.lease(worker)) for worker in workers])))
            for stream, meta in metas.items():
                if held[meta.worker] != meta.lease.encode():
                    self.following.doubt(stream, followed[stream].live)
        if self._ticks % LOOK_EVERY == 0:
            if followed:
                ends = self.run([
                    ("XREVRANGE", self._keys.log(stream), "+", "-", "COUNT", 1) for stream in followed
                ])
                for (stream, each), end in zip(followed.items(), ends):
                    if not end or number_of(end[0]) != each.last:
                        self.following.doubt(stream, each.live)
            self._look_for_stops()

    def _look_for_stops(self) -> None:
        streams = [name for name, writer in list(self.mine.items()) if not writer.stopped]
        if streams and self._callbacks.stop:
            asked = self.run([("HGET", self._keys.meta(stream), "stop") for stream in streams])
            for stream, value in zip(streams, asked):
                if value:
                    self._stop(stream)

    def _look_for_readers(self) -> None:
        """Hear of who has begun to read while nobody listened."""
        streams = list(self.mine) if self._callbacks.attend else []
        if streams:
            found = self.run([("PTTL", self._keys.readers(stream)) for stream in streams])
            self.audience.heard_of(streams, found)
            for stream, left in zip(streams, found):
                if left > 0:
                    self._callbacks.call(self._callbacks.attend, stream)

    def _stop(self, stream: str) -> None:
        writer = self.mine.get(stream)
        if writer is None or writer.stopped:
            return
        writer.stopped = True
        self._callbacks.call(self._callbacks.stop, stream)


def is_repeated(reply: Any) -> bool:
    """Whether Redis says that it has this item, or a later one."""
    return is_error(reply) and "equal or smaller" in str(reply)


def is_over(end: Sequence[Any]) -> bool:
    """Whether the newest item of a log, as XREVRANGE tells it, is its seal, or there is none."""
    return not end or bool(end[0][0] == SEAL)
