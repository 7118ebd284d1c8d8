"""An event log in Redis, for all workers of all machines.

Decisions
    1. No script: what must be atomic is one command on one key, see ``redis_layout``. So it runs
       on a cluster, on managed Redis that allows no scripts, and repeats of a call do no harm.
    2. Everything has a time to live from the beginning; there is nothing to clear away.
    3. News are pushed, over one connection per process. A slow look at what nobody tells of, such
       as a lease that runs out, goes along with it.
    4. Where the process hears who reads its streams (``on_attend``), it pushes only to those that are
       read. Whoever begins to read says so first; the process that writes then pushes the last number
       once, so that nothing falls between the reader's look at the log and the first push.
"""

from __future__ import annotations

import os
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from flask_llmstream.eventlog.attending import Callbacks
from flask_llmstream.eventlog.base import (
    FIRST_LEASE,
    OPEN,
    Batch,
    EventLog,
    Page,
    checked_id,
    checked_seal,
)
from flask_llmstream.eventlog.packing import Item, pack
from flask_llmstream.eventlog.redis_client import Command, RedisOptions, is_error
from flask_llmstream.eventlog.redis_layout import (
    BEGIN,
    FIELDS,
    LEFT,
    READ,
    Keys,
    Meta,
    Writer,
)
from flask_llmstream.eventlog.redis_listener import TICK
from flask_llmstream.eventlog.redis_process import Process, is_over, is_repeated
from flask_llmstream.exceptions import LogUnavailable

__all__ = ["RedisEventLog"]

#: Seconds after which an append has an open stream live on.
RENEWED_AFTER = 3600.0

#: A greater number than any entry has, for looking at the end only.
BEYOND = (1 << 63) - 1


class RedisEventLog(EventLog):
    """The log at ``redis://``, ``rediss://`` or ``unix://``; Redis 6.2 or newer, redis-py 3.5.3 or newer.

    Options in the URL: ``timeout``, seconds to wait for an answer, 2 by default; ``cluster=1`` for
    a Redis Cluster (redis-py 4.1 or newer); ``prefix`` of all keys, ``llmstream`` by default;
    ``connections``, how many calls at a time, 16 by default. Others are for redis-py.
    """

    def __init__(self, url: str) -> None:
        self._options = RedisOptions(url)
        self.name = self._options.name
        self._keys = Keys(self._options.prefix)
        self._callbacks = Callbacks()
        self._processes: Dict[int, Process] = {}

    @property
    def _now(self) -> Process:
        pid = os.getpid()
        process = self._processes.get(pid)
        if process is None:
            # Nothing is started by this: two may come here at once, and one is thrown away.
            made = Process(self._options, self._keys, self._callbacks)
            process = self._processes.setdefault(pid, made)
        return process

    # -- writing ---------------------------------------------------------------------------

    def create(self, stream: str, worker: str, keep: float, max_events: int, max_bytes: int) -> None:
        checked_id(stream)
        process, keys = self._now, self._keys
        exists, _, lease = process.run([("EXISTS", keys.log(stream)), *process.leasing(worker, FIRST_LEASE)])
        if exists:
            return
        process.leases[worker] = lease
        meta = Meta(worker, lease.decode(), process.home_name, float(keep), max_events, max_bytes)
        values = [part for pair in zip(FIELDS, meta) for part in pair]
        # The log comes last: with it the stream exists.
        replies = process.run([
            ("HSET", keys.meta(stream), *values),
            *process.living(stream, meta)[1:],
            ("XADD", keys.log(stream), BEGIN, "begin", ""),
            *process.living(stream, meta)[:1],
        ], strict=False)
        process.check(reply for reply in replies if not is_repeated(reply))
        writer = Writer(meta, begun=not is_error(replies[-2]))
        writer.refreshed = process.runtime.now()
        process.mine[stream] = writer
        if self._callbacks:
            process.listener.want(b"")

    def append_many(self, batches: Sequence[Batch]) -> List[str]:
        process, keys = self._now, self._keys
        parts: Dict[str, List[Tuple[int, Sequence[bytes]]]] = {}
        for stream, first, entries in batches:
            parts.setdefault(stream, []).append((first, entries))
        writers = process.writers(list(parts))
        refused = [stream for stream in parts if stream not in writers]
        commands: List[Command] = []
        plans: List[Tuple[str, List[Item], int, int]] = []
        silent: List[str] = []
        now = process.runtime.now()
        for stream, writer in writers.items():
            items = [
                item
                for first, entries in parts[stream]
                for item in pack(first, entries, writer.meta.max_events, writer.meta.max_bytes)
            ]
            surplus = writer.surplus(items) if items else 0
            if items and now - writer.refreshed > RENEWED_AFTER:
                writer.refreshed = now
                # First: it is taken back if the items are refused, and whoever seals it behind them does so.
                commands += process.living(stream, writer.meta)
            plans.append((stream, items, surplus, len(commands)))
            if not items:
                continue
            commands += writer.commands(keys.log(stream), items, surplus)
            if process.audience.wants(stream):
                commands.append(("PUBLISH", keys.news(stream), items[-1].last))
            else:
                silent.append(stream)
        try:
            replies = process.run(commands, strict=False) if commands else []
        except LogUnavailable:
            for writer in writers.values():
                writer.loaded = False  # nobody knows what has arrived
            raise
        doubtful, wrong = [], []
        for stream, items, surplus, place in plans:
            writer = writers[stream]
            answers = replies[place : place + len(items)]
            for item, answer in zip(items, answers):
                if isinstance(answer, bytes):
                    writer.add(item)
            if answers and isinstance(answers[-1], bytes):
                writer.drop(surplus)
                writer.written = items[-1].last
                process.following.hear(stream, items[-1].last)
                # Whatever was refused of it is there already.
                writer.loaded = writer.loaded and all(isinstance(answer, bytes) for answer in answers)
                continue
            failed = [answer for answer in answers if is_error(answer) and not is_repeated(answer)]
            wrong += failed[:1]
            if not failed:
                # Repeated, sealed or gone: or there was nothing to add.
                doubtful.append(stream)
        # Somebody may have come while it was written.
        process.audience.catch_up(silent)
        if doubtful:
            ends = process.run([("XREVRANGE", keys.log(stream), "+", "-", "COUNT", 1) for stream in doubtful])
            for stream, end in zip(doubtful, ends):
                if is_over(end):
                    refused.append(stream)
                    process.forget(stream)
                    if writers[stream].refreshed == now:
                        process.run(process.living(stream, writers[stream].meta, 0.0))
                else:
                    writers[stream].loaded = False
        process.check(wrong)
        return refused

    def seal(self, stream: str, state: str) -> bool:
        checked_seal(state)
        return self._now.seal(stream, state)

    # -- reading ---------------------------------------------------------------------------

    def read(self, stream: str, after: int, limit: int = 256) -> Optional[Page]:
        process = self._now
        followed = process.following.get(stream)
        if followed is None or not followed.live:
            return process.fetch(stream, after, limit)
        return process.following.share(
            stream, followed, (after, limit), lambda: process.fetch(stream, after, limit)
        )

    def wait(self, stream: str, after: int, timeout: float) -> None:
        process = self._now
        now, following = process.runtime.now, process.following
        deadline = now() + timeout
        while not process.closed:
            followed = following.use(stream)
            waiting = following.waiters.enter(stream)
            try:
                if not followed.quiet(after):
                    page = following.share(
                        stream, followed, (after, 1), lambda: process.fetch(stream, after, 1)
                    )
                    if page is None or page.entries or page.state != OPEN:
                        return
                left = deadline - now()
                if left <= 0:
                    return
                if not followed.live:
                    process.want(stream)
                    left = min(left, TICK)
                # What was heard meanwhile has set the flag.
                waiting.flag.wait(left)
            finally:
                following.waiters.leave(stream, waiting)

    # -- stopping, claims and leases -------------------------------------------------------

    def request_stop(self, stream: str) -> bool:
        process, keys = self._now, self._keys
        page = process.fetch(stream, BEYOND, 1)
        meta = process.meta(stream)
        if page is None or page.state != OPEN or meta is None:
            return False
        # Written down, for a process that does not hear it right now.
        replies = process.run([
            ("HSET", keys.meta(stream), "stop", "1"),
            *process.living(stream, meta)[1:],
            ("XREVRANGE", keys.log(stream), "+", "-", "COUNT", 1),
            ("PUBLISH", keys.home(meta.home), stream),
        ])
        if is_over(replies[2]):
            # Who has sealed it meanwhile has said how long it is kept: what came later says more.
            process.run(process.living(stream, meta, 0.0))
            return False
        return True

    def on_stop(self, callback: Callable[[str], None]) -> None:
        self._callbacks.stop.append(callback)
        self._listen()

    def on_attend(self, callback: Callable[[str], None]) -> bool:
        self._callbacks.attend.append(callback)
        self._listen()
        return True

    def on_leave(self, callback: Callable[[str], None]) -> bool:
        self._callbacks.leave.append(callback)
        self._listen()
        return True

    def _listen(self) -> None:
        if self._now.mine:
            self._now.listener.want(b"")

    def claim(self, key: str, stream: str, keep: float) -> str:
        name, wanted = self._keys.claim(key), checked_id(stream)
        while True:
            set_now, holder = self._now.run([
                ("SET", name, wanted, "PX", max(1, int(keep * 1000)), "NX"), ("GET", name)
            ])
            if set_now:
                return stream
            if holder is not None:  # else it has ended between the two
                return str(holder.decode())

    def bind(self, key: str, stream: str, keep: float) -> None:
        name, wanted = self._keys.claim(key), checked_id(stream)
        self._now.run([("SET", name, wanted, "PX", max(1, int(keep * 1000)))])

    def bound(self, key: str) -> Optional[str]:
        (holder,) = self._now.run([("GET", self._keys.claim(key))])
        return None if holder is None else str(holder.decode())

    def attend(self, stream: str, seconds: float) -> None:
        process = self._now
        if not process.attendance.is_due(stream, seconds):
            return
        key = self._keys.readers(stream)
        with process.attendance.telling(stream):
            left = max(process.run([("PTTL", key)])[0], 1, int(seconds * 1000))
            commands: List[Command] = [("SADD", key, process.home_name), ("PEXPIRE", key, left)]
            meta = process.meta(stream)
            if meta is not None:
                said = f"{READ}{stream}:{max(1, int(seconds * 1000))}"
                commands.append(("PUBLISH", self._keys.home(meta.home), said))
            process.run(commands)

    def attended(self, stream: str) -> bool:
        return bool(self._now.run([("EXISTS", self._keys.readers(stream))])[0])

    def leave(self, stream: str) -> None:
        process = self._now
        if process.attendance.forget(stream):
            commands: List[Command] = [("SREM", self._keys.readers(stream), process.home_name)]
            meta = process.meta(stream)
            if meta is not None:
                commands.append(("PUBLISH", self._keys.home(meta.home), LEFT + stream))
            if not self._options.cluster:
                process.run(commands)
                return
            for command in commands:  # one after the other: they go to two nodes
                process.run([command])

    def renew(self, worker: str, lease: float) -> None:
        process = self._now
        # Where it has run out and nobody has noticed, it goes on as before.
        given = process.leasing(worker, lease, process.leases.get(worker))
        # In this order: it may run out between any two.
        longer = ("PEXPIRE", self._keys.lease(worker), max(1, int(lease * 1000)))
        _, _, value = process.run([longer, *given])
        if value is not None:
            process.leases[worker] = value

    def prune(self) -> int:
        """Return 0: Redis drops what is past its time."""
        return 0

    def close(self) -> None:
        process = self._processes.pop(os.getpid(), None)
        if process is not None:
            process.close()
