"""The tests that every event log passes; inherit them to test a log of your own.

::

    class TestMyLog(EventLogContract):
        def make_log(self):
            return MyEventLog("mylog://the-same-store")

        def other_process(self):
            return "mylog://the-same-store"

They run on threads, and on greenlets where gevent has patched the interpreter before pytest
started.
"""

from __future__ import annotations

import os
import random
import threading
import time
from functools import partial
from statistics import median
from typing import Any, Callable, Dict, List, Tuple

from flask_llmstream.eventlog import Page
from flask_llmstream.testing.attendance import AttendanceContract
from flask_llmstream.testing.keys import KeyContract
from flask_llmstream.testing.logs import follow, new_id, together
from flask_llmstream.testing.timing import wait_until

__all__ = ["EventLogContract"]

#: Seconds after which a wake-up is late, on a machine that is busy with other things.
LATE = 0.5


def in_ms(seconds: List[float]) -> str:
    """Return *seconds* as a note shows them."""
    return ", ".join(f"{1000 * each:.1f}" for each in seconds) + " ms"


class EventLogContract(KeyContract, AttendanceContract):
    """What an event log must do. Give :meth:`make_log`, and :meth:`other_process` if there can be one."""

    # -- appending and reading -----------------------------------------------------------

    def test_entries_are_read_in_order_from_anywhere(self) -> None:
        log = self.open()
        stream = self.begin(log)
        assert log.read(stream, 0) == Page(1, [], 0, "open")
        assert log.append(stream, 1, [b"one", b"two"])
        assert log.append_many([(stream, 3, [b"three"])]) == []
        for reader in (log, self.open()):
            assert reader.read(stream, 0) == Page(1, [b"one", b"two", b"three"], 3, "open")
            assert reader.read(stream, 2) == Page(3, [b"three"], 3, "open")
            assert reader.read(stream, 3) == Page(4, [], 3, "open")
            assert reader.read(stream, 0, limit=2) == Page(1, [b"one", b"two"], 3, "open")
            page = reader.read(stream, 99)
            assert page is not None and page.entries == [] and page.last == 3

    def test_appending_again_changes_nothing(self) -> None:
        log = self.open()
        stream = self.begin(log)
        for _ in range(2):
            assert log.append(stream, 1, [b"a", b"b"])
        assert log.append(stream, 2, [b"b", b"c"])
        assert log.append(stream, 1, [])
        log.create(stream, worker=new_id(), keep=60.0, max_events=1, max_bytes=1)
        assert log.read(stream, 0) == Page(1, [b"a", b"b", b"c"], 3, "open")

    def test_gap_is_shown_as_loss(self) -> None:
        log = self.open()
        stream = self.begin(log)
        log.append(stream, 1, [b"1", b"2"])
        log.append(stream, 5, [b"5", b"6"])
        assert log.read(stream, 0) == Page(1, [b"1", b"2"], 6, "open")
        assert log.read(stream, 2) == Page(5, [b"5", b"6"], 6, "open")
        assert log.read(stream, 5) == Page(6, [b"6"], 6, "open")

    def test_entries_may_be_any_bytes(self) -> None:
        log = self.open()
        stream = self.begin(log)
        entries = [b"", bytes(range(256)), b"\0", "\u00e4\u2028\U0001f600".encode(), b"\r\n\r\n"]
        entries += [b"x" * (1 << 20), b"end"]
        assert log.append(stream, 1, entries)
        log.seal(stream, "finished")
        assert follow(self.open(), stream) == (entries, "finished")

    def test_page_ends_at_about_256_kilobytes(self) -> None:
        log = self.open()
        stream = self.begin(log)
        log.append(stream, 1, [b"x" * 100000] * 10)
        page = log.read(stream, 0)
        assert page is not None and 2 <= len(page.entries) <= 4 and page.last == 10
        log.append(stream, 11, [b"y" * (1 << 20)])
        page = log.read(stream, 10)
        assert page is not None and len(page.entries) == 1

    def test_many_streams_are_appended_to_at_once(self) -> None:
        log = self.open()
        streams = [self.begin(log) for _ in range(5)]
        sealed, unknown = streams[1], new_id()
        log.seal(sealed, "finished")
        batches = [(stream, 1, [stream.encode(), b"2"]) for stream in streams]
        batches += [(unknown, 1, [b"x"]), (streams[0], 3, [b"3"])]
        assert sorted(log.append_many(batches)) == sorted([sealed, unknown])
        assert log.append_many([]) == []
        for stream in streams:
            page = log.read(stream, 0)
            expected = [] if stream == sealed else [stream.encode(), b"2"]
            assert page is not None
            assert page.entries == expected + [b"3"] * (stream == streams[0])
        assert log.read(unknown, 0) is None

    def test_oldest_entries_go_when_there_are_too_many(self) -> None:
        log = self.open()
        stream = self.begin(log, max_events=50)
        number = 1
        while number < 200:
            log.append(stream, number, [b"%d" % each for each in range(number, number + 7)])
            number += 7
        page = log.read(stream, 3)
        assert page is not None and page.last == number - 1
        assert 25 <= len(page.entries) <= 50
        assert page.first == page.last - len(page.entries) + 1 > 4
        assert page.entries[0] == b"%d" % page.first
        log.append(stream, number, [b"%d" % each for each in range(number, number + 200)])
        page = log.read(stream, 0)
        assert page is not None and 25 <= len(page.entries) <= 50 and page.entries[-1] == b"%d" % page.last

    def test_oldest_entries_go_when_there_are_too_many_bytes(self) -> None:
        log = self.open()
        stream = self.begin(log, max_bytes=10000)
        for number in range(1, 101):
            log.append(stream, number, [b"x" * 1000])
        page = log.read(stream, 0)
        assert page is not None and 5 <= len(page.entries) <= 10 and page.last == 100
        log.append(stream, 101, [b"y" * 20000])
        page = log.read(stream, 100)
        assert page is not None and page.entries == [b"y" * 20000], "the newest is always kept"
        log.append(stream, 102, [b"z"])
        page = log.read(stream, 0)
        assert page is not None and page.entries[-1] == b"z" and page.last == 102

    def test_unknown_stream(self) -> None:
        log = self.open()
        unknown = new_id()
        assert log.read(unknown, 0) is None
        assert not log.append(unknown, 1, [b"x"])
        assert not log.seal(unknown, "finished") and not log.request_stop(unknown)
        began = time.monotonic()
        log.wait(unknown, 0, 20)
        assert time.monotonic() - began < 10

    def test_misuse_is_refused(self) -> None:
        log = self.open()
        for misuse in (
            lambda: self.open().create("no id", "w", 1, 1, 1),
            lambda: self.open().create("", "w", 1, 1, 1),
            lambda: log.seal(self.begin(log), "open"),
            lambda: log.seal_many([(self.begin(log), "finished"), (self.begin(log), "open")]),
            lambda: log.bind("key", "no id", 1.0),
        ):
            try:
                misuse()
            except ValueError:
                continue
            raise AssertionError("no ValueError")

    # -- the end -------------------------------------------------------------------------

    def test_first_seal_wins(self) -> None:
        log = self.open()
        stream = self.begin(log)
        log.append(stream, 1, [b"x"])
        logs = [log, self.open()]
        states = ["finished", "interrupted"] * 5
        won = together([
            partial(logs[number % 2].seal, stream, state)
            for number, state in enumerate(states)
        ])
        assert won.count(True) == 1
        assert not log.append(stream, 2, [b"late"])
        assert not log.request_stop(stream)
        for reader in logs:
            assert reader.read(stream, 0) == Page(1, [b"x"], 1, states[won.index(True)])

    def test_several_are_sealed_together(self) -> None:
        log = self.open()
        over, lost, other = [self.begin(log) for _ in range(3)]
        assert log.seal(over, "finished")
        ends = [(over, "interrupted"), (lost, "interrupted"), (other, "finished"), (new_id(), "finished")]
        log.seal_many(ends)
        states = [page.state for page in (log.read(stream, 0) for stream in (over, lost, other)) if page]
        assert states == ["finished", "interrupted", "finished"]

    def test_stream_is_readable_for_its_time(self) -> None:
        log = self.open()
        short, long = self.begin(log, keep=0.6), self.begin(log, keep=60.0)
        log.append_many([(short, 1, [b"x"]), (long, 1, [b"x"])])
        time.sleep(0.9)
        assert log.read(short, 0) is not None, "the time begins at the end of the stream"
        for stream, keep in ((short, 0.6), (long, 60.0)):
            began = time.monotonic()
            assert log.seal(stream, "finished")
            page = log.read(stream, 0)
            # On a machine that stands still for a moment its time may be over by now.
            assert page == Page(1, [b"x"], 1, "finished") or time.monotonic() - began > keep
        wait_until(lambda: log.read(short, 0) is None, 10, "the stream to be past its time")
        assert not log.append(short, 2, [b"x"])
        assert log.read(long, 0) is not None

    def test_pruning_ends_and_leaves_the_living(self) -> None:
        log = self.open()
        alive = self.begin(log)
        log.append(alive, 1, [b"alive"])
        for _ in range(20):
            stream = self.begin(log, keep=0.0)
            log.append(stream, 1, [b"x"] * 200)
            log.seal(stream, "finished")
            log.claim(stream, stream, 0.0)
        wait_until(lambda: log.prune() == 0, 10, "everything to be dropped")
        assert log.read(stream, 0) is None
        assert log.read(alive, 0) == Page(1, [b"alive"], 1, "open")

    # -- waiting -------------------------------------------------------------------------

    def test_wait_takes_its_time(self) -> None:
        log = self.open()
        stream = self.begin(log)
        log.append(stream, 1, [b"x"])
        began = time.monotonic()
        log.wait(stream, 0, 20)
        assert time.monotonic() - began < 10, "there is something to read"
        began = time.monotonic()
        log.wait(stream, 1, 0.4)
        assert 0.35 <= time.monotonic() - began < 5
        log.wait(stream, 1, 0)

    def test_wait_wakes_for_entries_and_for_the_end(self) -> None:
        for writer in (self.open(), self.open()):
            log = self._opened[0]
            stream = self.begin(writer)
            late: List[float] = []

            def act(action: Callable[[], Any], after: int) -> None:
                woken: List[float] = []

                def waiter() -> None:
                    log.wait(stream, after, 20)
                    woken.append(time.monotonic())

                thread = threading.Thread(target=waiter)
                thread.start()
                time.sleep(0.15)
                assert not woken
                began = time.monotonic()
                action()
                thread.join(30)
                late.append(woken[0] - began)

            act(lambda: writer.append(stream, 1, [b"x"]), 0)
            act(lambda: writer.append(stream, 2, [b"y"]), 1)
            act(lambda: writer.seal(stream, "finished"), 2)
            whose = "its own" if writer is log else "another"
            self.note(f"woken by {whose} log object after {in_ms(late)}")
            assert median(late) < LATE

    def test_two_hundred_followers_are_woken_by_one_append(self) -> None:
        log, writer = self.open(), self.open()
        stream = self.begin(writer)
        woken: List[float] = []

        def follower() -> Tuple[List[bytes], str]:
            log.wait(stream, 0, 30)
            woken.append(time.monotonic())
            return follow(log, stream)

        times: List[float] = []

        def write() -> None:
            time.sleep(0.5)
            times.append(time.monotonic())
            writer.append(stream, 1, [b"now"])
            time.sleep(0.5)
            writer.seal(stream, "finished")

        results = together([write] + [follower] * 200)
        assert results[1:] == [([b"now"], "finished")] * 200
        self.note(f"200 followers were woken within {1000 * (max(woken) - times[0]):.1f} ms")
        assert max(woken) - times[0] < 4 * LATE

    # -- stopping ------------------------------------------------------------------------

    def test_stop_is_heard_where_the_stream_was_created(self) -> None:
        logs = [self.open(), self.open()]
        heard: List[Tuple[int, str]] = []

        def hear(number: int, stream: str) -> None:
            heard.append((number, stream))

        for number, log in enumerate(logs):
            log.on_stop(partial(hear, number))
        streams = [self.begin(log) for log in logs]
        late = []
        for owner in (0, 1):
            for asker in (0, 1):
                stream = self.begin(logs[owner])
                heard.clear()
                began = time.monotonic()
                assert logs[asker].request_stop(stream)
                wait_until(lambda: heard, 5, "the request to be heard")
                late.append(time.monotonic() - began)
                assert set(heard) == {(owner, stream)}
        self.note(f"a request to stop was heard after {in_ms(late)}")
        assert median(late) < LATE
        assert not any(stream in streams for _, stream in heard)
        logs[0].seal(streams[0], "finished")
        assert not logs[1].request_stop(streams[0])

    # -- leases --------------------------------------------------------------------------

    def test_stream_of_a_worker_without_lease_is_interrupted(self) -> None:
        log, other = self.open(), self.open()
        dead, alive = new_id(), new_id()
        log.renew(dead, 1.5)
        log.renew(alive, 60.0)
        stream, kept = self.begin(log, worker=dead), self.begin(log, worker=alive)
        done, unseen = self.begin(log, worker=dead), self.begin(log, worker=dead)
        log.append_many([(stream, 1, [b"a", b"b"]), (kept, 1, [b"c"])])
        log.seal(done, "finished")
        began = time.monotonic()
        assert other.read(stream, 2) == Page(3, [], 2, "open")
        log.renew(dead, 1.5)
        together([lambda: follow(log, stream), lambda: follow(other, stream)])
        took = time.monotonic() - began
        self.note(f"a lease of 1.5 s was seen to have run out after {took:.2f} s")
        assert 1.3 < took < 8
        assert log.read(unseen, 0) == Page(1, [], 0, "interrupted"), "it is enough to read it"
        for reader in (log, other):
            assert reader.read(stream, 0) == Page(1, [b"a", b"b"], 2, "interrupted")
            assert reader.read(kept, 0) == Page(1, [b"c"], 1, "open")
            assert reader.read(done, 0) == Page(1, [], 0, "finished")
        log.renew(dead, 60.0)
        assert not log.seal(stream, "finished") and not log.append(stream, 3, [b"late"])
        assert other.read(stream, 0) == Page(1, [b"a", b"b"], 2, "interrupted")

    def test_worker_that_begins_a_stream_has_a_lease(self) -> None:
        log = self.open()
        worker = new_id()
        log.renew(worker, 0.5)
        old = self.begin(log, worker=worker)
        time.sleep(0.7)
        new = self.begin(log, worker=worker)
        states = [(log.read(each, 0) or Page(0, [], 0, "unknown")).state for each in (old, new)]
        assert states == ["interrupted", "open"]

    # -- everything at once --------------------------------------------------------------

    def test_chance_finds_no_difference_to_a_model(self) -> None:
        seed = random.randrange(1 << 32)
        chance = random.Random(seed)
        logs = [self.open(), self.open()]
        entries: Dict[str, List[bytes]] = {}
        states: Dict[str, str] = {}
        for _ in range(400):
            log = chance.choice(logs)
            action = chance.random()
            if action < 0.05 or not entries:
                stream = self.begin(log)
                entries[stream], states[stream] = [], "open"
                continue
            some = chance.sample(sorted(entries), chance.randint(1, min(4, len(entries))))
            stream = some[0]
            if action < 0.1:
                state = chance.choice(["finished", "interrupted"])
                assert log.seal(stream, state) == (states[stream] == "open"), f"seed {seed}"
                if states[stream] == "open":
                    states[stream] = state
            elif action < 0.6:
                batches, refused = [], []
                for each in some:
                    new = [os.urandom(chance.choice([0, 1, 30, 500])) for _ in range(chance.randint(0, 6))]
                    again = entries[each][-3:] if chance.random() < 0.3 else []
                    batches.append((each, len(entries[each]) - len(again) + 1, again + new))
                    if states[each] == "open":
                        entries[each] += new
                    else:
                        refused.append(each)
                assert sorted(log.append_many(batches)) == sorted(refused), f"seed {seed}"
            else:
                has = entries[stream]
                after, limit = chance.randint(0, len(has)), chance.randint(1, 10)
                page = log.read(stream, after, limit)
                expected = Page(after + 1, has[after : after + limit], len(has), states[stream])
                assert page == expected, f"seed {seed}"

    def test_readers_that_leave_and_return_miss_nothing(self) -> None:
        logs = [self.open(), self.open()]
        streams = [self.begin(logs[0]) for _ in range(4)]
        expected = [b"entry %d" % number for number in range(300)]

        def write() -> None:
            for number in range(0, 300, 10):
                some = expected[number : number + 10]
                logs[0].append_many([(stream, number + 1, some) for stream in streams])
                time.sleep(0.005)
            for stream in streams:
                logs[0].seal(stream, "finished")

        def read(number: int) -> List[bytes]:
            chance, log, stream = random.Random(number), logs[number % 2], streams[number % 4]
            found: List[bytes] = []
            while True:
                page = log.read(stream, len(found), chance.randint(1, 40))
                assert page is not None and page.first == len(found) + 1
                found += page.entries
                if page.state != "open" and len(found) >= page.last:
                    return found
                if not page.entries:
                    log.wait(stream, len(found), chance.choice([0.001, 0.01, 5.0]))

        results = together([write] + [partial(read, number) for number in range(16)])
        assert results[1:] == [expected] * 16

    # -- other processes -----------------------------------------------------------------

    def test_other_processes_write_and_read(self) -> None:
        """Two processes write, two others and this one read, all at the same time."""
        if self.other_process() is None:
            return
        log = self.open()
        names = [new_id(), new_id()]
        late: List[float] = []
        writers = [self.start("write", name, 200, 0.01) for name in names]
        readers = [self.start("read", name) for name in names]

        def known(name: str) -> bool:
            return log.read(name, 0) is not None

        for name in names:
            wait_until(lambda: known(name), 30, "the other process to begin")
        results = together([partial(follow, log, name) for name in names])
        for entries, state in results:
            assert state == "finished" and len(entries) == 200
        for program in writers + readers:
            late += [float(word) for word in self.said(program)]
        assert len(late) == 400
        late.sort()
        self.note(
            f"across processes an entry was read after p50 {1000 * late[200]:.1f} ms,"
            f" p99 {1000 * late[396]:.1f} ms, max {1000 * late[-1]:.1f} ms (n=400)"
        )
        assert late[200] < LATE / 2

    def test_other_process_that_is_killed_leaves_its_entries(self) -> None:
        if self.other_process() is None:
            return
        log = self.open()
        stream = new_id()
        writer = self.start("write", stream, 100000, 0.01, 2.0)
        wait_until(lambda: (log.read(stream, 0) or Page(0, [], 0, "")).last > 20, 30, "some entries")
        writer.kill()
        writer.wait()
        page = log.read(stream, 0)
        assert page is not None and page.state == "open"
        entries, state = follow(log, stream)
        assert state == "interrupted" and len(entries) >= page.last

    def test_other_process_is_asked_to_stop(self) -> None:
        if self.other_process() is None:
            return
        log = self.open()
        stream = new_id()
        writer = self.start("stopped", stream)
        wait_until(lambda: log.read(stream, 0) is not None, 30, "the other process to begin")
        began = time.monotonic()
        assert log.request_stop(stream)
        (moment,) = self.said(writer)
        self.note(f"a request to stop reached another process after {1000 * (float(moment) - began):.1f} ms")
        assert float(moment) - began < 2 * LATE
